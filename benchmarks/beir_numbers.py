"""beir's numbers and ours on the same rankings, and what either says when some queries come back empty.

python benchmarks/beir_numbers.py CACHE BEIR_FOLDER      all-MiniLM-L6-v2, length 256; vectors are kept in CACHE
"""

import sys
from pathlib import Path

import numpy as np
from beir.retrieval.evaluation import EvaluateRetrieval

from domain_embed.beir import read_beir
from domain_embed.encode import encode_cached
from domain_embed.metrics import per_query
from domain_embed.models import load_model
from domain_embed.search import Ranking, ranking, top_k

if __name__ == "__main__":
    cache, test = Path(sys.argv[1]), read_beir(sys.argv[2])
    model = load_model("embedded", max_length=256)
    passages = encode_cached(cache, model, [p.content for p in test.passages], "document")
    queries = encode_cached(cache, model, list(test.queries.values()), "query")
    found = ranking(list(test.queries), [p.id for p in test.passages], *top_k(queries, passages, 100))

    def row(name: str, rankings: Ranking) -> None:
        ours = per_query(test.qrels, rankings)
        ndcg, mean_ap, recall, precision = EvaluateRetrieval.evaluate(test.qrels, rankings, [10, 100], ignore_identical_ids=False)
        theirs = [ndcg["NDCG@10"], recall["Recall@100"], precision["P@10"], mean_ap["MAP@10"]]
        own = [ours[m].mean() for m in ("nDCG@10", "Recall@100", "P@10", "MAP@10")]
        shown = " | ".join(f"{a:.5f}, {b:.5f}" for a, b in zip(theirs, own, strict=True))
        print(f"| {name} | {shown} | {np.abs(np.subtract(theirs, own)).max():.0e} |")

    print("| queries | nDCG@10: beir, ours | Recall@100 | P@10 | MAP@10 | largest difference (beir rounds to 5 digits) |\n|---|---|---|---|---|---|")
    row("all with results", found)
    hard = sorted(found, key=lambda q: max(found[q].values()))[: len(found) // 10]  # as a server with a score threshold would
    row(f"{len(hard)} of {len(found)} without results", {q: r for q, r in found.items() if q not in hard})
