"""Conventions: notebooks and modules agree, imports run one way, cells are small and show their results, settings have one name and one description."""

import ast
import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import house
import pytest
from conftest import ROOT
from house import figures

from domain_embed import manifests
from domain_embed.command_line import parse_arguments
from domain_embed.parameters import read_parameters, stage_parameters
from domain_embed.profiles import find_profile, load_profile, override
from domain_embed.runs import STAGES, asset

NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))  # index.ipynb too


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
    text = re.sub(r"\]\((\d+_\w+\.ipynb|images/\w+\.png)\)", r"](nbs/\1)", text)
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


def is_stage(number: str) -> bool:
    "Whether a notebook's number is a stage's: 10, 20, …; parts have other numbers, or three digits."
    return len(number) == 2 and number[1] == "0"


def wrong_imports(texts: dict[str, str], number: dict[str, str]) -> list[str]:
    "Imports of the package's modules (as nbdev writes them, `from .beir import …`) that run the wrong way."
    found = []
    for module, own in number.items():
        for node in ast.walk(ast.parse(texts[module])):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                used = number[node.module]
                shared, own_part = used[0] == "0", used[0] == own[0] and not is_stage(used)
                if not (shared or own_part or own[0] in "78"):  # commands use what stages are made of
                    found.append(f"{module} ({own}) imports {node.module} ({used})")
    return found


def test_imports_run_one_way():
    number = {}
    for notebook in NOTEBOOKS:
        for cell in cells(notebook):
            if match := re.match(r"#\s*\|\s*default_exp (\w+)", source(cell)):
                number[match.group(1)] = notebook.name.partition("_")[0]
                assert notebook.stem.partition("_")[2] == match.group(1), f"{notebook.name} exports {match.group(1)}: one name for both"
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


FORMER_SETTINGS = (
    "min_margin skip_ranks sample_from check_model check_from more_encoders promote mask_neighbours min_overall kinds target_questions judge_threshold llm_key_variable llm_style "
    "llm_price_in llm_price_out piece train_candidates draw_from soft_labels label_temperature matryoshka patience layer_decay row_share worth reranked guard_sets endpoint_key_variable "
    "ready_seconds"
).split()
FORMER_NAMES = "told shown Way Asked Replies ask Window look deepen Tried Tuned Material world share gather Desk".split()
FORMER_MODULES = "opinions pictures live exported recipe stages related leaks certainty processes rows comparison".split()


def test_former_names_are_gone():
    for stage in STAGES:
        assert not set(FORMER_SETTINGS) & set(stage_parameters(stage)), stage
    assert not set(FORMER_MODULES) & {path.stem for path in (ROOT / "domain_embed").glob("*.py")}
    assert not set(FORMER_NAMES) & {name for found in map(figures, house.NOTEBOOKS) for name in found.public}


def test_one_name_for_each_parameter_in_two_stages():
    described = {}
    for stage in STAGES:
        for name, parameter in stage_parameters(stage).items():
            assert described.setdefault(name, parameter.help) == parameter.help or name in ("seed", "min_judge_score"), f"{name} is described in two ways"


@pytest.mark.parametrize("notebook", house.NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_are_small_and_show_their_results(notebook):
    found = figures(notebook)
    number = found.name.partition("_")[0]
    assert max(found.lines, default=0) <= 45 and found.crowded == 0
    assert found.exported <= (80 if is_stage(number) and number[0] in "123456" else 200)
    assert found.output_share >= 0.4 and not found.missing
    pictures = [len(o["data"]["image/png"]) for c in cells(notebook) for o in c.get("outputs", ()) if "image/png" in o.get("data", {})]
    assert all(size * 3 / 4 < 150_000 for size in pictures), "a picture of more than 150 kB"


def test_the_whole_house_keeps_the_bounds():
    found = [figures(path) for path in house.NOTEBOOKS]
    lines, public = sorted(n for f in found for n in f.lines), sum(len(f.public) for f in found)
    assert house.median(lines) <= 11 and house.percentile(lines, 0.9) <= 25 and sum(f.examples for f in found) >= 1.5 * public


def undocumented(module: str) -> list[str]:
    "Public functions without a docstring, or with a parameter or result without a type."
    found = []
    for node in ast.parse((ROOT / f"domain_embed/{module}.py").read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            arguments = [*node.args.args, *node.args.kwonlyargs] if isinstance(node, ast.FunctionDef) else []
            typed = all(a.annotation for a in arguments) and (isinstance(node, ast.ClassDef) or node.returns is not None)
            if not ast.get_docstring(node) or not typed:
                found.append(f"{module}.{node.name}")
    return found


def test_what_is_public_is_typed_and_documented():
    assert not [name for path in (ROOT / "domain_embed").glob("[!_]*.py") for name in undocumented(path.stem)]


def test_data_is_read_without_widgets():
    readers = [path.stem for path in (ROOT / "domain_embed").glob("[!_]*.py") if re.search(r"^(import|from) (ipywidgets|ipympl)", path.read_text(), re.M)]
    for stage in STAGES:
        wanted, seen = [stage], set()
        while wanted:
            module = wanted.pop()
            if module not in seen:
                seen.add(module)
                tree = ast.parse((ROOT / f"domain_embed/{module}.py").read_text())
                wanted += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1]
        assert not seen & set(readers), f"{stage} imports {seen & set(readers)}, which need widgets"


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


def shown_commands():
    "The commands of domain-embed in the notebooks' texts and the README: name of the file, command, whether it stands alone on a line of a listing."
    texts = {path.name: "\n".join(source(cell) for cell in cells(path) if cell["cell_type"] == "markdown") for path in sorted((ROOT / "nbs").glob("*.ipynb"))}
    for name, text in (texts | {"README.md": (ROOT / "README.md").read_text()}).items():
        listings = "\n".join(re.findall(r"```(?:sh|bash)\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
        yield from ((name, line.strip(), True) for line in listings.splitlines() if line.strip().startswith("domain-embed "))
        yield from ((name, command, False) for command in re.findall(r"`(domain-embed [^`]+)`", text))


def test_every_command_that_is_shown_can_be_typed(capsys):
    shown, wrong = list(shown_commands()), []
    for name, command, whole in shown:
        words = shlex.split(command, comments=True)[1:]
        for arguments in ([words] if whole else [words, [*words, "RUN"], [*words, "local", "RUN"]]):  # a sentence may leave the run folder out
            try:
                options = parse_arguments(arguments)
                override(load_profile("embedded"), getattr(options, "set", []))
                break
            except SystemExit as end:
                if not end.code:
                    break
        else:
            wrong.append((name, command, capsys.readouterr().err[-200:]))
    assert not wrong and len(shown) > 80


def test_the_container_installs_what_the_service_needs():
    config = configparser.ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini")
    needed = config["DEFAULT"]["serve_requirements"].split()
    assert re.findall(r'"([\w-]+>=[\d.]+)"', (ROOT / "templates/Dockerfile").read_text()) == needed
    program = "import sys, domain_embed.service; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = set(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split())
    assert {"onnxruntime", "tokenizers", "uvicorn"} <= loaded and not loaded & {"torch", "pandas", "faiss", "scipy", "sklearn", "datasketch", "transformers", "pyarrow", "openai", "httpx"}


def quality_claims():
    "The README's figures of quality and speed, from the results in benchmarks/."
    rows = [json.loads(line) for line in (ROOT / "benchmarks/quality.jsonl").read_text().splitlines()]
    sets = {row["set"]: [own["human"] for own in rows if own["set"] == row["set"] and own["variant"] == "lexical"] for row in rows}
    mean = {name: {system: sum(own.get(system, own["base"]) for own in all_own) / len(all_own) for system in ("base", "base+lexical", "shipped")} for name, all_own in sets.items()}
    gains = {name: values["shipped"] / values["base"] - 1 for name, values in mean.items()}
    training = sum(values["shipped"] / values["base+lexical"] - 1 for values in mean.values()) / len(mean)
    claims = [f"{sum(gains.values()) / len(gains):.1%} more nDCG@10", f"manuals +{gains['emqa']:.0%}", f"cloud documentation +{gains['ibmcloud']:.0%}"]
    claims += [f"claims +{gains['scifact']:.0%}", f"documentation +{gains['python']:.0%}", f"science +{gains['entailmentbank']:.1%}".replace("0.", "."), f"adds {training:.1%}".replace("0.", ".")]
    table = (ROOT / "benchmarks/README.md").read_text()
    for kind in ("fp32", "int8"):
        ratio = float(re.search(rf"\| 32 \| ours {kind} \| [\d.]+ \| ([\d.]+)×", table)[1])
        claims.append(f"{ratio:.1f} times ({kind})")
    return claims


@pytest.mark.parametrize("claim", quality_claims())
def test_the_readme_s_figures_are_those_of_the_benchmarks(claim):
    assert claim in (ROOT / "README.md").read_text()
