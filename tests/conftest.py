"""A tiny corpus, and one run of the whole pipeline on it with the real embedded models, shared by the tests."""

import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
from filelock import FileLock

from domain_embed.profiles import load_profile, override

ROOT = Path(__file__).parent.parent
COMMAND = str(Path(sys.executable).parent / "domain-embed")
SETTINGS = [
    "generate.max_passages=16",
    "generate.round_trip_k=50",
    "prepare.val_fraction=0.2",
    "finetune.epochs=1",
    "finetune.train_max_length=48",
    "finetune.val_passages=40",
    "finetune.evaluations_per_epoch=1",
    "export.parity_passages=24",
    "deploy.check_passages=24",
    "max_length=64",
    "generate.passage_tokens=60",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    "Begin with one file that needs the shared run, and put the others that need it last: one process makes it while the other does the rest."
    needing = [item.path for item in items if "tiny_run" in item.fixturenames]
    items.sort(key=lambda item: item.path in needing[1:] and item.path != needing[0])


def domain_embed(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    "The command, as a user runs it."
    command = [COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=os.environ | environment, check=False)


def assert_ok(done: subprocess.CompletedProcess[str]) -> str:
    "The output of a command that went well."
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    "One clear line that holds these words, and exit status 2."
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(lines) == 1 and lines[0].startswith("domain-embed: "), done.stderr
    assert all(word in lines[0] for word in words), lines[0]


def open_page(page, address: str) -> None:
    "Open an address in a browser's page as soon as its server listens."
    for left in reversed(range(60)):
        try:
            page.goto(address)
            return
        except Exception as error:  # playwright's own class; a test without a browser does not have it
            if left == 0 or not ("ERR_CONNECTION" in str(error) or "another navigation" in str(error)):  # JupyterLab may open its own page first
                raise
            time.sleep(1)


def set_options(*more: str) -> list[str]:
    "The settings of a tiny run as options."
    return [part for setting in (*SETTINGS, *more) for part in ("--set", setting)]


def run_here(stage: str, run_dir: Path, *more: str) -> dict:
    "A stage of a tiny run in this process, without its notebook: its manifest."
    settings = load_profile("embedded")
    override(settings, [*SETTINGS, *more])
    module = import_module(f"domain_embed.{stage}")
    return getattr(module, f"run_{stage}")(module.Settings(run_dir=str(run_dir), **settings[stage]))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A folder that all test processes share."
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def documents(shared: Path) -> Path:
    "Eight short pages of the example corpus."
    folder = shared / "documents"
    with FileLock(shared / "lock"):
        if folder.exists():
            return folder
        folder.mkdir()
        for name in ("bisect", "fnmatch", "glob", "linecache", "secrets", "timeit", "copy", "abc"):
            text = (ROOT / "examples/python/documents/library" / f"{name}.md").read_text()
            (folder / f"{name}.md").write_text(text[:5000])
    return folder


@pytest.fixture(scope="session")
def tiny_run(documents: Path, shared: Path) -> tuple[Path, str]:
    "A finished run of all five stages, and what it printed. Tests that change it copy it."
    run_dir, printed = shared / "runs/tiny", shared / "printed.txt"
    with FileLock(shared / "lock"):
        if not printed.exists():
            printed.write_text(assert_ok(domain_embed("run", "--documents", documents, *set_options(), run_dir)))
    return run_dir, printed.read_text()
