"""Titles as training queries: python benchmarks/titles.py RUNS SET ... [--titles 700] [--epochs 2]      prints a JSON line for each training

RUNS: a folder of `benchmarks/quality.py`, whose variant "lexical" of the first seed has been run for each SET, a BEIR folder with human queries. The title of a passage, or the heading that its text begins with, is a query whose answer is the rest of the passage; passages of validation
and test questions are left out. Trained on: "generated", stage 2's rows; "titles"; "both". Nothing is merged with the base model, so that the trained model itself is measured, with the run's lexical dimensions.
"""

import argparse
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from quality import evaluate_systems, set_folder, stage_settings

from domain_embed.automodel_format import TrainingRow
from domain_embed.beir import Passage, RetrievalSet, read_beir
from domain_embed.clusters import clusters_of
from domain_embed.encode import encode_cached, token_lengths
from domain_embed.finetune import Settings
from domain_embed.intervals import interval
from domain_embed.lexical_dimensions import Lexical, append, read_lexical
from domain_embed.models import load_base
from domain_embed.search import top_k
from domain_embed.training_data import TrainingData, read_training_data
from domain_embed.tuning import tune


def title_and_body(passage: Passage) -> tuple[str, str] | None:
    "The title of a passage and its text, or the heading and the rest of a text without title."
    title, body = passage.title.strip(), passage.text
    if not title:
        title, _, body = passage.text.partition("\n\n")
        if "\n" in title or len(title.split()) > 15 or title.endswith((".", ":")):
            return None
    return (title.strip("# "), body) if len(title.split()) >= 2 and len(body.split()) >= (8 if passage.title.strip() else 15) else None


def title_rows(data: TrainingData, passages: list[Passage], held: set[str], lexical: Lexical | None, cache: Path, limit: int, seed: int) -> tuple[list[TrainingRow], dict[str, str]]:
    "Rows with mined negatives, and the texts that they name."
    found = {p.id: parts for p in passages if (parts := title_and_body(p))}
    order, ids = list(found), [p for p in found if p not in held]
    ids = [ids[n] for n in np.random.default_rng(seed).permutation(len(ids))[:limit]]
    titles, bodies, position = [found[p][0] for p in ids], [found[p][1] for p in order], {p: n for n, p in enumerate(order)}
    vectors = np.asarray(encode_cached(cache, data.base, titles, "query")), np.asarray(encode_cached(cache, data.base, bodies, "document"))
    if lexical:
        vectors = append(lexical, vectors[0], titles, "query"), append(lexical, vectors[1], bodies, "document")
    scores, nearest = top_k(*vectors, min(60, len(order)))
    rows = []
    for n, own in enumerate(ids):
        limit_score = 0.95 * float(vectors[0][n] @ vectors[1][position[own]])
        same = {position[p] for p in order if found[p][0].lower() == found[own][0].lower()}
        negatives = [(f"{order[i]} body", float(score)) for score, i in zip(scores[n], nearest[n], strict=True) if i not in same and score < limit_score]
        rows.append(TrainingRow(f"t{n}_0", found[own][0], f"{own} body", negatives[:30], [f"{order[i]} body" for i in same if order[i] != own], f"t{n}"))
    return rows, {f"{p} body": found[p][1] for p in order}


def scores_of(model, test: RetrievalSet, lexical: Lexical | None, cache: Path, max_length: int) -> dict[str, np.ndarray]:
    "nDCG@10 of each query, without and with lexical dimensions."
    model.max_seq_length = max_length
    texts = list(test.queries.values()), [p.content for p in test.passages]
    vectors = tuple(np.asarray(encode_cached(cache, model, own, kind)) for own, kind in zip(texts, ("query", "document"), strict=True))
    return {name: table["nDCG@10"].to_numpy() for name, table in evaluate_systems(test, {"dense": vectors}, {"lexical": lexical} if lexical else {}, fused=False).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("sets", nargs="+", type=Path)
    parser.add_argument("--titles", type=int, default=700)
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    for folder in options.sets:
        run_dir, work = options.runs / "lexical" / f"{folder.name}-0", Path(tempfile.mkdtemp())
        settings = Settings(run_dir=str(run_dir), **stage_settings("lexical")["finetune"] | {"seed": 0, "merge": False, "epochs": options.epochs})
        data = read_training_data(SimpleNamespace(run_dir=run_dir, read=lambda path: path, metrics={}), settings)
        lexical = read_lexical(Path(data.lexical)) if data.lexical else None
        tests = {"human": read_beir(set_folder(folder)), "generated": read_beir(run_dir / "2_prepare/eval_beir", split="test")}
        held = {p for test in (tests["generated"], data.dev) if test for judged in test.qrels.values() for p in judged}
        rows, bodies = title_rows(data, tests["generated"].passages, held, lexical, work / "cache", options.titles, seed=0)
        texts = data.texts | bodies
        lengths = dict(zip(texts, token_lengths(data.base, list(texts.values())).tolist(), strict=True))
        base = {name: scores_of(load_base(settings), test, lexical, work / "cache", settings.max_length) for name, test in tests.items()}
        for label, own in {"generated": data.rows, "titles": rows, "both": data.rows + rows}.items():
            model = tune(settings, replace(data, rows=own, texts=texts, lengths=lengths), work / label, work / "logs").model
            line = {"set": folder.name, "trained on": label, "rows": len(own)}
            for name, test in tests.items():
                for system, after in scores_of(model, test, lexical, work / "cache", settings.max_length).items():
                    low, high = interval(after - base[name][system], clusters_of(test))
                    line[f"{name}, {system}"] = [round(float(base[name][system].mean()), 4), round(float(after.mean()), 4), round(low, 3), round(high, 3)]
            print(json.dumps(line), flush=True)
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
