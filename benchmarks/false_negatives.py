"""How many real answers mining takes for negatives, by threshold, on sets whose queries have several known answers.

python benchmarks/false_negatives.py CACHE SET...      each SET a BEIR folder with test queries written by people; vectors are kept in CACHE

Of a query with several relevant passages one is told to the miner and the others are hidden, each in turn. A hidden answer among the five negatives is a false negative. Naive mining takes the five
nearest that are not the known answer. `hardness` is the mean score of the negatives as a share of the positive's: what a stricter line costs.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from domain_embed.beir import Passage, Question, read_beir
from domain_embed.encode import encode_cached
from domain_embed.masks import masked_passages
from domain_embed.mining import KEPT, Candidates, extend, retrieve_candidates, select_negatives
from domain_embed.models import load_model
from domain_embed.plots import score_ratios
from domain_embed.rescoring import retrieve_fused

LINES, NEGATIVES, CANDIDATES = (1e9, 1.0, 0.98, 0.95, 0.9, 0.85, 0.8, 0.7), 5, 100


def questions_of(folder: Path) -> tuple[list[Passage], list[Question], list[set[str]]]:
    "A question for each answer of each query with several, and what is hidden from it."
    found, questions, hidden = read_beir(folder), [], []
    for query, judged in found.qrels.items():
        answers = [p for p, grade in judged.items() if grade > 0]
        for own in answers if len(answers) > 1 else ():
            questions.append(Question(f"{query}/{own}", found.queries[query], "labelled", [own], own))
            hidden.append(set(answers) - {own})
    return found.passages, questions, hidden


def table(name: str, windows: Callable[[float], Candidates], questions: list[Question], hidden: list[set[str]]) -> None:
    every = sum(map(len, hidden))
    for line in LINES:
        window = windows(line)
        kept = select_negatives(window, NEGATIVES, line) == KEPT
        wrong = sum(len({window.passages[r] for r in window.rows[n, kept[n]]} & hidden[n]) for n in range(len(questions)))
        rows = sum(bool({window.passages[r] for r in window.rows[n, kept[n]]} & hidden[n]) for n in range(len(questions)))
        label = "naive" if line == 1e9 else f"{line:.2f}"
        print(
            f"| {name} | {label} | {wrong} of {every} ({wrong / every:.1%}) | {wrong / kept.sum():.2%} | {rows / len(questions):.1%} | "
            f"{np.median(score_ratios(window)[kept]):.2f} | {(kept.sum(axis=1) < NEGATIVES).sum()} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("sets", nargs="+", type=Path)
    options = parser.parse_args()
    model = load_model("embedded", max_length=256)
    print(
        "| set, scores | line | hidden answers taken as negatives | of all negatives | rows with one | hardness (median) | rows with fewer than 5 |\n|---|---|---|---|---|---|---|"
    )
    for folder in options.sets:
        passages, questions, hidden = questions_of(folder)
        of_passages = encode_cached(options.cache, model, [p.content for p in passages], "document")
        of_questions = encode_cached(options.cache, model, [q.text for q in questions], "query")
        everyone, masked = np.ones(len(passages), dtype=bool), masked_passages(questions, passages)
        window, _ = retrieve_candidates(questions, passages, of_questions, of_passages, everyone, CANDIDATES, masked)
        fused = retrieve_fused(questions, passages, of_questions, of_passages, everyone, CANDIDATES, masked)

        def deep(line: float, window: Candidates = window, masked: list = masked, v: tuple = (of_questions, of_passages, everyone)) -> Candidates:
            return window if line == 1e9 else extend(window, *v, masked, NEGATIVES, line)

        table(f"{folder.name}, cosine", deep, questions, hidden)
        table(f"{folder.name}, cosine and BM25", lambda _, fused=fused: fused, questions, hidden)


if __name__ == "__main__":
    main()
