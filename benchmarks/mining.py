"""Mining against sentence-transformers' mine_hard_negatives, on the same vectors: seconds, peak memory, and whether they choose the same.

python benchmarks/mining.py [--repeats 3] [PASSAGESxQUERIES ...]      default: 10000x1000 100000x1000 100000x10000 1000000x1000 1000000x10000

Vectors lie on the disk before the clock starts (384 dimensions: a centre of 2,000, plus noise; a query is one passage plus noise) and stay there for ours; each measurement is a process of
its own, ours and theirs in turn. Memory is the highest anonymous memory (RssAnon) less that before the call: what mining itself takes. Both look at the nearest 52 passages (ours goes further where these are not enough), drop what is
above 95% of the positive, keep 5. Theirs runs as `use_faiss` and without, its own two ways.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import numpy as np

DIMENSIONS, CANDIDATES, NEGATIVES, FRACTION = 384, 52, 5, 0.95


def make(folder: Path, passages: int, queries: int) -> None:
    "Vectors in files, written a block at a time."
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(2000, DIMENSIONS)).astype(np.float32)
    found = np.lib.format.open_memmap(folder / "passages.npy", mode="w+", dtype=np.float32, shape=(passages, DIMENSIONS))
    for start in range(0, passages, 50_000):
        n = min(50_000, passages - start)
        block = centres[rng.integers(2000, size=n)] + 0.35 * rng.normal(size=(n, DIMENSIONS)).astype(np.float32)
        found[start : start + n] = block / np.linalg.norm(block, axis=1, keepdims=True)
    own = rng.choice(passages, queries, replace=False)
    asked = found[own] + 0.05 * rng.normal(size=(queries, DIMENSIONS)).astype(np.float32)
    np.save(folder / "queries.npy", asked / np.linalg.norm(asked, axis=1, keepdims=True))
    np.save(folder / "own.npy", own)


class Peak:
    "The highest anonymous memory while it is open, MiB above what there was."

    def now(self) -> float:
        return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("RssAnon")) / 1024

    def watch(self) -> None:
        while self.open:
            self.highest = max(self.highest, self.now())
            time.sleep(0.005)

    def __enter__(self) -> "Peak":
        self.open, self.before = True, self.now()
        self.highest = self.before
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        self.start = time.perf_counter()
        return self

    def __exit__(self, *_) -> None:
        self.seconds = time.perf_counter() - self.start
        self.open = False
        self.thread.join()
        self.mib = self.highest - self.before


def ours(folder: Path) -> tuple[Peak, dict[str, list[str]], float]:
    from domain_embed.beir import Passage, Question
    from domain_embed.masks import masked_passages
    from domain_embed.mining import extend, retrieve_candidates, select_negatives
    from domain_embed.training_rows import training_rows

    asked, own = np.load(folder / "queries.npy"), np.load(folder / "own.npy")
    vectors = np.load(folder / "passages.npy", mmap_mode="r")
    passages = [Passage(f"p{n}", f"p{n}", "", "") for n in range(len(vectors))]
    questions = [Question(f"q{n}", f"q{n}", "factual", [f"p{p}"], f"p{p}") for n, p in enumerate(own)]
    allowed = np.ones(len(passages), dtype=bool)
    with Peak() as peak:
        masked = masked_passages(questions, passages)
        window, _ = retrieve_candidates(questions, passages, asked, vectors, allowed, CANDIDATES, masked)
        looked = time.perf_counter()
        window = extend(window, asked, vectors, allowed, masked, NEGATIVES, FRACTION)
        rows = training_rows(questions, window, select_negatives(window, NEGATIVES, FRACTION), masked)
    return peak, {r.query: [n for n, _ in r.negatives] for r in rows}, looked - peak.start


def theirs(folder: Path, use_faiss: bool) -> tuple[Peak, dict[str, list[str]], float]:
    import torch
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    class Known(SentenceTransformer):
        "A model that has the vectors already."

        def encode_query(self, *_, **__):
            return np.load(folder / "queries.npy")

        def encode_document(self, *_, **__):
            return np.load(folder / "passages.npy")

        def get_embedding_dimension(self):
            return DIMENSIONS

    model = Known(modules=[torch.nn.Identity()], similarity_fn_name="dot")
    own = np.load(folder / "own.npy")
    size = len(np.load(folder / "passages.npy", mmap_mode="r"))
    corpus = [f"p{n}" for n in range(size)]
    data = Dataset.from_dict({"query": [f"q{n}" for n in range(len(own))], "positive": [f"p{p}" for p in own]})
    settings = {"relative_margin": 1 - FRACTION, "num_negatives": NEGATIVES, "range_max": CANDIDATES - 1, "output_format": "labeled-list"}
    with Peak() as peak:
        found = mine_hard_negatives(data, model, corpus=corpus, **settings, use_faiss=use_faiss, verbose=False)
    return peak, {row["query"]: row["positive"][1:] for row in found}, 0.0


WAYS = {"ours": ours, "theirs, faiss": lambda folder: theirs(folder, True), "theirs, torch": lambda folder: theirs(folder, False)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", default=["10000x1000", "100000x1000", "100000x10000", "1000000x1000", "1000000x10000"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # way, folder: a single measurement
    options = parser.parse_args()
    if options.one:
        folder = Path(options.one[1])
        peak, chosen, looked = WAYS[options.one[0]](folder)
        (folder / f"{options.one[0]}.json").write_text(json.dumps(chosen))
        print(json.dumps({"seconds": peak.seconds, "mib": peak.mib, "search": looked}))
        return
    print("| passages × queries | way | seconds (median) | of them search | peak MiB above input | same negatives as ours, where it has 5 |")
    print("|---|---|---|---|---|---|")
    for size in options.sizes:
        passages, queries = map(int, size.split("x"))
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make(folder, passages, queries)
            runs: dict[str, list[dict]] = {way: [] for way in WAYS}
            for _ in range(options.repeats):
                for way in WAYS:
                    done = subprocess.run([sys.executable, __file__, "--one", way, name], capture_output=True, text=True, check=False)
                    if done.returncode == 0:
                        runs[way].append(json.loads(done.stdout.splitlines()[-1]))
            own = json.loads((folder / "ours.json").read_text())
            for way, found in runs.items():
                if not found:
                    print(f"| {passages:,} × {queries:,} | {way} | did not end: out of memory | | | |", flush=True)
                    continue
                chosen = json.loads((folder / f"{way}.json").read_text())
                whole = [q for q, negatives in chosen.items() if len(negatives) == NEGATIVES]
                same = np.mean([set(chosen[q]) == set(own[q]) for q in whole])
                seconds, search, mib = (median(r[key] for r in found) for key in ("seconds", "search", "mib"))
                shown = f"{search:.2f}" if search else ""
                print(f"| {passages:,} × {queries:,} | {way} | {seconds:.2f} | {shown} | {mib:,.0f} | {same:.2%} of {len(whole):,} |", flush=True)


if __name__ == "__main__":
    main()
