"""What fine-tuning gains on human queries, and what each of its parts adds.

python benchmarks/finetuning.py WORK BEIR_FOLDER ... [--variants ours ...] [--passages 450]

For each set: questions by the embedded LLM about some of its passages (never its queries), stage 2 with and without BM25 in its scores, then every variant of stage 3, measured on the set's human queries. What is in WORK is not made again, so a
killed study goes on. One line a variant: nDCG@10, the change from the base model with its 95% interval, the merge share, seconds.
"""

import argparse
import json
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np

from domain_embed import training
from domain_embed.batches import FORBIDDEN, OPEN, label_batch
from domain_embed.beir import read_beir
from domain_embed.breakdown import documents_of
from domain_embed.certainty import judge_change
from domain_embed.comparison import local_encoder
from domain_embed.encode import load_model
from domain_embed.finetune import run_finetune
from domain_embed.generate import run_generate
from domain_embed.metrics import per_query
from domain_embed.prepare import run_prepare
from domain_embed.profiles import load_profile
from domain_embed.search import ranking, top_k

VARIANTS: dict[str, dict] = {
    "ours": {},
    "temperature 0.05": {"temperature": 0.05},
    "temperature 0.05, soft labels": {"temperature": 0.05, "soft_labels": 1.0},
    "soft labels": {"soft_labels": 1.0},
    "learning rate 1e-4": {"learning_rate": 1e-4},
    "without BM25 in the guide": {"fused": False},
    "without the merge": {"merge": False},
    "mined negatives instead of drawn ones": {"draw_from": 0},
    "the plain recipe": {
        "soft_labels": 0.0,
        "draw_from": 0,
        "train_candidates": 4,
        "temperature": 0.02,
        "merge": False,
        "fused": False,
        "own_only": True,
    },
}


def own_only(batch, guides):
    "Labels of the plain recipe: a question is compared with its own negatives and with nothing else of the batch."
    passages, labels = label_batch(batch, guides)
    for n, example in enumerate(batch):
        others = np.array([p not in (example.row.positive, *example.candidates) for p in passages])
        own = np.array([p in example.candidates for p in passages])
        labels[1, n] = np.where(others, FORBIDDEN, np.where(own, OPEN, labels[1, n]))
    return passages, labels


def prepared(work: Path, folder: Path, passages: int) -> dict[bool, Path]:
    "A run folder with stage 2 done, with and without BM25 in its scores."
    runs = {}
    for fused in (True, False):
        run_dir, settings = work / folder.name / ("fused" if fused else "base"), load_profile("embedded")
        documents = {"documents": str(folder / "corpus.jsonl"), "max_passages": passages}
        (run_dir / "cache").parent.mkdir(parents=True, exist_ok=True)
        shared = work / folder.name / "cache"
        shared.mkdir(exist_ok=True)
        if not (run_dir / "cache").exists():
            (run_dir / "cache").symlink_to(shared.resolve())
        run_generate(run_dir=str(run_dir), **settings["generate"] | documents)
        run_prepare(
            run_dir=str(run_dir), **settings["prepare"] | {"fuse_bm25": "always" if fused else "never", "max_leak": 1.0}
        )  # its own test questions are not used
        runs[fused] = run_dir
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("sets", type=Path, nargs="+")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--passages", type=int, default=450, help="about so many passages of a set questions are written")
    options = parser.parse_args()
    print("| set | variant | rows | nDCG@10 | change from base, 95% interval | merge share | seconds |\n|---|---|---|---|---|---|---|")
    for folder in options.sets:
        test, cache = read_beir(folder), options.work / "vectors"
        documents = documents_of(test)

        def ndcg(name: str, test=test, cache=cache) -> np.ndarray:
            encoder = local_encoder(load_model(name, 256))
            queries, passages = (
                encoder.many(cache, list(test.queries.values()), "query"),
                encoder.many(cache, [p.content for p in test.passages], "document"),
            )
            found = ranking(list(test.queries), [p.id for p in test.passages], *top_k(queries, passages, 100))
            return per_query(test.qrels, found)["nDCG@10"].to_numpy()

        base, runs = ndcg("embedded"), prepared(options.work, folder, options.passages)
        print(f"| {folder.name} | base model | | {base.mean():.4f} | | | |", flush=True)
        for variant in options.variants:
            result = options.work / folder.name / f"{variant}.json"
            if not result.exists():
                changed = dict(VARIANTS[variant])
                run_dir, start = runs[changed.pop("fused", True)], time.monotonic()
                with patch.object(training, "label_batch", own_only if changed.pop("own_only", False) else label_batch):
                    manifest = run_finetune(run_dir=str(run_dir), **load_profile("embedded")["finetune"] | changed)
                seconds = time.monotonic() - start
                tuned = ndcg(str(run_dir / "3_finetune/model"))
                kept = {"rows": manifest["metrics"]["rows"], "share": manifest["metrics"]["merge_share"], "seconds": seconds, "ndcg": tuned.tolist()}
                result.write_text(json.dumps(kept))
            kept = json.loads(result.read_text())
            tuned = np.array(kept["ndcg"])
            v = judge_change(tuned - base, documents, seed=0)
            change = f"{v.change:+.4f}, {v.low:+.4f} to {v.high:+.4f}"
            print(
                f"| {folder.name} | {variant} | {kept['rows']} | {tuned.mean():.4f} | {change} | {kept['share']} | {kept['seconds']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
