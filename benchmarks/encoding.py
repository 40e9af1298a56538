"""Encoding against SentenceTransformer.encode, on the same texts, one run after the other in turn.

python benchmarks/encoding.py [--repeats 5] BEIR_FOLDER...

Uniform: passages of 250 tokens and more, all cut to 256. Mixed: passages and queries as they are, in random order. Repeated: the mixed ones, a third of them twice.
"""

import argparse
import time
from pathlib import Path
from random import Random
from statistics import median

import numpy as np

from domain_embed.beir import read_beir
from domain_embed.encode import encode, token_lengths
from domain_embed.models import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--texts", type=int, default=600)
    options = parser.parse_args()
    model, random = load_model("embedded", max_length=256), Random(0)
    sets = [read_beir(folder) for folder in options.sets]
    passages = [p.content for s in sets for p in random.sample(s.passages, min(len(s.passages), 2 * options.texts))]
    mixed = random.sample(passages, options.texts // 2) + random.sample([q for s in sets for q in s.queries.values()], options.texts // 2)
    random.shuffle(mixed)
    long = [text for text, n in zip(passages, token_lengths(model, passages), strict=True) if n >= 250]
    question_types = {"uniform": long[: options.texts // 4], "mixed": mixed, "repeated": mixed + mixed[: options.texts // 3]}
    print(
        "| texts | number | tokens, mean | ours, seconds | SentenceTransformer.encode | ratio (median of pairs) | largest difference |\n|---|---|---|---|---|---|---|"
    )
    for name, texts in question_types.items():
        took: list[tuple[float, float]] = []
        for n in range(options.repeats):
            pair = {}
            for way in ("ours", "theirs") if n % 2 else ("theirs", "ours"):
                start = time.perf_counter()
                if way == "ours":
                    own = encode(model, texts, "document")
                else:
                    other = model.encode(texts, prompt_name="document", normalize_embeddings=True, show_progress_bar=False)
                pair[way] = time.perf_counter() - start
            took.append((pair["ours"], pair["theirs"]))
        tokens = token_lengths(model, texts).mean()
        ratio = median(theirs / ours for ours, theirs in took)
        ours, theirs = (median(column) for column in zip(*took, strict=True))
        print(f"| {name} | {len(texts)} | {tokens:.0f} | {ours:.1f} | {theirs:.1f} | {ratio:.2f} | {np.abs(own - other).max():.0e} |", flush=True)


if __name__ == "__main__":
    main()
