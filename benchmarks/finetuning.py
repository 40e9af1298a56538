"""What fine-tuning gains on human queries, and what each of its parts adds.

python benchmarks/finetuning.py WORK BEIR_FOLDER ... [--variants ours ...] [--passages 450]

For each set: questions by the embedded LLM about some of its passages (never its queries), stage 2 with and without BM25 in its scores, then every variant of stage 3, measured on the set's human queries. What is in WORK is not made again, so a
killed study goes on. `finetuning.ipynb` shows what came of it.
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
from sentence_transformers import SentenceTransformer

from domain_embed import training
from domain_embed.baselines import Searched, fuse, search_source
from domain_embed.batches import FORBIDDEN, OPEN, label_batch
from domain_embed.beir import RetrievalSet, read_beir
from domain_embed.breakdown import documents_of
from domain_embed.certainty import judge_change
from domain_embed.comparison import Source, local_encoder
from domain_embed.encode import load_model
from domain_embed.finetune import run_finetune
from domain_embed.generate import run_generate
from domain_embed.metrics import per_query
from domain_embed.prepare import run_prepare
from domain_embed.profiles import load_profile
from domain_embed.search import ranking

VARIANTS: dict[str, dict] = {
    "ours": {},
    "mined negatives instead of drawn ones": {"draw_from": 0},
    "one candidate instead of three": {"train_candidates": 1},
    "without BM25 in the guide": {"fused": False},
    "nothing masked": {"masked": False},
    "soft labels": {"soft_labels": 1.0, "temperature": 0.05},
    "learning rate 1e-4": {"learning_rate": 1e-4},
    "with dropout": {"dropout": True},
    "without the merge": {"merge": False},
    "the plain recipe": {
        "draw_from": 0,
        "train_candidates": 4,
        "merge": False,
        "fused": False,
        "own_only": True,
        "dropout": True,
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


def unmasked(batch, guides):
    "Labels that forbid nothing."
    passages, labels = label_batch(batch, guides)
    return passages, np.stack([labels[0], np.maximum(labels[1], OPEN)])


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


def search(model: SentenceTransformer | None, test: RetrievalSet, cache: Path) -> Searched:
    "What a model, or BM25, finds for a set's own queries."
    return search_source(Source("base" if model else "bm25"), test, model and local_encoder(model), cache)


def ndcg(found: Searched, test: RetrievalSet) -> np.ndarray:
    "nDCG@10 of every query."
    return per_query(test.qrels, ranking(list(test.queries), [p.id for p in test.passages], found.scores, found.rows))["nDCG@10"].to_numpy()


def tuned(work: Path, folder: Path, variant: str, passages: int) -> dict:
    "A variant's outcome; trained and measured unless it was before."
    result = work / folder.name / f"{variant}.json"
    if not result.exists():
        test, changed, runs = read_beir(folder), dict(VARIANTS[variant]), prepared(work, folder, passages)
        run_dir, start = runs[changed.pop("fused", True)], time.monotonic()
        shutil.rmtree(run_dir / "3_finetune", ignore_errors=True)  # what is patched below is in no manifest
        labels = own_only if changed.pop("own_only", False) else label_batch if changed.pop("masked", True) else unmasked
        dropout = (lambda model: model) if changed.pop("dropout", False) else training.without_dropout
        with patch.object(training, "label_batch", labels), patch.object(training, "without_dropout", dropout):
            manifest = run_finetune(run_dir=str(run_dir), **load_profile("embedded")["finetune"] | changed | {"processes": 1})
        seconds = time.monotonic() - start
        model = shutil.copytree(run_dir / "3_finetune/model", work / folder.name / f"{variant} model", dirs_exist_ok=True)
        found = search(load_model(str(model), 256), test, work / "vectors")
        with_words = fuse([found, search(None, test, work / "vectors")])
        scores = {"ndcg": ndcg(found, test).tolist(), "ndcg_with_bm25": ndcg(with_words, test).tolist()}
        result.write_text(json.dumps({"metrics": manifest["metrics"], "seconds": seconds, **scores}))
    return json.loads(result.read_text())


def foreseen(work: Path, folders: list[Path], variant: str, passages: int) -> pd.DataFrame:
    "What stage 4 would say of a variant by the run's own generated test questions, beside what people's queries say."
    rows = []
    for folder in folders:
        model, run_dir = (
            load_model(str(work / folder.name / f"{variant} model"), 256),
            prepared(work, folder, passages)[VARIANTS[variant].get("fused", True)],
        )
        for name, test in (("generated test questions", read_beir(run_dir / "2_prepare/eval_beir")), ("people's queries", read_beir(folder))):
            base, after = (ndcg(search(some, test, work / "vectors"), test) for some in (load_model("embedded", 256), model))
            v = judge_change(after - base, documents_of(test), seed=0)
            row = {
                "set": folder.name,
                "asked": name,
                "queries": len(base),
                "base": base.mean(),
                "BM25": ndcg(search(None, test, work / "vectors"), test).mean(),
            }
            rows.append(row | {"tuned": after.mean(), "change": v.change, "low": v.low, "high": v.high, "verdict": v.verdict})
    return pd.DataFrame(rows)


def study(work: Path, folders: list[Path], variants: list[str], passages: int) -> pd.DataFrame:
    "A row for every set and everything that searches it; nDCG@10 on the set's human queries, and the change from the base model."
    rows = []
    for folder in folders:
        test, cache = read_beir(folder), work / "vectors"
        documents = documents_of(test)
        base, words = search(load_model("embedded", 256), test, cache), search(None, test, cache)
        reference = ndcg(base, test)
        found = {"base model": reference, "BM25": ndcg(words, test), "base model + BM25": ndcg(fuse([base, words]), test)}
        about = {}
        for variant in variants:
            outcome = tuned(work, folder, variant, passages)
            found[variant], about[variant] = np.array(outcome["ndcg"]), outcome
            if variant == "ours":
                found["ours + BM25"] = np.array(outcome["ndcg_with_bm25"])
        for name, scores in found.items():
            verdict, m = judge_change(scores - reference, documents, seed=0), about.get(name, {}).get("metrics", {})
            row = {"set": folder.name, "queries": len(scores), "variant": name, "nDCG@10": scores.mean(), "change": verdict.change}
            row |= {
                "low": verdict.low,
                "high": verdict.high,
                "rows": m.get("rows"),
                "share": m.get("merge_share"),
                "seconds": about.get(name, {}).get("seconds"),
            }
            rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("sets", type=Path, nargs="+")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--passages", type=int, default=450, help="about so many passages of a set questions are written")
    options = parser.parse_args()
    print(study(options.work, options.sets, options.variants, options.passages).round(4).to_string(index=False))


if __name__ == "__main__":
    main()
