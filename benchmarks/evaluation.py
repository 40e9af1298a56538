"""Base against tuned on given vectors, ours against beir's exact search and metrics: seconds, peak memory, the same numbers.

python benchmarks/evaluation.py [--repeats 3] [PASSAGESxQUERIES ...]      default: 10000x1000 100000x10000

The vectors are benchmarks/mining.py's; the tuned model's are the base model's with other noise. Each measurement is a process of its own, ours and theirs in turn; memory is the highest anonymous memory above
what there was before. Ours searches, scores, and also says how sure it is (intervals, tests, verdict); theirs searches and scores.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from mining import Peak, make

DEPTH = 100


def make_both(folder: Path, passages: int, queries: int) -> None:
    "Vectors of a base and of a tuned model."
    make(folder, passages, queries)
    (folder / "base.npy").symlink_to(folder / "passages.npy")
    rng, base = np.random.default_rng(1), np.load(folder / "passages.npy", mmap_mode="r")
    tuned = np.lib.format.open_memmap(folder / "tuned.npy", mode="w+", dtype=np.float32, shape=base.shape)
    for start in range(0, passages, 50_000):
        block = base[start : start + 50_000] + 0.03 * rng.normal(size=base[start : start + 50_000].shape).astype(np.float32)
        tuned[start : start + 50_000] = block / np.linalg.norm(block, axis=1, keepdims=True)


def ours(folder: Path) -> tuple[Peak, dict[str, float], float]:
    from domain_embed.baselines import search_source
    from domain_embed.beir import Passage, RetrievalSet
    from domain_embed.encode import cached_vectors
    from domain_embed.metrics import per_query
    from domain_embed.search import ranking
    from domain_embed.significance import compute_verdict
    from domain_embed.summary import summarise
    from domain_embed.systems import Encoder, Source

    own, asked = np.load(folder / "own.npy"), np.load(folder / "queries.npy")
    vectors = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("base", "tuned")}
    passages = [Passage(f"p{n}", f"p{n}", "", str(n)) for n in range(len(vectors["base"]))]
    test = RetrievalSet(passages, {f"q{n}": f"{n} " for n in range(len(own))}, {f"q{n}": {f"p{p}": 1} for n, p in enumerate(own)})
    cache = folder / "cache"

    def known(name: str) -> Encoder:
        table = {"query": asked, "document": vectors[name]}
        return Encoder(
            lambda text: asked[[int(text)]],
            lambda cache, texts, kind: cached_vectors(cache / f"{name}-{kind}", texts, lambda some, desc: np.array(table[kind][[int(t) for t in some]])),
        )

    for name in vectors:  # vectors lie on the disk before the clock starts, here as there
        for kind, texts in (("document", [p.content for p in passages]), ("query", list(test.queries.values()))):
            known(name).encode_texts(cache, texts, kind)
    searching = 0.0
    with Peak() as peak:
        tables = {}
        for name in vectors:
            start = time.perf_counter()
            found = search_source(Source(name), test, known(name), cache)
            searching += time.perf_counter() - start
            tables[name] = per_query(test.qrels, ranking(list(test.queries), [p.id for p in passages], found.scores, found.indices))
        documents = [f"p{p}" for p in own]
        summary = summarise(tables, documents, 0)
        compute_verdict((tables["tuned"] - tables["base"])["nDCG@10"].to_numpy(), documents, 0)
    return peak, {name: summary["systems"][name]["nDCG@10"]["mean"] for name in vectors}, searching


def theirs(folder: Path) -> tuple[Peak, dict[str, float], float]:
    import torch
    from beir.retrieval.evaluation import EvaluateRetrieval
    from beir.retrieval.search.dense import DenseRetrievalExactSearch

    own = np.load(folder / "own.npy")

    class Known:
        "A model that has the vectors already."

        def __init__(self, name: str):
            self.passages = np.load(folder / f"{name}.npy", mmap_mode="r")

        def encode_queries(self, *_, **__):
            return torch.from_numpy(np.load(folder / "queries.npy"))

        def encode_corpus(self, corpus, **_):
            return torch.from_numpy(np.array(self.passages[[int(p["text"]) for p in corpus]]))

    size = len(np.load(folder / "base.npy", mmap_mode="r"))
    corpus = {f"p{n}": {"title": "", "text": str(n)} for n in range(size)}
    queries, qrels = {f"q{n}": f"{n}" for n in range(len(own))}, {f"q{n}": {f"p{p}": 1} for n, p in enumerate(own)}
    ndcg, searching = {}, 0.0
    with Peak() as peak:
        for name in ("base", "tuned"):
            start = time.perf_counter()
            found = DenseRetrievalExactSearch(Known(name), show_progress_bar=False).search(corpus, queries, DEPTH, "dot")
            searching += time.perf_counter() - start
            ndcg[name] = EvaluateRetrieval.evaluate(qrels, found, [1, 5, 10, 60, 100])[0]["NDCG@10"]
    return peak, ndcg, searching


WAYS = {"ours": ours, "beir": theirs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", default=["10000x1000", "100000x10000"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # way, folder: a single measurement
    options = parser.parse_args()
    if options.one:
        peak, ndcg, searching = WAYS[options.one[0]](Path(options.one[1]))
        print(json.dumps({"seconds": peak.seconds, "mib": peak.mib, "search": searching} | ndcg))
        return
    print("| passages × queries | way | seconds (median) | of them search | peak MiB above input | nDCG@10 of both |\n|---|---|---|---|---|---|")
    for size in options.sizes:
        passages, queries = map(int, size.split("x"))
        with tempfile.TemporaryDirectory() as name:
            make_both(Path(name), passages, queries)
            runs: dict[str, list[dict]] = {way: [] for way in WAYS}
            for _ in range(options.repeats):
                for way in WAYS:
                    done = subprocess.run([sys.executable, __file__, "--one", way, name], capture_output=True, text=True, check=True)
                    runs[way].append(json.loads(done.stdout.splitlines()[-1]))
            for way, found in runs.items():
                seconds, search, mib = (median(r[key] for r in found) for key in ("seconds", "search", "mib"))
                scores = f"{found[0]['base']:.5f}, {found[0]['tuned']:.5f}"
                print(f"| {passages:,} × {queries:,} | {way} | {seconds:.2f} | {search:.2f} | {mib:,.0f} | {scores} |", flush=True)


if __name__ == "__main__":
    main()
