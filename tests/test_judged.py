"""A search log without judgements: graded by an LLM, turned into a test set that decides, and followed by stages 5 and 6."""

import json
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import run_here

from domain_embed.beir import read_beir
from domain_embed.query_log import repeated_words
from domain_embed.runs import InputError
from domain_embed.system_choice import choose_system

QUERIES = ["how are lines of a file cached?", "make a token for a url", "generate secure tokens", "insert into a sorted list", "match file names", "measure execution time", "bake bread"]


class Grader(BaseHTTPRequestHandler):
    "An LLM that grades by the words that query and passage share; the model `strict` never says 2."

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.headers["Authorization"] == "Bearer secret-key"
        prompt = asked["messages"][0]["content"]
        query, passage = re.search(r"\nquery: (.*?)\n=== \w+ ===\npassage: (.*)\n=== \w+ ===", prompt, re.DOTALL).groups()
        self.server.asked.append((asked["model"], query, passage))
        grade = round(3 * repeated_words(query, passage))
        reply = {"role": "assistant", "content": f"##final score: {3 if asked['model'] == 'strict' and grade == 2 else grade}"}
        answer = {"id": "1", "object": "chat.completion", "created": 0, "model": asked["model"], "choices": [{"index": 0, "message": reply, "finish_reason": "stop"}]}
        body = json.dumps(answer | {"usage": {"prompt_tokens": 300, "completion_tokens": 6, "total_tokens": 306}}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def grader(monkeypatch):
    "A running grader."
    server = ThreadingHTTPServer(("127.0.0.1", 0), Grader)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("GRADER_KEY", "secret-key")
    yield server
    server.shutdown()


def test_a_search_log_decides_the_verdict(tiny_run, tmp_path, grader):
    run_dir = shutil.copytree(tiny_run[0], tmp_path / "copy")
    log = tmp_path / "log.txt"
    log.write_text("\n".join(QUERIES))
    url = f"http://127.0.0.1:{grader.server_port}/v1"
    own = [f"evaluate.queries={log}", "evaluate.grading_llm=fair", f"evaluate.grading_base_url={url}", "evaluate.grading_api_key_env=GRADER_KEY", "evaluate.pool_depth=3"]
    manifest = run_here("evaluate", run_dir, *own, "evaluate.second_grading_llm=strict")
    metrics, figures = manifest["metrics"], manifest["metrics"]["judged"]
    assert metrics["deciding"] == "judged" and metrics["sets"]["judged"]["verdict"]["queries"] == len(read_beir(run_dir / "4_evaluate/judged").queries)
    assert figures["queries"] == 7 and figures["without_relevant"] >= 1 and figures["not_graded"] == 0  # nothing is about bread
    assert figures["pairs"] == sum(figures["grades"].values()) == sum(model == "fair" for model, *_ in grader.asked)
    assert figures["second"]["relevance_kappa"] == 1 and figures["second"]["equal"] < 1
    test = read_beir(run_dir / "4_evaluate/judged")
    assert "bake bread" not in test.queries.values() and all(grade in (2, 3) for judged in test.qrels.values() for grade in judged.values())
    assert any("graded by fair" in remark for remark in metrics["remarks"])
    assert not [path for path in run_dir.rglob("*") if path.is_file() and b"secret-key" in path.read_bytes()]

    asked = len(grader.asked)
    run_here("evaluate", run_dir, *own, "evaluate.min_gain=0.004")  # another setting: the stage runs again, replies are reused
    assert len(grader.asked) == asked
    assert choose_system(run_dir)[1].startswith("kept by stage 3; no other system")
    assert run_here("deploy", run_dir)["metrics"]["set"] == "judged"


@pytest.mark.slow
def test_a_spent_budget_leaves_queries_out(tiny_run, tmp_path, grader):
    run_dir = shutil.copytree(tiny_run[0], tmp_path / "copy")
    log = tmp_path / "log.txt"
    log.write_text("\n".join(QUERIES))
    own = [f"evaluate.queries={log}", "evaluate.grading_llm=fair", f"evaluate.grading_base_url=http://127.0.0.1:{grader.server_port}/v1", "evaluate.grading_api_key_env=GRADER_KEY"]
    prices = ["evaluate.llm_output_price=1000", "evaluate.grading_budget=1.2", "evaluate.llm_concurrency=1"]  # a request reserves 1.024
    figures = run_here("evaluate", run_dir, *own, *prices)["metrics"]["judged"]
    assert 0 < figures["not_graded"] < 7 and figures["grades"]["3"] > 0
    with pytest.raises(InputError, match=r"needs an LLM that grades"):
        run_here("evaluate", run_dir, f"evaluate.queries={log}")
    with pytest.raises(InputError, match=r"evaluate.queries .*nowhere.txt does not exist"):
        run_here("evaluate", run_dir, "evaluate.queries=nowhere.txt", "evaluate.grading_llm=fair")
