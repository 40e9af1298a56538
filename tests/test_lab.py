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

from domain_embed.decisions import read_decisions
from domain_embed.lab import copy_notebooks
from domain_embed.server_process import free_port

pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api", reason="make test-slow installs it")
NOTEBOOKS = ("10_generate", "20_prepare", "30_finetune", "40_evaluate", "50_export", "60_deploy", "000_tour")
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
    "A page of a browser."
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.said = []  # errors of its scripts
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("console", lambda message: page.said.append(f"{message.text} {message.location['url']}") if message.type == "error" else None)
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


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_in_jupyterlab(lab, page, name):
    address, folder, theme = lab
    start = time.monotonic()
    open_notebook(page, address, name)
    cells = run_all(page, folder / f"nbs/{name}.ipynb")
    errors = [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert not errors and not page.said, (errors, page.said)
    for width in (1280, 1920):
        page.set_viewport_size({"width": width, "height": 1000})
        page.wait_for_timeout(1000)
        page.screenshot(path=folder / f"{name}-{theme}-{width}.png")
    print(f"{name}, {theme}: {time.monotonic() - start:.0f} s, screenshot in {folder}")
    if name in WIDGETS:
        WIDGETS[name](page, folder, theme)


def scroll_to(page, selector):
    "The last element that a selector names; JupyterLab attaches only the cells in sight."
    found = page.locator(selector)
    page.locator(".jp-Notebook").first.click(position={"x": 5, "y": 5})
    page.keyboard.press("Control+Home")
    for _ in range(150):
        if found.count():
            found.last.scroll_into_view_if_needed()
            return found.last
        page.mouse.wheel(0, 400)
        page.wait_for_timeout(200)
    raise AssertionError(f"{selector} is nowhere in the notebook")


def review_questions(page, folder, theme):
    "Edit and accept a question, reject the next one, and go through those that were reviewed."
    box = scroll_to(page, ".widget-textarea textarea")
    first, store = box.input_value(), folder / "runs/walkthrough/review.jsonl"
    box.click()
    page.keyboard.press("Control+End")
    page.keyboard.type(" now")
    page.click("button:has-text('Accept')")
    page.wait_for_timeout(2000)
    assert box.input_value() not in (first, f"{first} now")
    page.locator("button:has-text('Reject')").focus()
    page.keyboard.press("Enter")
    page.wait_for_timeout(2000)
    page.screenshot(path=folder / f"review-{theme}.png")
    decisions = read_decisions(store)
    assert sorted(d.decision for d in decisions.values()) == ["accept", "reject"]
    assert [d.text for d in decisions.values() if d.decision == "accept"] == [f"{first} now"]
    page.locator(".widget-dropdown select").first.select_option("reviewed")
    page.locator("text=1 of 2 shown; 2 of").wait_for(timeout=20_000)


def move_the_threshold(page, folder, theme):
    "Move the explorer's threshold with the keyboard, and look whether counts and picture follow."
    scroll_to(page, "[role=slider]")
    slider = page.locator("[role=slider]").first
    counts, picture = page.locator(".widget-html:has-text('above the threshold')").first, page.locator(".jupyter-matplotlib canvas").first
    page.wait_for_timeout(3000)
    before = counts.inner_text(), picture.screenshot()
    slider.focus()
    for _ in range(15):
        page.keyboard.press("ArrowLeft")
    page.wait_for_timeout(3000)
    page.screenshot(path=folder / f"explorer-{theme}.png")
    assert before[0] != counts.inner_text() and before[1] != picture.screenshot()


def search_in_the_notebook(page, folder, theme):
    "Search with the keyboard in the notebook's widget, and mark a passage with the mouse."
    scroll_to(page, "input[placeholder^='a query']").click()
    page.keyboard.type("insert into a sorted list")
    page.keyboard.press("Enter")
    button = page.locator("button:has-text('right')").first
    button.wait_for(timeout=60_000)
    button.click()
    page.locator("code:has-text('evaluate.test_set')").first.wait_for(timeout=20_000)
    page.screenshot(path=folder / f"search-{theme}.png")
    assert (folder / "runs/walkthrough/playground/test_set/qrels/test.tsv").read_text().count("\n") == 2


WIDGETS = {"10_generate": review_questions, "20_prepare": move_the_threshold, "40_evaluate": search_in_the_notebook}
