"""Other ways to use the base model's vectors and the words, without training: nDCG@10 and Recall@10 on human and on generated queries.

python benchmarks/variants.py RUNS SET ...      RUNS: of `benchmarks/quality.py`, whose first seed is read; SET: as there

whitened: the passages' covariance to the power −a/2 is taken out of the dense vectors (all-but-the-top, Mu et al. 2018, in its smooth form). long, short queries: λ times the square root of a query's words over their median, or divided by it. twice: 2 λ. λ is the rule's.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from quality import PYTHON, ordered, score, set_folder

from domain_embed.baselines import SystemResult
from domain_embed.beir import RetrievalSet, read_beir
from domain_embed.encode import encode_cached
from domain_embed.lexical_dimensions import read_lexical
from domain_embed.models import load_model
from domain_embed.search import top_k


def whitened(of_queries: np.ndarray, of_passages: np.ndarray, power: float) -> tuple[np.ndarray, np.ndarray]:
    "Both sides without the passages' mean, stretched where passages differ little, as unit vectors."
    mean = of_passages.mean(axis=0)
    values, directions = np.linalg.eigh(np.cov((of_passages - mean).T))
    stretch = (directions * (0.5 * values + 0.5 * values.mean()) ** -power) @ directions.T
    return tuple(own / np.linalg.norm(own, axis=1, keepdims=True) for own in ((of_queries - mean) @ stretch, (of_passages - mean) @ stretch))


def results(test: RetrievalSet, dense: tuple[np.ndarray, np.ndarray], words: tuple[np.ndarray, np.ndarray], weight: float) -> dict[str, tuple[float, float]]:
    lengths = np.array([len(query.split()) for query in test.queries.values()])
    longer = np.sqrt(lengths / np.median(lengths))[:, None]
    ways: dict[str, tuple[tuple[np.ndarray, np.ndarray], Callable | float]] = {
        "base": (dense, 0.0),
        "λ": (dense, weight),
        "twice": (dense, 2 * weight),
        "long queries": (dense, weight * longer),
        "short queries": (dense, weight / longer),
        "whitened .25": (whitened(*dense, 0.25), 0.0),
        "whitened .25, λ": (whitened(*dense, 0.25), weight),
    }
    found = {}
    for name, ((of_queries, of_passages), factor) in ways.items():
        best = top_k(np.hstack([of_queries, factor * words[0]]), np.hstack([of_passages, words[1]]), 10)
        found[name] = tuple(score(test, *ordered(SystemResult(*best, 0, print))).mean())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("sets", nargs="+", type=Path)
    options = parser.parse_args()
    base, everything = load_model("embedded", 256), {}
    for folder in options.sets:
        folder = PYTHON if folder.resolve() == PYTHON.resolve() else folder
        run_dir = options.runs / "lexical" / f"{folder.name}-0"
        lexical = read_lexical(run_dir / "2_prepare/lexical")
        weight, one = lexical.weights.weight, lexical.with_weight(1)
        for kind, test in (("human", read_beir(set_folder(folder))), ("generated", read_beir(run_dir / "2_prepare/eval_beir", split="test"))):
            texts = list(test.queries.values()), [p.content for p in test.passages]
            sides = list(zip(texts, ("query", "document"), strict=True))
            dense = tuple(np.asarray(encode_cached(options.runs / "cache" / folder.name / "vectors", base, own, side)) for own, side in sides)
            words = tuple(one.project(own, side)[0] for own, side in sides)
            everything[folder.name, kind] = results(test, dense, words, weight)
            print(folder.name, kind, {name: f"{ndcg:.4f} {recall:.4f}" for name, (ndcg, recall) in everything[folder.name, kind].items()}, flush=True)
    for kind in ("human", "generated"):
        for name in next(iter(everything.values())):
            changes = [np.array(own[name]) / np.array(own["base"]) - 1 for (_, own_kind), own in everything.items() if own_kind == kind]
            print(f"{kind:10} {name:16} nDCG@10 {np.mean(changes, axis=0)[0]:+.1%}, Recall@10 {np.mean(changes, axis=0)[1]:+.1%}")


if __name__ == "__main__":
    main()
