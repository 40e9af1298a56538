"""The whole pipeline, as its users meet it: the command, the run folder, papermill by hand, the served endpoint."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import COMMAND, ROOT, assert_ok, domain_embed, set_options

from domain_embed import backend_process
from domain_embed.backend_process import backend_running, check_backend
from domain_embed.manifests import read_manifest
from domain_embed.profiles import load_profile
from domain_embed.runs import STAGES, InputError, sha256, stage_folder
from domain_embed.server_process import free_port, serve_command
from domain_embed.verdict import BASE_KEPT, verdict_sentence


def test_a_run_leaves_what_it_promises(tiny_run):
    run_dir, printed = tiny_run
    assert verdict_sentence(read_manifest(run_dir, "evaluate")["metrics"]) in printed and f"report: {run_dir.resolve()}/report.html" in printed
    for stage in STAGES[:5]:
        manifest = read_manifest(run_dir, stage)
        assert manifest["outputs"] and all(sha256(run_dir / name) == entry["sha256"] for name, entry in manifest["outputs"].items())
    evaluated = read_manifest(run_dir, "evaluate")["metrics"]["sets"]["generated"]
    assert list(evaluated["systems"]) == ["base", "tuned", "bm25", "base + bm25", "tuned + bm25"]
    assert 0 < evaluated["systems"]["base"]["nDCG@10"]["mean"] <= 1 and evaluated["queries"] >= 1
    notebooks = sorted(p.name for p in (run_dir / "notebooks").glob("*.ipynb"))
    assert notebooks == ["10_generate.ipynb", "20_prepare.ipynb", "30_finetune.ipynb", "40_evaluate.ipynb", "50_export.ipynb"]
    assert (run_dir / "report.html").read_text().count("data:image/png;base64") >= 5


def test_what_has_not_changed_is_not_done_again(tiny_run, tmp_path):
    run_dir = shutil.copytree(tiny_run[0], tmp_path / "copy")
    printed = assert_ok(domain_embed("run", run_dir))
    assert printed.count("nothing has changed, skipped") == 5


def test_a_change_is_done_and_said(tiny_run, tmp_path):
    run_dir = shutil.copytree(tiny_run[0], tmp_path / "copy")
    printed = assert_ok(domain_embed("prepare", "--set", "prepare.num_negatives=2", run_dir))
    assert "num_negatives changed from 30 to 2" in printed
    printed = assert_ok(domain_embed("evaluate", run_dir))
    assert "2_prepare/eval_beir" not in printed and "nothing has changed" in printed  # the test set did not depend on it


def test_ci_can_require_a_verdict(tiny_run, tmp_path):
    run_dir = shutil.copytree(tiny_run[0], tmp_path / "copy")
    path = run_dir / "4_evaluate/manifest.json"
    manifest = json.loads(path.read_text())
    found = manifest["metrics"]["sets"]["generated"]["verdict"]
    assert found["verdict"] in ("ship", "keep the base model", "not enough evidence")
    manifest["metrics"]["base_kept"] = False  # there would be no verdict on a tuned model
    for verdict, status in (("ship", 0), ("keep the base model", 3), ("not enough evidence", 3)):
        found["verdict"] = verdict
        path.write_text(json.dumps(manifest))
        (run_dir / "notebooks/40_evaluate.ipynb").touch()
        done = domain_embed("evaluate", "--require", "ship", run_dir)
        assert done.returncode == status and "nothing has changed, skipped" in done.stdout, done.stderr
        assert status == 0 or f"--require ship: {verdict.capitalize()}. nDCG@10" in done.stderr
    report = (run_dir / "report.html").read_text()
    assert "<strong>Verdict:</strong> Not enough evidence. nDCG@10" in report and "<td>tuned</td>" in report
    manifest["metrics"]["base_kept"] = True
    path.write_text(json.dumps(manifest))
    (run_dir / "notebooks/40_evaluate.ipynb").touch()
    assert BASE_KEPT in assert_ok(domain_embed("evaluate", run_dir))
    report = (run_dir / "report.html").read_text()
    assert BASE_KEPT in report and "<td>tuned</td>" not in report


@pytest.mark.slow
def test_papermill_by_hand_does_the_same(tiny_run, tmp_path):
    run_dir = shutil.copytree(tiny_run[0], tmp_path / "copy")
    expected = read_manifest(run_dir, "finetune")
    shutil.rmtree(stage_folder(run_dir, "finetune"))
    values = run_dir / "notebooks/30_finetune.yaml"
    command = [sys.executable, "-m", "papermill", ROOT / "nbs/30_finetune.ipynb", tmp_path / "out.ipynb", "-f", values, "-p", "run_dir", str(run_dir)]
    subprocess.run(command, check=True, capture_output=True)
    found = read_manifest(run_dir, "finetune")
    assert found["outputs"] == expected["outputs"] and found["metrics"] == expected["metrics"]


def test_a_notebook_that_did_not_end_is_run_again(tiny_run, tmp_path):
    run_dir = shutil.copytree(tiny_run[0], tmp_path / "copy")
    (run_dir / "notebooks/20_prepare.ipynb").unlink()
    before = read_manifest(run_dir, "prepare")
    assert "its notebook did not run to the end" in assert_ok(domain_embed("prepare", run_dir))
    assert read_manifest(run_dir, "prepare") == before and (run_dir / "notebooks/20_prepare.ipynb").exists()


def test_deploy_answers_as_evaluated(tiny_run, tmp_path):
    run_dir = shutil.copytree(tiny_run[0], tmp_path / "copy")
    printed = assert_ok(domain_embed("deploy", "--check", run_dir))
    assert "/v1/embeddings gives nDCG@10" in printed
    check = json.loads((run_dir / "6_deploy/check.json").read_text())
    assert abs(check["ndcg@10_change"]) <= 0.01 and check["cosine_min"] > 0.999


def test_programs_read_what_is_found_and_indexed(tiny_run, tmp_path):
    found = json.loads(assert_ok(domain_embed("search", tiny_run[0], "how does the pump start", "-k", "2", "--json")))
    assert list(found) == ["query", "base", "auto", "bm25"] and len(found["base"]) == 2 and found["base"][0]["text"]
    done = domain_embed("index", tiny_run[0], "--to", tmp_path / "index", "--json")
    event = json.loads(assert_ok(done))  # one line
    assert event["event"] == "indexed" and event["passages"] == event["embedded"] > 0 and event["folder"] == str(tmp_path / "index")
    assert not assert_ok(domain_embed("index", tiny_run[0], "--to", tmp_path / "index", "-q"))


def test_a_server_in_the_place_of_a_container_is_compared(tiny_run, monkeypatch):
    run_dir, port = tiny_run[0], free_port()
    values = load_profile("embedded")["deploy"]
    url = f"http://127.0.0.1:{port}/v1"
    with backend_running(serve_command(run_dir, "fp32", values["model_name"], "127.0.0.1", port), f"{url}/health/ready", 120):
        assert check_backend("docker", run_dir, url, values)["cosine_min"] > 0.999
        evaluated = backend_process.evaluated_vectors

        def other_passages(*arguments: object) -> tuple[np.ndarray, np.ndarray]:
            queries, passages = evaluated(*arguments)
            return queries, passages[::-1]

        monkeypatch.setattr(backend_process, "evaluated_vectors", other_passages)
        with pytest.raises(InputError, match="endpoint"):
            check_backend("docker", run_dir, url, values)


@pytest.mark.slow
def test_kill_and_continue(documents, tiny_run, tmp_path):
    expected, run_dir = tiny_run[0], tmp_path / "killed"
    command = [COMMAND, "run", "--documents", str(documents), *set_options(), str(run_dir)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    replies = run_dir / "cache/replies.jsonl"
    deadline = time.monotonic() + 120
    while not (replies.exists() and replies.read_bytes().count(b"\n") >= 7):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)  # the command alone; its kernel has to find out for itself
    process.wait()
    assert not (run_dir / "1_generate").exists()
    known = replies.read_bytes()
    assert_ok(domain_embed("generate", "--documents", documents, *set_options(), run_dir))
    assert replies.read_bytes().startswith(known[: known.rfind(b"\n")])  # nothing was asked twice
    for name in ("questions.jsonl", "passages.jsonl", "dropped.jsonl"):
        assert (run_dir / "1_generate" / name).read_bytes() == (expected / "1_generate" / name).read_bytes()
