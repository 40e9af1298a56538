"""How well an LLM's grades agree with people's judgements: python benchmarks/judge.py MODEL.gguf [--queries 12] DATA/emqa DATA/ibmcloud

For each query: its best judged passage, and the first passage of BM25 that people did not judge relevant. A grade of 2 or 3 counts as relevant (UMBRELA). A passage that is relevant but was never judged counts against the LLM, so that the true agreement is higher.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from domain_embed.beir import read_beir
from domain_embed.grading import grade_pairs
from domain_embed.lexical import bm25_index, bm25_top_k
from domain_embed.llm import open_llm
from domain_embed.responses import ResponseCache


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("sets", nargs="+", type=Path)
    parser.add_argument("--queries", type=int, default=12)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "grades.jsonl")
    options = parser.parse_args()
    print("| set | pairs without a grade | grades of relevant, of other passages | equal to people's | Cohen's kappa | AUC |\n|---|---|---|---|---|---|")
    with open_llm(options.model, "", "") as llm:
        for folder in options.sets:
            test = read_beir(folder)
            texts = {p.id: p.content for p in test.passages}
            index = bm25_index(list(texts.values()))
            chosen = np.random.default_rng(0).permutation(sorted(test.queries))[: options.queries]
            pairs, labels = [], []
            for query in chosen:
                grades = test.qrels[query]
                found = [test.passages[n].id for n in bm25_top_k([test.queries[query]], index, 20)[1][0] if n >= 0]
                other = next((p for p in found if not grades.get(p)), None)
                for passage, label in ((max(grades, key=grades.get), 1), (other, 0)):
                    if passage:
                        pairs.append((test.queries[query], texts[passage], "en"))
                        labels.append(label)
            answers = grade_pairs(llm, pairs, ResponseCache(options.cache), 0)
            known = [(grade, label) for grade, label in zip(answers, labels, strict=True) if isinstance(grade, int)]
            grades, truth = np.array(known).T
            means = f"{grades[truth == 1].mean():.2f}, {grades[truth == 0].mean():.2f}"
            equal, kappa = np.mean((grades >= 2) == truth), cohen_kappa_score(grades >= 2, truth == 1)
            print(f"| {folder.name} | {len(pairs) - len(known)} of {len(pairs)} | {means} | {equal:.0%} | {kappa:.2f} | {roc_auc_score(truth, grades):.2f} |", flush=True)


if __name__ == "__main__":
    main()
