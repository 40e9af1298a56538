"""Stage 4 against everything else that could be shipped: graphs, endpoints, rerankers, other domains."""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest
from conftest import assert_refused, domain_embed, run_here
from matplotlib.figure import Figure
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from domain_embed.beir import Passage, Question, read_beir, write_beir
from domain_embed.clusters import clusters_of
from domain_embed.endpoint import Endpoint
from domain_embed.manifests import read_manifest
from domain_embed.mining import KEPT, Candidates
from domain_embed.models import model_path
from domain_embed.plots import draw_queries
from domain_embed.runs import InputError
from domain_embed.server_process import free_port, serve_command, served


@pytest.fixture
def other_domain(tmp_path):
    "Three passages about something else, each with its question."
    texts = ["Bread is baked at 230 degrees.", "Tomatoes need six hours of sun.", "A violin has four strings."]
    passages = [Passage(f"g{n}", f"g{n}", "", text) for n, text in enumerate(texts)]
    asked = ["how hot for bread", "sun for tomatoes", "strings of a violin"]
    questions = [Question(f"h{n}", text, "factual", [f"g{n}"], f"g{n}") for n, text in enumerate(asked)]
    return write_beir(tmp_path / "other", passages, questions, {"test": [q.id for q in questions]})


def test_systems_of_every_kind(tiny_run, tmp_path, other_domain):
    run_dir = shutil.copytree(tiny_run[0], tmp_path / "copy")
    reranker = tmp_path / "reranker"
    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=1)
    BertForSequenceClassification(config).save_pretrained(reranker)
    AutoTokenizer.from_pretrained(model_path("embedded")).save_pretrained(reranker)
    with served(serve_command(run_dir, "fp32", "mine", "127.0.0.1", free_port()), 60) as url:
        systems = {
            "endpoint": f"{url} mine",
            "graph": str(run_dir / "5_export/onnx/model.onnx"),
            "int8": str(run_dir / "5_export/onnx/model_int8.onnx"),
            "short": "tuned @ 64",
            "merged": "merged 0.5",
            "fused": "tuned @ 64 + bm25",
            "reranked": f"tuned > {reranker}",
        }
        options = [f"evaluate.systems={json.dumps(list(systems.values()))}", f"evaluate.out_of_domain_sets=[{other_domain}]", "evaluate.map_passages=40"]
        run_here("evaluate", run_dir, *options)
    manifest = read_manifest(run_dir, "evaluate")
    found = manifest["metrics"]["sets"]["generated"]
    ndcg = {name: found["systems"][system]["nDCG@10"]["mean"] for name, system in systems.items()}
    tuned = found["systems"]["tuned"]["nDCG@10"]["mean"]
    assert abs(ndcg["endpoint"] - tuned) < 1e-9 and abs(ndcg["graph"] - tuned) < 1e-9 and ndcg["reranked"] != tuned
    best = pd.read_parquet(run_dir / "4_evaluate/rankings.parquet").query("rank == 1 and set == 'generated'").pivot(index="query", columns="system", values="score")
    eight_bits = (best[systems["int8"]] - best["tuned"]).abs()
    assert eight_bits.max() > 1e-5 and eight_bits.max() < 0.1 and (best[systems["graph"]] - best["tuned"]).abs().max() < 1e-5
    assert found["index_mib"][systems["short"]] == pytest.approx(found["index_mib"]["tuned"] * 64 / 384)
    assert set(manifest["timings"]["generated"]) == {"base", "tuned", *systems.values()} and all(
        ms > 0 for ms in manifest["timings"]["generated"].values()
    )
    assert found["beir_difference"] < 1e-5 and all(values["beir_difference"] < 1e-5 for values in manifest["metrics"]["sets"].values())
    guard = manifest["metrics"]["sets"]["guard other"]
    assert not guard["documents_known"] and any("has no metadata.document" in remark for remark in manifest["metrics"]["remarks"])
    assert guard["guard"] and list(guard["systems"]) == ["base", "tuned"] and guard["systems"]["base"]["nDCG@10"]["mean"] == 1
    table = pd.read_parquet(run_dir / "4_evaluate/per_query.parquet")
    assert (
        table.groupby(["set", "system"]).size()
        == table["set"].map({"generated": found["queries"], "guard other": 3}).groupby([table["set"], table["system"]]).first()
    ).all()
    assert (run_dir / "4_evaluate/map.png").stat().st_size > 10_000
    results = json.loads((run_dir / "4_evaluate/generated/eval_results.json").read_text())
    assert set(results) == {"base", "finetuned"} and "P@10" in results["finetuned"]["Precision"]


def test_what_cannot_be_compared_is_refused_before_anything_runs(tiny_run, tmp_path):
    run_dir = tiny_run[0]
    before = read_manifest(run_dir, "evaluate")
    assert_refused(domain_embed("evaluate", "--set", "evaluate.systems=['bm25', 'merged 7']", run_dir), "no merge weight between 0 and 1")
    assert_refused(domain_embed("evaluate", "--set", f"evaluate.out_of_domain_sets=[{tmp_path}]", run_dir), f"{tmp_path}/corpus.jsonl is missing")
    secret = domain_embed("evaluate", "--set", "evaluate.systems=['https://me:secret@host/v1 model']", run_dir)
    assert_refused(secret, "without a user name")
    assert "secret" not in secret.stderr and "secret" not in (run_dir / "run.json").read_text()
    assert read_manifest(run_dir, "evaluate") == before


class Strict(BaseHTTPRequestHandler):
    "An endpoint that knows no `input_type`, answers out of order, and gives vectors of any length."

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.headers["Authorization"] == "Bearer k"
        known = "input_type" not in asked and asked["model"] == "m"
        vectors = [{"object": "embedding", "index": n, "embedding": [float(len(text)), 1.0]} for n, text in enumerate(asked["input"])][::-1]
        answer = {"object": "list", "data": vectors, "model": "m"} if known else {"error": {"message": "Unrecognized request argument"}}
        body = json.dumps(answer).encode()
        self.send_response(200 if known else 400)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_an_endpoint_that_knows_no_input_type():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Strict)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    texts = ["x" * n for n in range(1, 70)]
    vectors = Endpoint(url, "m", key="k").embed(texts, "query")
    expected = np.array([[len(text), 1.0] for text in texts])
    assert np.allclose(vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)
    with pytest.raises(InputError, match="gives no vectors of the model 'wrong'"):
        Endpoint(url, "wrong", key="k").embed(texts, "query")
    server.shutdown()


def test_near_duplicates_are_one_cluster_in_small_sets_too(tmp_path):
    texts = [f"pump {n} is serviced every {n} months by team {n} in hall {n} and then tested for {n} hours" for n in range(19)]
    passages = [Passage(f"{n}{side}", f"{n}{side}", "", text + side) for n, text in enumerate(texts) for side in ("", "!")]
    questions = [Question(f"q{p.id}", f"pump {p.id}", "", [p.id], p.document) for p in passages]
    test = read_beir(write_beir(tmp_path / "set", passages, questions, {"test": [q.id for q in questions]}))
    assert len(set(clusters_of(test))) == 19 and not test.documents_known


def test_questions_with_signs_that_mean_something_to_matplotlib():
    figure = Figure()
    window = Candidates(["q"], ["p"], np.array([[0]]), np.array([[0.5]], np.float32), np.zeros((1, 1), np.int8), np.array([0.9], np.float32), [])
    draw_queries(figure.subplots(), window, np.array([[KEPT]], np.int8), 0.95, [0], ["what do $# and $? mean"])
    figure.canvas.draw()
