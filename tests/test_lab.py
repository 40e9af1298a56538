"""The stage notebooks in JupyterLab, as a reader runs them: in a browser, from what `domain-embed lab` copies. Minutes on two cores."""

import json
import os
import shutil
import subprocess
import sys
import time

import httpx
import nbformat
import pytest
from conftest import open_page

from domain_embed.lab import copy_notebooks
from domain_embed.server_process import free_port

pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api", reason="make test-slow installs it")
STAGES = ("10_generate", "20_prepare", "30_finetune", "40_evaluate", "50_export", "60_deploy")
SECONDS = 600  # for a notebook; undisturbed each takes less than 180


@pytest.fixture(scope="module", params=["light", "dark"])
def lab(request, tmp_path_factory):
    "JupyterLab on a copy of the notebooks, its address, its folder and its theme."
    folder, port, theme = tmp_path_factory.mktemp("lab"), free_port(), request.param
    copy_notebooks(folder)
    settings = folder / "settings/@jupyterlab/apputils-extension"
    settings.mkdir(parents=True)
    (settings / "themes.jupyterlab-settings").write_text(json.dumps({"theme": f"JupyterLab {theme.title()}"}))
    options = [f"--port={port}", "--no-browser", "--IdentityProvider.token=", "--allow-root", "--LabApp.news_url=", "--ServerApp.disable_check_xsrf=True", "--notebook-dir", str(folder)]
    own = os.environ | {"JUPYTERLAB_SETTINGS_DIR": str(folder / "settings")}
    process = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], env=own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield f"http://127.0.0.1:{port}/lab/tree/nbs", folder, theme
    process.terminate()
    process.wait()


@pytest.fixture
def page(lab):
    "A page of a browser; 1,280 pixels wide in the light theme, 1,920 in the dark one."
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280 if lab[2] == "light" else 1920, "height": 1000})
        page.said = []  # errors of its scripts
        page.on("pageerror", lambda error: page.said.append(str(error)))
        yield page
        browser.close()
    root = lab[0].removesuffix("/lab/tree/nbs")
    for kernel in httpx.get(f"{root}/api/kernels", trust_env=False).json():  # each holds a model in memory
        httpx.delete(f"{root}/api/kernels/{kernel['id']}", trust_env=False)


def open_notebook(page, address, name):
    "Open a notebook and wait for its kernel."
    open_page(page, f"{address}/{name}.ipynb?reset")
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").first.wait_for(timeout=120_000)


def run_all(page, path):
    "Run all cells by the menu, and wait until the saved notebook has run to its end."
    end, asked = time.monotonic() + SECONDS, False
    while time.monotonic() < end:
        if not asked:  # the notebook may not have been ready when it was asked before
            page.click("#jp-MainMenu >> text=Run")
            page.click(".lm-Menu-item >> text=Run All Cells")
        page.wait_for_timeout(4000)
        asked = True
        if page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").count():
            page.keyboard.press("Control+s")
            page.wait_for_timeout(1500)
            cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code" and cell.source.strip()]
            if all(cell.execution_count for cell in cells):
                return cells
            asked = any(cell.execution_count for cell in cells)
    raise AssertionError(f"{path.name} did not end within {SECONDS} s")


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_notebook_runs_in_jupyterlab(lab, page, name):
    address, folder, theme = lab
    start = time.monotonic()
    open_notebook(page, address, name)
    cells = run_all(page, folder / f"nbs/{name}.ipynb")
    errors = [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert not errors and not page.said, (errors, page.said)
    page.screenshot(path=folder / f"{name}-{theme}.png")
    print(f"{name}, {theme}: {time.monotonic() - start:.0f} s, screenshot in {folder}")
    if name == "40_evaluate":
        search_in_the_notebook(page, folder, theme)


def search_in_the_notebook(page, folder, theme):
    "Search with the keyboard in the notebook's widget, and mark a passage with the mouse."
    box = page.locator("input[placeholder^='a query']")
    for _ in range(60):  # JupyterLab attaches only the cells in sight
        if box.count():
            break
        page.keyboard.press("End")
        page.mouse.wheel(0, 600)
        page.wait_for_timeout(300)
    box.scroll_into_view_if_needed()
    box.click()
    page.keyboard.type("insert into a sorted list")
    page.keyboard.press("Enter")
    button = page.locator("button:has-text('right')").first
    button.wait_for(timeout=60_000)
    button.click()
    page.locator("code:has-text('evaluate.test_set')").first.wait_for(timeout=20_000)
    page.screenshot(path=folder / f"search-{theme}.png")
    assert (folder / "runs/walkthrough/playground/test_set/qrels/test.tsv").read_text().count("\n") == 2
