"""What it does to the base model's figures if the test holds only questions that the base model or BM25 could answer before.

python benchmarks/selection.py RUNS [--passages 150] SET ...      SET: a BEIR folder, of which only corpus.jsonl is read

SmolLM2 writes two questions about each of the drawn passages; all that pass the other filters are asked of the whole corpus. "Selected" is what a test held when the round trip filtered it; "all" is what it holds now.
"""

import argparse
from pathlib import Path

import numpy as np

from domain_embed.beir import read_passages, read_questions
from domain_embed.encode import encode_cached
from domain_embed.generate import Settings, run_generate
from domain_embed.metrics import per_query
from domain_embed.models import load_model
from domain_embed.profiles import load_profile
from domain_embed.search import ranking, top_k


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("sets", nargs="+", type=Path)
    parser.add_argument("--passages", type=int, default=150)
    options = parser.parse_args()
    model = load_model("embedded", 256)
    print("| set | questions: all, selected | nDCG@10: all, selected | Recall@10: all, selected |\n|---|---|---|---|")
    for folder in options.sets:
        run_dir = options.runs / folder.name
        own = {"documents": str(folder / "corpus.jsonl"), "max_passages": options.passages}
        run_generate(Settings(run_dir=str(run_dir), **load_profile("embedded")["generate"] | own))
        passages, questions = read_passages(run_dir / "1_generate/passages.jsonl"), read_questions(run_dir / "1_generate/questions.jsonl")
        cache = run_dir / "cache/vectors"
        vectors = encode_cached(cache, model, [p.content for p in passages], "document")
        found = ranking([q.id for q in questions], [p.id for p in passages], *top_k(encode_cached(cache, model, [q.text for q in questions], "query"), vectors, 10))
        table = per_query({q.id: dict.fromkeys(q.positives, 1) for q in questions}, found, (10,))
        selected = np.array([q.round_trip for q in questions])
        means = [f"{table[name].mean():.4f}, {table[name][selected].mean():.4f}" for name in ("nDCG@10", "Recall@10")]
        print(f"| {folder.name} | {len(questions)}, {selected.sum()} | {' | '.join(means)} |", flush=True)


if __name__ == "__main__":
    main()
