"""Quality on human queries: what is shipped against the base model, over seeds, with ablations.

python benchmarks/quality.py RUNS --questions QUESTIONS [--seeds 3] [--first-seed 0] [--jobs 1] [--variants lexical plain] SET ...      prints a JSON line for each run, and tables at the end

SET: a BEIR folder with human queries, of which only corpus.jsonl is read before evaluation, or examples/python. QUESTIONS/NAME/1_generate: what `benchmarks/selection.py`, or stage 1 with the embedded profile, has written about that corpus; for Python the questions
in examples/python/questions are used. A seed decides the split, the lexical projection, mining and training; the questions are the same. Variants: "lexical", as the embedded profile; "plain", without lexical dimensions, so that they can be added after training; "recipe", NVIDIA's procedure.
"""

import argparse
import json
import shutil
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd

from domain_embed import finetune, prepare
from domain_embed.baselines import SystemResult, fuse
from domain_embed.beir import RetrievalSet, read_beir
from domain_embed.clusters import clusters_of
from domain_embed.encode import encode_cached
from domain_embed.intervals import interval
from domain_embed.lexical import bm25_index, bm25_top_k
from domain_embed.lexical_dimensions import Lexical, append, fit_lexical, read_lexical
from domain_embed.lexical_weight import LEXICAL_WEIGHTS
from domain_embed.manifests import read_manifest
from domain_embed.metrics import per_query
from domain_embed.models import load_base
from domain_embed.profiles import load_profile
from domain_embed.run_models import load_run_models
from domain_embed.search import ranking, top_k

PYTHON = Path(__file__).parents[1] / "examples/python"
WIDTHS = (128, 256, 384, 768)


def set_folder(folder: Path) -> Path:
    "Return the BEIR folder with human queries."
    return folder / "test_set" if (folder / "test_set").exists() else folder


def stage_settings(variant: str) -> dict[str, dict]:
    "Return the settings of each stage: the embedded profile's, or NVIDIA's procedure with the embedded base model."
    if variant == "recipe":
        model = {"base_model": "embedded", "trust_remote_code": False, "query_prompt": "", "passage_prompt": "", "max_length": 256}
        profile = load_profile("recipe")
        return {"prepare": profile["prepare"] | model, "finetune": profile["finetune"] | model | {"train_max_length": 256}}
    profile = load_profile("embedded")
    return profile if variant == "lexical" else profile | {"prepare": profile["prepare"] | {"lexical_dims": 0}}


def run_stages(run_dir: Path, questions: Path, folder: Path, seed: int, variant: str) -> None:
    "Run stages 2 and 3."
    profile = stage_settings(variant)
    cache = run_dir.parents[1] / "cache" / folder.name  # one for all seeds
    cache.mkdir(parents=True, exist_ok=True)
    run_dir.mkdir(parents=True, exist_ok=True)
    if not (run_dir / "cache").exists():
        (run_dir / "cache").symlink_to(cache.resolve())
    own = {"seed": seed}
    if folder == PYTHON:
        own["pairs"] = str(PYTHON / "questions")
    elif not (run_dir / "1_generate").exists():
        shutil.copytree(questions / folder.name / "1_generate", run_dir / "1_generate")
    prepare.run_prepare(prepare.Settings(run_dir=str(run_dir), **profile["prepare"] | own))
    finetune.run_finetune(finetune.Settings(run_dir=str(run_dir), **profile["finetune"] | {"seed": seed}))


def score(test: RetrievalSet, scores: np.ndarray, indices: np.ndarray) -> pd.DataFrame:
    "Return nDCG@10 and Recall@10 of every query."
    found = ranking(list(test.queries), [p.id for p in test.passages], scores, indices)
    return per_query(test.qrels, found, (10,))[["nDCG@10", "Recall@10"]]


def evaluate_systems(test: RetrievalSet, vectors: dict[str, tuple], lexicals: dict[str, Lexical], fused: bool = True) -> dict[str, pd.DataFrame]:
    "Score every model, every model with each lexical part, BM25, and BM25 fused with every model."
    texts, queries = [p.content for p in test.passages], list(test.queries.values())
    results = {name: SystemResult(*top_k(of_queries, of_passages, 100), 0, print) for name, (of_queries, of_passages) in vectors.items()}
    if fused:
        bm25 = SystemResult(*bm25_top_k(queries, bm25_index(texts), 100), 0, print)
        results |= {"bm25": bm25} | {f"{name} + bm25": fuse([results[name], bm25]) for name in vectors}
    for (name, (of_queries, of_passages)), (label, lexical) in product(vectors.items(), lexicals.items()):
        both = append(lexical, of_queries, queries, "query"), append(lexical, of_passages, texts, "document")
        results[f"{name}+{label}"] = SystemResult(*top_k(*both, 100), 0, print)
    return {name: score(test, *ordered(result)) for name, result in results.items()}


def ordered(result: SystemResult) -> tuple[np.ndarray, np.ndarray]:
    "Return scores that keep the order of the ranking."
    return np.broadcast_to(-np.arange(result.indices.shape[1], dtype=np.float32), result.indices.shape), result.indices


def study(job: tuple[Path, Path, Path, int, str]) -> dict:
    "Run one variant with one seed on one set."
    runs, questions, folder, seed, variant = job
    run_dir = runs / variant / f"{folder.name}-{seed}"
    run_stages(run_dir, questions, folder, seed, variant)
    settings = finetune.Settings(run_dir=str(run_dir), **stage_settings(variant)["finetune"])
    base, cache = load_base(settings), runs / "cache" / folder.name / "vectors"
    models = load_run_models(run_dir, base, settings.max_length)
    human, generated = read_beir(set_folder(folder)), read_beir(run_dir / "2_prepare/eval_beir", split="test")
    metrics = {stage: read_manifest(run_dir, stage)["metrics"] for stage in ("prepare", "finetune")}
    weight = metrics["prepare"].get("lexical_weight", 0.0)
    passages = read_beir(run_dir / "2_prepare/eval_beir", split="test").passages
    lexicals, ablations = {"lexical": models.lexical} if models.lexical else {}, {}
    if variant == "lexical" and seed == 0:
        texts, languages = [p.content for p in passages], {p.language for p in passages}
        ablations |= {f"λ{value}": read_lexical(run_dir / "2_prepare/lexical").with_weight(value) for value in LEXICAL_WEIGHTS[1:]}
        ablations |= {f"{width} dimensions": fit_lexical(texts, width, languages, weight or 0.25) for width in WIDTHS}
    if variant == "plain" and (runs / "lexical" / run_dir.name / "2_prepare/lexical").exists():
        other = read_lexical(runs / "lexical" / run_dir.name / "2_prepare/lexical")
        lexicals |= {"lexical": other} if other.weights.weight else {}
    found = {}
    for name, test in (("human", human), ("generated", generated)):
        texts = list(test.queries.values()), [p.content for p in test.passages]
        vectors = {
            label: tuple(np.asarray(encode_cached(cache, model, own, kind)) for own, kind in zip(texts, ("query", "document"), strict=True))
            for label, model in (("base", base), ("dense", models.dense))
        }
        tables = evaluate_systems(test, vectors, lexicals, name == "human")
        if name == "human" and ablations:
            tables |= evaluate_systems(test, {"base": vectors["base"]}, ablations, fused=False)
        shipped = tables["dense+lexical"] if models.lexical else tables["dense"]
        low, high = interval((shipped - tables["base"])["nDCG@10"].to_numpy(), clusters_of(test))
        found[name] = {system: table.mean().round(5).to_dict() for system, table in tables.items()} | {
            "shipped": shipped.mean().round(5).to_dict(),
            "change": {"low": round(low, 5), "high": round(high, 5)},
        }
    chosen = {
        "weight": weight,
        "trained": metrics["finetune"]["selection"]["trained"],
        "reason": metrics["finetune"]["selection"]["reason"],
        "candidates": metrics["finetune"]["selection"]["candidates"],
        "choice": metrics["prepare"].get("lexical_choice"),
    }
    return {"set": folder.name, "seed": seed, "variant": variant, **chosen, **found}


def summary(rows: list[dict]) -> None:
    "Print the table of all sets."
    print(
        "\n| set | λ | trained model kept | base | BM25 | reciprocal rank | base+lexical | shipped (mean of seeds, range) | change | 95% intervals of the change |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    ours = [row for row in rows if row["variant"] == "lexical"]
    changes = {"human": [], "generated nDCG": [], "generated Recall": [], "generated nDCG, best system": [], "generated Recall, best system": []}
    for name in dict.fromkeys(row["set"] for row in ours):
        own = [row for row in ours if row["set"] == name]
        values = {
            system: [row["human"].get(system, row["human"]["base"])["nDCG@10"] for row in own]
            for system in ("base", "bm25", "base + bm25", "base+lexical", "shipped")
        }
        mean = {system: float(np.mean(numbers)) for system, numbers in values.items()}
        changes["human"].append(mean["shipped"] / mean["base"] - 1)
        for metric, label in (("nDCG@10", "generated nDCG"), ("Recall@10", "generated Recall")):
            changes[label].append(
                np.mean([row["generated"]["shipped"][metric] for row in own]) / np.mean([row["generated"]["base"][metric] for row in own]) - 1
            )
            best = np.mean([max(system[metric] for name, system in row["generated"].items() if name != "change") for row in own])
            changes[f"{label}, best system"].append(best / np.mean([row["generated"]["base"][metric] for row in own]) - 1)
        bounds = "; ".join(f"{row['human']['change']['low']:+.3f} to {row['human']['change']['high']:+.3f}" for row in own)
        weights, kept = ", ".join(f"{row['weight']:g}" for row in own), ", ".join("yes" if row["trained"] else "no" for row in own)
        middle = " | ".join(f"{mean[system]:.4f}" for system in ("base", "bm25", "base + bm25", "base+lexical"))
        print(
            f"| {name} | {weights} | {kept} | {middle} | {mean['shipped']:.4f} ({min(values['shipped']):.4f} to {max(values['shipped']):.4f}) | {changes['human'][-1]:+.1%} | {bounds} |"
        )
    print("\nmean change:", {label: f"{np.mean(numbers):+.1%}" for label, numbers in changes.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("sets", nargs="+", type=Path)
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--variants", nargs="+", default=["lexical", "plain"])
    options = parser.parse_args()
    folders = [PYTHON if folder.resolve() == PYTHON.resolve() else folder.resolve() for folder in options.sets]
    rows = []
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        for variant in options.variants:  # "plain" takes the lexical part of "lexical"
            jobs = [
                (options.runs, options.questions, folder, seed, variant)
                for seed, folder in product(range(options.first_seed, options.seeds), folders)
            ]
            for done in as_completed([pool.submit(study, job) for job in jobs]):
                rows.append(done.result())
                print(json.dumps(rows[-1]), flush=True)
    summary(rows)


if __name__ == "__main__":
    main()
