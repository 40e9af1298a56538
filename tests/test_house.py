"""The rules of the house: notebooks and modules agree, imports run one way, what is written in two places is the same."""

import ast
import json
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest
from conftest import ROOT

from domain_embed import manifests
from domain_embed.profiles import find_profile, load_profile, read_parameters
from domain_embed.runs import STAGES, asset

NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))


def cells(notebook: Path) -> list[dict]:
    return json.loads(notebook.read_text())["cells"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for name in ("nbs", "domain_embed")
        for p in sorted((folder / name).glob("*.*"))
        if p.suffix in (".py", ".ipynb")
    }


def test_clean_and_export_change_nothing(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "examples", "*.egg-info"))
    for module in (copy / "domain_embed").glob("*.py"):
        module.unlink() if module.name not in ("__init__.py", "_modidx.py") else None  # an orphan would not come back
    for tool in ("nbdev_clean", "nbdev_export"):
        subprocess.run([Path(sys.executable).parent / tool], cwd=copy, check=True, capture_output=True)
    assert tree(copy) == tree(ROOT)


def test_the_readme_is_the_index(tmp_path):
    text = "\n\n".join(source(c) for c in cells(ROOT / "nbs/index.ipynb") if c["cell_type"] == "markdown")
    text = re.sub(r"\]\((\d+_\w+\.ipynb)\)", r"](nbs/\1)", text)
    assert (ROOT / "README.md").read_text().split() == text.split(), "run make export"


@pytest.mark.parametrize("stage", STAGES)
def test_parameters_cell_and_settings_agree(stage):
    notebook = next((ROOT / "nbs").glob(f"[1-6]0_{stage}.ipynb"))
    tagged = [source(c) for c in cells(notebook) if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    parameters = read_parameters(tagged[0])
    assert all(p.help for p in parameters.values()), "every parameter says what it does"
    settings = import_module(f"domain_embed.{stage}").Settings
    assert {field.name: field.type for field in fields(settings)} == {n: type(p.default) for n, p in parameters.items()}
    assert [field.name for field in fields(settings)] == list(parameters)
    shared = {n: p.help for n, p in parameters.items()}
    for other in NOTEBOOKS:
        for text in (source(c) for c in cells(other) if "parameters" in c["metadata"].get("tags", [])):
            for name, parameter in read_parameters(text).items():
                if name in shared and name != "seed":
                    assert shared[name] == parameter.help, f"{name} is described differently in {other.name}"


def wrong_imports(texts: dict[str, str], number: dict[str, str]) -> list[str]:
    "Imports of the package's modules (as nbdev writes them, `from .beir import …`) that run the wrong way."
    found = []
    for module, own in number.items():
        for node in ast.walk(ast.parse(texts[module])):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                used = number[node.module]
                shared, own_part = used[0] == "0", used[0] == own[0] and used[1] != "0"
                if not (shared or own_part or own[0] == "7"):
                    found.append(f"{module} ({own}) imports {node.module} ({used})")
    return found


def test_imports_run_one_way():
    number = {}
    for notebook in NOTEBOOKS:
        for cell in cells(notebook):
            if match := re.match(r"#\s*\|\s*default_exp (\w+)", source(cell)):
                number[match.group(1)] = notebook.name[:2]
    texts = {module: (ROOT / f"domain_embed/{module}.py").read_text() for module in number}
    assert len(number) > 20 and not wrong_imports(texts, number)
    planted = texts | {"mining": texts["mining"] + "\nfrom .questions import plan\n"}
    assert wrong_imports(planted, number) == ["mining (22) imports questions (13)"]


def test_a_change_of_code_is_noticed(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "nbs", tmp_path / "nbs")
    monkeypatch.setattr(manifests, "asset", lambda name: tmp_path / name)
    before = {stage: manifests.code_sha256(stage) for stage in STAGES}
    for name, old, new, changed in (
        ("22_mining", "below = ", "below =  ", {"prepare"}),
        ("04_metrics", "K_VALUES = (1, ", "K_VALUES =  (1, ", set(STAGES)),
        ("30_finetune", "## What happened", "## What came of it", set()),
    ):
        path = tmp_path / f"nbs/{name}.ipynb"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        assert {stage for stage in STAGES if manifests.code_sha256(stage) != before[stage]} == changed
        path.write_text(text)


def test_notebooks_have_a_kernel_and_no_ids_of_machines():
    for notebook in NOTEBOOKS:
        content = json.loads(notebook.read_text())
        assert content["metadata"]["kernelspec"]["name"] == "python3", notebook
        assert not re.search(r"/work/|/root/|/home/", notebook.read_text()), f"{notebook.name} holds a path of a machine"


def test_profiles():
    for path in asset("profiles").glob("*.yaml"):
        assert load_profile(path.stem)["finetune"]["epochs"] >= 1 and find_profile(path.stem) == path


def test_links_between_notebooks_lead_somewhere():
    names = {n.name for n in NOTEBOOKS}
    links = {
        (n.name, link) for n in NOTEBOOKS for c in cells(n) if c["cell_type"] == "markdown" for link in re.findall(r"\]\((\w+\.ipynb)\)", source(c))
    }
    assert links and not {(where, link) for where, link in links if link not in names}
    listed = set(re.findall(r"\w+\.ipynb", (ROOT / "nbs/_smalldocs.yml").read_text()))
    assert listed == names
