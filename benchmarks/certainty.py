"""How often the test raises a false alarm, and how often the interval holds the truth, on simulated changes of nDCG@10.

python benchmarks/certainty.py [--trials 4000]

A set has documents with 1 to 9 questions each. Most questions do not change; the others move between the values that nDCG@10 has with one relevant passage (0, 1, .63, .5, …). A part of the change belongs to
the document. Null: which model is which is drawn for each document. Real: a gain is added, whose true mean is known from 400,000 documents.
"""

import argparse

import numpy as np

from domain_embed import certainty

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=4000)
    options = parser.parse_args()
    certainty.DRAWS = 2000  # the simulation's own noise is larger
    print(
        "| documents | false alarms of the test at 5% | the interval holds the truth: null, real gain | bootstrap-t over documents | percentiles over queries |\n|---|---|---|---|---|"
    )
    for documents in (20, 50, 150):
        rng = np.random.default_rng(documents)
        truth = {0.0: 0.0, 0.5: float(simulate(np.random.default_rng(1), 400_000, 0.5)[0].mean())}
        alarms, held, again, plain = 0, *(dict.fromkeys(truth, 0) for _ in range(3))
        for trial in range(options.trials):
            for gain, true in truth.items():
                change, cluster = simulate(rng, documents, gain)
                if not gain:
                    change = change * (rng.integers(2, size=documents) * 2 - 1)[cluster]
                    alarms += certainty.randomisation_p(change, cluster, trial) <= 0.05
                for count, (low, high) in (
                    (held, certainty.interval(change, cluster)),
                    (again, bootstrap_t(change, cluster, trial)),
                    (plain, percentiles(change, trial)),
                ):
                    count[gain] += low <= true <= high
        share = [f"{n / options.trials:.1%}" for n in (alarms, *held.values(), *again.values(), *plain.values())]
        print(f"| {documents} | {share[0]} | {share[1]}, {share[2]} | {share[3]}, {share[4]} | {share[5]}, {share[6]} |", flush=True)


if __name__ == "__main__":
    main()
