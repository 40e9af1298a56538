"""Cost of lexical dimensions, and what words cost that the vocabulary does not contain.

python benchmarks/lexical.py [fit | encode | unknown] SET      SET: a BEIR folder

fit: time and peak memory for 100,000 passages, mixed from the sentences of the set, in a process of its own. encode: all-MiniLM-L6-v2 with and without lexical dimensions on 256 passages, in turns. unknown: nDCG@10 if the lexical part was fitted to a third, two thirds or all of the passages.
"""

import argparse
import random
import resource
import time
from pathlib import Path

import numpy as np

from domain_embed.beir import RetrievalSet, read_beir
from domain_embed.combined import combine
from domain_embed.encode import encode
from domain_embed.lexical_dimensions import append, fit_lexical
from domain_embed.models import load_model
from domain_embed.parity import ndcg10

DIMENSIONS = 1536


def fit(test: RetrievalSet) -> None:
    "Fit 100,000 passages."
    sentences = [sentence for passage in test.passages for sentence in passage.content.split(". ")]
    draw = random.Random(0)
    passages = [". ".join(draw.choices(sentences, k=8)) for _ in range(100_000)]
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    lexical = fit_lexical(passages, DIMENSIONS)
    seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"fit: 100,000 passages of {np.mean([len(p.split()) for p in passages]):.0f} words, {len(lexical.weights.idf):,} terms, {lexical.dimensions} dimensions: {seconds:.0f} s, peak {peak / 2**20:.2f} GiB ({before / 2**20:.2f} before)"
    )


def encode_both(test: RetrievalSet) -> None:
    "Encode with and without lexical dimensions."
    model = load_model("embedded", 256)
    texts = [p.content for p in test.passages]
    models = {"without": model, "with": combine(model, fit_lexical(texts, DIMENSIONS))}
    some, times = texts[:256], {name: [] for name in models}
    for _ in range(5):
        for name, one in models.items():
            start = time.process_time()
            encode(one, some, "document", "")
            times[name].append(time.process_time() - start)
    ratio = np.median(times["with"]) / np.median(times["without"])
    print(f"encode: 256 passages, CPU seconds {np.median(times['without']):.2f} without, {np.median(times['with']):.2f} with: ratio {ratio:.3f}")


def unknown(test: RetrievalSet) -> None:
    "Fit to a part of the passages, and search all of them."
    model, texts, queries = load_model("embedded", 256), [p.content for p in test.passages], list(test.queries.values())
    own = encode(model, queries, "query", ""), encode(model, texts, "document", "")
    order = np.random.default_rng(0).permutation(len(texts))
    results = {"without lexical dimensions": ndcg10(test, *own)}
    for part in (1 / 3, 2 / 3, 1):
        lexical = fit_lexical([texts[n] for n in order[: round(part * len(texts))]], DIMENSIONS, weight=0.25)
        results[f"{part:.0%} of the passages"] = ndcg10(test, append(lexical, own[0], queries, "query"), append(lexical, own[1], texts, "document"))
    print("unknown:", {name: round(value, 4) for name, value in results.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fit", "encode", "unknown"))
    parser.add_argument("set", type=Path)
    options = parser.parse_args()
    {"fit": fit, "encode": encode_both, "unknown": unknown}[options.what](read_beir(options.set))


if __name__ == "__main__":
    main()
