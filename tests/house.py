"""The figures of DESIGN.md's table, notebook by notebook: python tests/house.py [NOTEBOOK ...]"""

import ast
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))


def source(cell: dict) -> str:
    return "".join(cell["source"])


def code_lines(text: str) -> int:
    "Lines of a cell without blank lines and nbdev's directives."
    return sum(bool(line.strip()) and not line.startswith("#|") for line in text.splitlines())


@dataclass(frozen=True)
class Figures:
    "What the table counts, for one notebook."

    name: str
    code: int  # code cells
    lines: tuple[int, ...]  # of each exported cell that defines something
    exported: int  # exported lines, imports included
    crowded: int  # exported cells with more than one definition (a dataclass and one helper may share)
    shown: int  # code cells with saved output
    public: tuple[str, ...]  # names without an underscore that it defines
    missing: tuple[str, ...]  # of them, those that no example uses
    examples: int

    @property
    def output_share(self) -> float:
        return self.shown / max(1, self.code)


def definitions(text: str) -> list[ast.stmt]:
    return [node for node in ast.parse(text).body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))]


def is_crowded(text: str) -> bool:
    found = definitions(text)
    return len(found) > 2 or (len(found) == 2 and not any(isinstance(d, ast.ClassDef) and d.decorator_list for d in found))


def figures(path: Path) -> Figures:
    "Count one notebook."
    cells = [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code" and source(c).strip()]
    texts = [source(c) for c in cells if re.match(r"#\|\s*exports?\b", source(c))]
    others = [source(c) for c in cells if source(c) not in texts and "default_exp" not in source(c) and not re.match(r"#\|\s*hide", source(c))]
    names = [d.name for text in texts for d in definitions(text) if not d.name.startswith("_")]
    examples = "\n".join(others)
    missing = [name for name in names if not re.search(rf"\b{name}\b", examples)]
    return Figures(
        path.stem,
        len(cells),
        tuple(code_lines(text) for text in texts if definitions(text)),
        sum(map(code_lines, texts)),
        sum(map(is_crowded, texts)),
        sum(bool(c.get("outputs")) for c in cells),
        tuple(names),
        tuple(missing),
        len(others),
    )


def percentile(values: list[int], share: float) -> int:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0


def main() -> None:
    paths = [Path(name) for name in sys.argv[1:]] or NOTEBOOKS
    found = [figures(path) for path in paths]
    print("notebook                    cells exported median p90 longest crowded output examples/public  without example")
    for f in found:
        row = f"{f.code:5} {f.exported:8} {median(f.lines or [0]):6g} {percentile(list(f.lines), 0.9):3} {max(f.lines, default=0):7} {f.crowded:7} {f.output_share:6.0%}"
        print(f"{f.name:26} {row} {f.examples:9}/{len(f.public):<6} {' '.join(f.missing)}")
    lines, public = [n for f in found for n in f.lines], sum(len(f.public) for f in found)
    total = f"{sum(f.code for f in found):5} {sum(f.exported for f in found):8} {median(lines):6g} {percentile(lines, 0.9):3} {max(lines):7} {sum(f.crowded for f in found):7}"
    print(f"{'all':26} {total} {sum(f.shown for f in found) / sum(f.code for f in found):6.0%} {sum(f.examples for f in found):9}/{public:<6} {sum(len(f.missing) for f in found)}")


if __name__ == "__main__":
    main()
