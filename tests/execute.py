"""Execute notebooks in place and keep what a reader should see: python tests/execute.py [NOTEBOOK ...]

Text, tables and PNG pictures are kept; progress bars, warnings and widgets without a kernel are not.
"""

import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NBS = Path(__file__).parent.parent / "nbs"
KEPT = ("text/plain", "text/html", "image/png", "text/markdown", "text/latex")


def readable(output: dict) -> bool:
    "Whether an output is worth keeping."
    if output["output_type"] == "stream":
        return output["name"] == "stdout"
    return not any("widget" in kind for kind in output.get("data", {}))


def execute(path: Path) -> None:
    "Run one notebook and save its outputs."
    start, notebook = time.monotonic(), nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(NBS)}}).execute()
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [output for output in cell.outputs if readable(output)]
            for output in cell.outputs:
                if "execution_count" in output:
                    output["execution_count"] = None
                if "data" in output:
                    output["data"] = {kind: data for kind, data in output["data"].items() if kind in KEPT}
    nbformat.write(notebook, path)
    print(f"{path.name}: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    os.environ["DOMAIN_EMBED_TERMINAL"] = "1"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for notebook in [Path(name) for name in sys.argv[1:]] or sorted(NBS.glob("[0-9]*.ipynb")):
        execute(notebook)
