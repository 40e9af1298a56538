"""Minutes on two cores: ten kills, TensorRT's planner on the CPU, explorer, report and playground in a browser."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from conftest import COMMAND, ROOT, assert_ok, domain_embed, open_page, set_options

from domain_embed.backends import plan_backend
from domain_embed.beir import read_beir
from domain_embed.graphs import write_graphs
from domain_embed.jsonl import read_jsonl
from domain_embed.manifests import read_manifest
from domain_embed.models import load_model
from domain_embed.runs import STAGES

pytestmark = pytest.mark.slow


def test_ten_kills_at_random_moments_change_nothing(documents, tiny_run, tmp_path):
    moments, landed, latest = random.Random(0), 0, 100.0
    while landed < 10:
        moment, run_dir = moments.uniform(1, latest), tmp_path / "killed"
        command = ["run", "--documents", str(documents), *set_options(), str(run_dir)]
        process = subprocess.Popen([COMMAND, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(moment)
        if process.poll() is not None:  # too late: it counts only if it comes before the end
            latest = 0.9 * moment
            shutil.rmtree(run_dir)
            continue
        print(f"killed after {moment:.0f} s, with {[p.name for p in sorted(run_dir.glob('[1-6]_*'))]} done", flush=True)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        landed += 1
        assert domain_embed(*command).returncode == 0
        for stage in STAGES[:5]:
            found, expected = read_manifest(run_dir, stage), read_manifest(tiny_run[0], stage)
            assert found["metrics"] == expected["metrics"], stage
            assert found["outputs"] == expected["outputs"], stage
        shutil.rmtree(run_dir)


def test_an_interruption_is_one_line(documents, tmp_path):
    command = [COMMAND, "run", "--documents", str(documents), *set_options(), str(tmp_path / "run")]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell ignores it for what runs in the background, tests included
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heard)
    time.sleep(20)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal: to the command and its kernel
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and errors.strip() == "interrupted: run the same command to continue", errors


def test_tensorrt_plans_the_graph(tiny_run, tmp_path):
    trt = pytest.importorskip("tensorrt_rtx")
    model = load_model(str(tiny_run[0] / "3_finetune" / ("dense" if (tiny_run[0] / "3_finetune/dense").exists() else "model")), 64)
    path = write_graphs(model, tmp_path / "onnx", ["tensorrt"], usual=40)["tensorrt fp16"]
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(path)), [parser.get_error(n).desc() for n in range(parser.num_errors)]
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    engine = json.loads(path.with_name("tensorrt.json").read_text())["profile"]
    shapes = {part: {name: tuple(map(int, shape.split("x"))) for name, shape in (entry.split(":") for entry in engine[part].split(","))} for part in engine}
    for name in ("input_ids", "attention_mask"):
        profile.set_shape(name, *(shapes[part][name] for part in ("min", "opt", "max")))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None and len(bytes(plan)) > 10_000_000


@pytest.fixture
def jupyter(tmp_path):
    "JupyterLab on a folder, and its address."
    options = ["--no-browser", "--port=8899", "--IdentityProvider.token=", "--allow-root", "--LabApp.news_url="]
    process = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield "http://127.0.0.1:8899/lab/tree"
    process.terminate()
    process.wait()


def test_the_explorer_in_a_browser(tiny_run, tmp_path, jupyter):
    playwright = pytest.importorskip("playwright.sync_api", reason="make test-slow installs it")
    run_dir = shutil.copytree(tiny_run[0], tmp_path / "run")
    cell = nbformat.v4.new_code_cell('from domain_embed.explorer import open_explorer\nopen_explorer("run").widget')
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(metadata=kernel, cells=[cell]), tmp_path / "explore.ipynb")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1400})
        open_page(page, f"{jupyter}/explore.ipynb")
        page.click(".jp-Cell .jp-InputArea-editor", timeout=60_000)
        page.keyboard.press("Shift+Enter")
        counts, picture, said = page.locator(".widget-html").nth(0), page.locator("canvas").first, page.locator(".widget-html").nth(1)
        counts.wait_for(timeout=60_000)
        page.wait_for_timeout(3000)
        before = counts.inner_text(), picture.screenshot(path=tmp_path / "0.png")
        page.locator("[role=slider]").first.focus()
        for _ in range(15):
            page.keyboard.press("ArrowLeft")
        page.wait_for_timeout(3000)
        after = counts.inner_text(), picture.screenshot(path=tmp_path / "1.png")
        assert before[0] != after[0] and before[1] != after[1]

        where = picture.bounding_box()
        page.mouse.click(where["x"] + 0.93 * where["width"], where["y"] + 0.34 * where["height"])  # a bar far right of the line
        page.wait_for_timeout(2000)
        assert float(page.locator("select option").last.inner_text().split()[0]) > 1.1
        page.click("text=Mark as relevant")
        page.wait_for_timeout(2000)
        page.screenshot(path=tmp_path / "2.png")
        assert "marked relevant" in said.inner_text()
        page.click("text=Write this threshold to the profile")
        page.wait_for_timeout(2000)
        browser.close()
    found = list(read_jsonl(run_dir / "marks.jsonl"))
    assert len(found) == 1 and found[0]["mark"] == "relevant"
    printed = assert_ok(domain_embed("prepare", run_dir))
    assert "max_positive_fraction changed from 0.95 to 0.8" in printed
    assert found[0]["candidate"] in read_beir(run_dir / "2_prepare/eval_beir", "train").qrels[found[0]["query"]]
    scores = pd.read_parquet(run_dir / "2_prepare/scores.parquet")
    assert set(scores[(scores["query"] == found[0]["query"]) & (scores["candidate"] == found[0]["candidate"])]["verdict"]) == {"positive"}
    print(f"screenshots in {tmp_path}")


@pytest.mark.parametrize("width", [375, 1280])
def test_the_report_in_a_browser(tiny_run, tmp_path, width):
    playwright = pytest.importorskip("playwright.sync_api", reason="make test-slow installs it")
    asked = []
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"file://{tiny_run[0].resolve()}/report.html")
        page.screenshot(path=tmp_path / f"{width}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page itself scrolls sideways"
        pictures = page.locator("img")
        shown = pictures.evaluate_all("all => all.map(i => [i.naturalWidth, i.getBoundingClientRect().width])")
        assert len(shown) >= 6 and all(natural > 300 and wide > 300 for natural, wide in shown)
        assert page.locator("text=Verdict:").is_visible() and page.locator("h2").count() >= 8
        page.pdf(path=tmp_path / f"{width}.pdf")
        browser.close()
    assert [url for url in asked if not url.startswith(("data:", "file:"))] == []
    print(f"screenshots in {tmp_path}")


@contextmanager
def watched_page(width, scheme):
    "A page of a browser, what its scripts say, and the addresses that it asks for."
    playwright = pytest.importorskip("playwright.sync_api", reason="make test-slow installs it")
    said, asked = [], []
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        yield page, said, asked
        browser.close()


@pytest.fixture(scope="module")
def site():
    "The rendered site."
    subprocess.run(["make", "docs"], cwd=ROOT, check=True, capture_output=True)
    return ROOT / "_docs"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280, 1920])
def test_the_site_in_a_browser(site, tmp_path, width, scheme):
    with watched_page(width, scheme) as (page, said, asked):
        for name in ("index", "000_tour", "20_prepare", "311_loss", "91_scaling", "93_troubleshooting", "changelog", "source/samples"):
            page.goto(f"file://{site}/{name}.html")
            page.wait_for_timeout(300)
            assert name.startswith("source/") or page.evaluate("document.documentElement.scrollWidth") <= width, name
            assert page.locator("img:not([alt])").count() == 0, name
            page.screenshot(path=tmp_path / f"{name.replace('/', '-')}-{width}-{scheme}.png")
        page.goto(f"file://{site}/index.html")
        if width < 1000:  # the sidebar is folded
            page.locator(".quarto-btn-toggle, .navbar-toggler, [data-bs-toggle=collapse]").first.click()
        box = page.locator("input[type=search], .sidebar-search input").first
        box.click()
        page.keyboard.type("max_positive_fraction")
        page.locator(".smalldocs-search-results a").first.wait_for()
        page.screenshot(path=tmp_path / f"search-{width}-{scheme}.png")
    assert not said and all(url.startswith(("file:", "data:")) for url in asked)
    print(f"screenshots in {tmp_path}")


@pytest.fixture
def playground(tiny_run, tmp_path):
    "The playground of a copy of a run, its address and its folder."
    run_dir = shutil.copytree(tiny_run[0], tmp_path / "played")
    process = subprocess.Popen([COMMAND, "playground", run_dir, "--port", "8898"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield "http://127.0.0.1:8898/", run_dir
    process.terminate()
    process.wait()


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light"), (1920, "light")])
def test_the_playground_in_a_browser(playground, tmp_path, width, scheme):
    address, run_dir = playground
    with watched_page(width, scheme) as (page, said, asked):
        open_page(page, address)
        page.keyboard.type("<b>insert</b> into a sorted list")  # the field has the focus
        page.keyboard.press("Enter")
        page.locator("article").first.wait_for()
        assert page.locator("section").count() == 3 and page.evaluate("document.documentElement.scrollWidth") <= width
        page.locator("article button").first.focus()
        page.keyboard.press("Enter")
        page.locator("article.right").first.wait_for()
        page.wait_for_function("document.querySelector('#status').textContent.includes('evaluate.test_set')")
        page.screenshot(path=tmp_path / f"{width}.png")
        page.locator("article.right button").first.click()
        page.wait_for_function("!document.querySelector('article.right')")
        page.locator("article button").first.click()
        page.wait_for_function("document.querySelector('#status').textContent.startsWith('1 query')")
    assert not said and all(url.startswith((address, "data:")) for url in asked)
    test_set = read_beir(run_dir / "playground/test_set")
    assert list(test_set.queries.values()) == ["<b>insert</b> into a sorted list"] and sum(map(len, test_set.qrels.values())) == 1
    print(f"screenshots in {tmp_path}")


def test_the_container_s_files_pass_their_linters(tiny_run, tmp_path):
    plan = plan_backend("docker", tiny_run[0], "fp32", "domain_embed", "127.0.0.1", 8000)
    for path, content in plan.files.items():
        (tmp_path / Path(path).name).write_text(content)
    for command in (["hadolint", tmp_path / "Dockerfile"], ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", tmp_path / "compose.yaml"]):
        program = Path(sys.executable).with_name(command[0])
        if not program.exists():
            pytest.skip("make test-slow installs hadolint and check-jsonschema")
        done = subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
