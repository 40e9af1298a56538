"""How often the randomisation test raises a false alarm, and how often intervals contain the true mean, on simulated and on real changes of nDCG@10.

python benchmarks/significance.py [--trials 2000] [SET ...]      SET: a BEIR folder with human queries, for the real changes

A set has documents with 1 to 9 questions each. Most questions do not change; the others move between the values that nDCG@10 has with one relevant passage (0, 1, .63, .5, …). A part of the change belongs to
the document. Null: which model is which is drawn for each document. Gain: a gain is added, whose true mean is known from 400,000 documents.

A real set gives per-query changes from cosine to cosine + 0.5 × lexical score (BM25 divided by the query's total idf); 40 clusters of queries (by relevant passage) are drawn with replacement, and the mean over the whole
set is the truth. Null there: the sign of each cluster's changes is drawn.
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
from scipy import stats

from domain_embed import intervals, significance
from domain_embed.beir import read_beir
from domain_embed.clusters import clusters_of
from domain_embed.encode import encode
from domain_embed.lexical import bm25_words
from domain_embed.metrics import per_query
from domain_embed.models import load_model
from domain_embed.search import ranking

VALUES = np.append(1 / np.log2(np.arange(2, 12)), 0.0)


def simulate(rng: np.random.Generator, documents: int, gain: float) -> tuple[np.ndarray, np.ndarray]:
    "Changes and their documents."
    size = rng.integers(1, 10, documents)
    cluster = np.repeat(np.arange(documents), size)
    lean = rng.normal(gain, 1.0, documents)[cluster]  # of a document's questions
    before = rng.integers(len(VALUES), size=len(cluster))
    step = np.where(rng.random(len(cluster)) < 0.4, np.rint(rng.normal(lean, 2.0)), 0).astype(int)
    return VALUES[np.clip(before - step, 0, len(VALUES) - 1)] - VALUES[before], cluster


def percentiles(values: np.ndarray, seed: int) -> tuple[float, float]:
    "The plain bootstrap: queries drawn again, percentiles of the mean."
    drawn = np.random.default_rng(seed).integers(len(values), size=(500, len(values)))
    return tuple(np.percentile(values[drawn].mean(axis=1), [2.5, 97.5]))


def bootstrap_t(values: np.ndarray, cluster: np.ndarray, seed: int) -> tuple[float, float]:
    "Documents drawn again; quantiles of the mean's distance in standard errors of each draw."
    table = np.stack([np.bincount(cluster, values), np.bincount(cluster)], axis=1)
    (s, n), documents = table.T, len(table)
    moments = np.stack([s, n, s * s, s * n, n * n], axis=1)

    def error(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        s, n, ss, sn, nn = np.moveaxis(sums, -1, 0)
        return s / n, np.sqrt(np.maximum(ss - 2 * s / n * sn + (s / n) ** 2 * nn, 0) * documents / (documents - 1)) / n

    mean, own = error(moments.sum(axis=0))
    drawn, its = error(np.random.default_rng(seed).multinomial(documents, np.full(documents, 1 / documents), size=500) @ moments)
    low, high = np.quantile((drawn - mean) / np.maximum(its, own / 10), [0.025, 0.975])
    return mean - high * own, mean - low * own


def jackknife_t(values: np.ndarray, cluster: np.ndarray) -> tuple[float, float]:
    "The jackknife over documents with Student's t, without a correction for skewness."
    found, mean = intervals.jackknife(values, cluster), float(values.mean())
    t = float(stats.t.ppf(0.975, found.freedom))
    return mean - t * found.error, mean + t * found.error


def bca(values: np.ndarray, cluster: np.ndarray, seed: int) -> tuple[float, float]:
    "Bias-corrected and accelerated bootstrap over documents (Efron 1987)."
    s, n = np.bincount(cluster, values), np.bincount(cluster)
    mean, left_out = s.sum() / n.sum(), (s.sum() - s) / (n.sum() - n)
    draws = np.random.default_rng(seed).multinomial(len(s), np.full(len(s), 1 / len(s)), size=1000)
    means = (draws @ s) / (draws @ n)
    bias = stats.norm.ppf(np.clip((means < mean).mean(), 0.001, 0.999))
    centred = left_out.mean() - left_out
    acceleration = (centred**3).sum() / max(6 * (centred**2).sum() ** 1.5, 1e-12)
    z = stats.norm.ppf([0.025, 0.975])
    return tuple(np.quantile(means, stats.norm.cdf(bias + (bias + z) / (1 - acceleration * (bias + z)))))


INTERVALS = {
    "ours": lambda values, cluster, seed: intervals.interval(values, cluster),
    "jackknife and t": lambda values, cluster, seed: jackknife_t(values, cluster),
    "bootstrap-t": bootstrap_t,
    "BCa": bca,
    "percentiles over queries": lambda values, cluster, seed: percentiles(values, seed),
}


def real_changes(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    "Per-query changes from cosine to cosine + 0.5 × lexical score, and the clusters of the queries."
    test, model = read_beir(folder), load_model("embedded", 256)
    ids, texts = [p.id for p in test.passages], [p.content for p in test.passages]
    cosine = encode(model, list(test.queries.values()), "query") @ encode(model, texts, "document").T
    counts = [Counter(bm25_words(text)) for text in texts]
    found_in = Counter(word for count in counts for word in count)
    length = np.array([sum(count.values()) for count in counts])
    lexical = np.zeros_like(cosine)
    for row, query in zip(lexical, test.queries.values(), strict=True):
        known = [word for word in set(bm25_words(query)) if word in found_in]
        idf = {word: np.log(1 + (len(texts) - found_in[word] + 0.5) / (found_in[word] + 0.5)) for word in known}
        for word in known:
            tf = np.array([count[word] for count in counts])
            row += idf[word] / sum(idf.values()) * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * length / length.mean()))
    ndcg = []
    for scores in (cosine, cosine + 0.5 * lexical):
        order = np.argsort(-scores, axis=1, kind="stable")[:, :10]
        found = ranking(list(test.queries), ids, np.take_along_axis(scores, order, 1), order)
        ndcg.append(per_query(test.qrels, found, (10,))["nDCG@10"].to_numpy())
    return ndcg[1] - ndcg[0], np.unique(clusters_of(test), return_inverse=True)[1]


def drawn(rng: np.random.Generator, change: np.ndarray, cluster: np.ndarray, documents: int) -> tuple[np.ndarray, np.ndarray]:
    "Documents drawn with replacement."
    rows = [np.flatnonzero(cluster == c) for c in rng.integers(cluster.max() + 1, size=documents)]
    return change[np.concatenate(rows)], np.repeat(np.arange(documents), list(map(len, rows)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", type=Path)
    parser.add_argument("--trials", type=int, default=2000)
    options = parser.parse_args()
    significance.DRAWS = 2000  # the simulation's own noise is larger
    cases: dict[str, tuple] = {}
    for documents in (20, 50, 150):
        truth = float(simulate(np.random.default_rng(1), 400_000, 0.5)[0].mean())
        cases[f"simulated, {documents} documents"] = (documents, 0.0, lambda rng, n: simulate(rng, n, 0.0)), (documents, truth, lambda rng, n: simulate(rng, n, 0.5))
    for folder in options.sets:
        change, cluster = real_changes(folder)
        size = np.bincount(cluster)
        truth = float(np.bincount(cluster, change).sum() / size.sum())
        draw = lambda rng, n, change=change, cluster=cluster: drawn(rng, change, cluster, n)  # noqa: E731
        cases[f"{folder.name}, 40 of {len(size)} clusters"] = (40, 0.0, draw), (40, truth, draw)
    print("| changes | false alarms at 5% | " + " | ".join(f"{name}: null, gain" for name in INTERVALS) + " |\n|---|---|" + "---|" * len(INTERVALS))
    for name, pair in cases.items():
        rng, alarms, held = np.random.default_rng(7), 0, {kind: [0, 0] for kind in INTERVALS}
        for trial in range(options.trials):
            for gain, (documents, true, draw) in enumerate(pair):
                change, cluster = draw(rng, documents)
                if not gain:
                    change = change * (rng.integers(2, size=documents) * 2 - 1)[cluster]
                    alarms += significance.randomisation_p(change, cluster, trial) <= 0.05
                for kind, interval in INTERVALS.items():
                    low, high = interval(change, cluster, trial)
                    held[kind][gain] += low <= true <= high
        shares = " | ".join(", ".join(f"{n / options.trials:.1%}" for n in of) for of in held.values())
        print(f"| {name} | {alarms / options.trials:.1%} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
