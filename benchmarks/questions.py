"""What a better LLM buys: the yield of stage 1 with several, on the same passages of one corpus.

python benchmarks/questions.py CORPUS RUNS_FOLDER LLM [LLM …]     an LLM is `embedded` or a .gguf file
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

KINDS = "{factual: 0.3, procedural: 0.3, causal: 0.15, keyword: 0.25}"


def main() -> None:
    "Run stage 1 once for each LLM and print a row for each."
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("llms", nargs="+")
    parser.add_argument("--passages", type=int, default=40)
    options = parser.parse_args()
    for llm in options.llms:
        run_dir = options.runs / Path(llm).stem
        settings = (f"llm={llm}", f"max_passages={options.passages}", "questions_per_passage=3", f"question_types={KINDS}")
        command = [Path(sys.executable).parent / "domain-embed", "generate", "--documents", options.corpus, run_dir]
        subprocess.run([*command, *(part for s in settings for part in ("--set", f"generate.{s}"))], check=True)
        m = json.loads((run_dir / "1_generate/manifest.json").read_text())["metrics"]
        replies = [json.loads(line) for line in (run_dir / "cache/replies.jsonl").read_text().splitlines()]
        asking = sum(r["seconds"] for r in replies)
        written = m["funnel"]["written"]
        row = {
            "llm": Path(llm).stem,
            "style": m["style"],
            "tried": m["tried"],
            "seconds asking, per question written": round(asking / written, 2),
            "own passage in the base model's top 10, written": m["found_by_base_model"],
            "and kept": m["kept_found_by_base_model"],
            "rare names asked about": f"{m['rare_identifiers_asked_about']} of {m['rare_identifiers']}",
            "funnel": m["funnel"],
            "unanswered": m["unanswered"],
        }
        sys.stdout.write(json.dumps(row) + "\n")


main()
