"""A built wheel, installed into a clean environment, used from an empty folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from conftest import ROOT, assert_ok, set_options


def test_a_wheel_has_all_it_needs(documents, tmp_path):
    # built from a copy without what earlier builds left, installed without its dependencies, which stand in this environment
    source = shutil.copytree(ROOT, tmp_path / "source", ignore=shutil.ignore_patterns(".git", ".venv", "runs", "build", "*.egg-info"))
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path / "dist", source]
    subprocess.run(build, check=True, capture_output=True)
    wheel = next((tmp_path / "dist").glob("domain_embed-*.whl"))
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env/bin/python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", wheel], check=True, capture_output=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = os.environ | {"PYTHONPATH": sysconfig.get_path("purelib")}  # .pth files there, an editable install's too, are not read

    def command(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [tmp_path / "env/bin/domain-embed", *map(str, arguments)], cwd=empty, env=environment, capture_output=True, text=True, check=False
        )

    where = subprocess.run(
        [python, "-c", "import domain_embed; print(domain_embed.__file__)"], cwd=empty, env=environment, capture_output=True, text=True, check=True
    )
    assert Path(where.stdout.strip()).is_relative_to(tmp_path / "env")
    assert "max_positive_fraction" in assert_ok(command("params", "prepare")) and assert_ok(command("--version")).startswith("domain-embed ")
    assert "files copied" in assert_ok(command("lab", "--no-open", "lab"))
    assert (empty / "lab/nbs/000_tour.ipynb").exists() and len(list((empty / "lab/examples/python/documents").rglob("*.md"))) > 50
    assert "questions kept" in assert_ok(command("generate", "--documents", documents, *set_options("generate.max_passages=4"), "runs/mine"))
    assert (empty / "runs/mine/1_generate/manifest.json").exists() and (empty / "runs/mine/notebooks/10_generate.ipynb").exists()
