"""Lexical dimensions through all stages of a tiny run, and texts that are no sentences."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, run_here
from fastapi.testclient import TestClient
from sentence_transformers import SentenceTransformer

from domain_embed.encode import encode
from domain_embed.index import run_index
from domain_embed.index_request import IndexRequest
from domain_embed.inference import encode_texts, load_exported
from domain_embed.lexical_dimensions import append, fit_lexical, read_lexical
from domain_embed.models import load_model
from domain_embed.qdrant import open_qdrant, search_exact_words, sparse_vector
from domain_embed.run_models import load_run_models
from domain_embed.selection import Selection
from domain_embed.service import create_app
from domain_embed.shards import shard_paths
from domain_embed.term_weights import weigh_terms

ON = ["prepare.lexical_weight=0.5", "prepare.lexical_dims=64", "finetune.merge=false"]
STRANGE = ["", " ", "the", "\0", "🙂🙂", "مرحبا بالعالم", "水泵 E40", "word " * 5000, "A" * 3000, "ＦＵＬＬ width"]


@pytest.fixture(scope="module")
def lexical_run(tiny_run, tmp_path_factory):
    "A tiny run whose models have lexical dimensions."
    run_dir = shutil.copytree(tiny_run[0], tmp_path_factory.mktemp("lexical") / "run")
    return run_dir, {stage: run_here(stage, run_dir, *ON)["metrics"] for stage in ("prepare", "finetune", "evaluate", "export", "deploy")}


@pytest.mark.slow
def test_all_stages_have_the_same_vectors(lexical_run):
    run_dir, metrics = lexical_run
    assert metrics["prepare"]["lexical_weight"] == 0.5 and metrics["finetune"]["lexical"]
    assert set(metrics["finetune"]["selection"]["candidates"]) == {"base", "dense", "base+lexical", "tuned"}
    models, texts = load_run_models(run_dir, load_model("embedded", 64), 64), ["How are lines of a file cached?", *STRANGE]
    combined, graph = load_model(str(run_dir / "3_finetune/model"), 64), load_exported(run_dir / "5_export/onnx")
    for kind in ("query", "document"):
        expected = append(models.lexical, encode(models.dense, texts, kind, ""), texts, kind)
        assert np.isfinite(expected).all() and np.allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-5)
        for found in (encode(combined, texts, kind, ""), encode_texts(graph, texts, kind)):
            assert (found * expected).sum(axis=1).min() > 0.9999
    assert metrics["export"]["parity"]["onnx fp32"]["cosine_min"] > 0.999 and abs(metrics["deploy"]["ndcg@10_change"]) < 0.01


@pytest.mark.slow
def test_the_evaluation_compares_the_parts(lexical_run):
    _, metrics = lexical_run
    values = metrics["evaluate"]["sets"]["generated"]
    assert {"base", "tuned", "dense", "base+lexical", "bm25"} <= set(values["systems"])
    assert values["index_mib"]["tuned"] > values["index_mib"]["dense"]
    assert any("cosine + 0.5 × BM25" in remark for remark in metrics["evaluate"]["remarks"])


@pytest.mark.slow
def test_the_dense_model_loads_without_trust(lexical_run):
    run_dir, _ = lexical_run
    assert SentenceTransformer(str(run_dir / "3_finetune/dense")).get_embedding_dimension() == 384
    with pytest.raises(ValueError, match="trust_remote_code"):
        SentenceTransformer(str(run_dir / "3_finetune/model"))
    card = (run_dir / "3_finetune/model/README.md").read_text()
    assert "trust_remote_code=True" in card and "weight 0.5" in card


@pytest.mark.slow
def test_the_service_asks_for_the_kind_and_refuses_half_a_vector(lexical_run):
    run_dir, _ = lexical_run
    graph = load_exported(run_dir / "5_export/onnx")
    client = TestClient(create_app(graph, "m"))

    def post(**more):
        return client.post("/v1/embeddings", json={"model": "m", "input": "cached lines"} | more)

    assert post().status_code == 400 and "input_type" in post().json()["error"]["message"]
    lengths = {n: len(post(input_type="query", **({"dimensions": n} if n else {})).json()["data"][0]["embedding"]) for n in (0, 384)}
    assert lengths == {0: graph.dimensions, 384: 384}
    for size in (128, 400):  # not trained for; half a vector
        refused = post(input_type="query", dimensions=size)
        assert refused.status_code == 400 and "384" in refused.json()["error"]["message"]


@pytest.mark.slow
def test_another_system_is_exported_on_demand(lexical_run, tmp_path):
    run_dir = shutil.copytree(lexical_run[0], tmp_path / "copy")
    assert run_here("export", run_dir, *ON, "export.model=dense", "export.int8=false")["metrics"]["dimensions"] == 384
    assert json.loads((run_dir / "5_export/onnx/export.json").read_text()).get("own_dimensions") is None
    run_here("deploy", run_dir, *ON)
    run_here("prepare", run_dir, "prepare.lexical_weight=0.5", "prepare.lexical_dims=32")  # stage 3 has not seen it
    assert load_run_models(run_dir, load_model("embedded", 64), 64).lexical.dimensions == 64


@pytest.mark.slow
def test_training_options_work_with_the_sum(lexical_run, tmp_path):
    run_dir = shutil.copytree(lexical_run[0], tmp_path / "copy")
    more = ["matryoshka_dims=['128']", "lora_rank=4", "mini_batch_size=6", "distill_weight=0.3", "batch_size=4"]
    metrics = run_here("finetune", run_dir, *ON, *(f"finetune.{setting}" for setting in more))["metrics"]
    assert metrics["lexical"] and load_model(str(run_dir / "3_finetune/model"), 64).get_embedding_dimension() > 384
    exported = run_here("export", run_dir, *ON, *(f"finetune.{setting}" for setting in more), "export.int8=false")["metrics"]
    assert exported["parity"]["onnx fp32"]["cosine_min"] > 0.999
    client = TestClient(create_app(load_exported(run_dir / "5_export/onnx"), "m"))
    for size in (128, 384):
        answer = client.post("/v1/embeddings", json={"model": "m-query", "input": "cached lines", "dimensions": size})
        assert len(answer.json()["data"][0]["embedding"]) == size


@pytest.mark.slow
def test_what_validation_speaks_against_is_left_out(lexical_run, tmp_path, monkeypatch):
    run_dir = shutil.copytree(lexical_run[0], tmp_path / "copy")
    monkeypatch.setattr("domain_embed.results.select_model", lambda *_: Selection(False, "left out", {"base": 0.5}, lexical=False))
    metrics = run_here("finetune", run_dir, *ON[:2], "finetune.batch_size=4")["metrics"]
    assert not metrics["lexical"] and metrics["merge_weight"] == 0 and not (run_dir / "3_finetune/lexical").exists()
    assert load_run_models(run_dir, load_model("embedded", 64), 64).lexical is None
    assert SentenceTransformer(str(run_dir / "3_finetune/model")).get_embedding_dimension() == 384


@pytest.mark.slow
def test_what_serves_imports_no_torch(lexical_run):
    program = (
        "import sys; from domain_embed.inference import load_exported, encode_texts; import domain_embed.service; "
        "encode_texts(load_exported(sys.argv[1]), ['a'], 'query'); print([m for m in ('torch', 'pandas', 'faiss', 'scipy', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, lexical_run[0] / "5_export/onnx"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_languages_without_spaces_and_unknown_words():
    passages = ["水泵的压力是三巴。", "阀门在五巴时打开。", "电机驱动水泵。", "Der Motor treibt die Pumpe an.", "Das Ventil öffnet bei fünf bar."]
    lexical = fit_lexical(passages, 32, ["zh", "de"])
    own = np.zeros((6, 8), dtype=np.float32) + np.float32(8**-0.5)  # the model cannot tell the texts apart
    found = append(lexical, own, [*passages, "Filter XJ-900 replaced"], "document")
    queries = ["水泵压力", "wann öffnet das Ventil", "XJ-900"]
    best = (append(lexical, own[:3], queries, "query") @ found.T).argmax(axis=1)
    assert best.tolist() == [0, 4, 5]


@pytest.mark.slow
def test_a_saved_part_is_read_again(lexical_run):
    folder = lexical_run[0] / "2_prepare/lexical"
    first, second = read_lexical(folder), read_lexical(folder)
    assert first.weights.weight == second.weights.weight == 0.5 and np.array_equal(first.projection, second.projection)


@pytest.mark.slow
def test_an_index_in_qdrant_has_the_exact_words(lexical_run, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(lexical_run[0], run_dir)
    graph, folder = load_exported(run_dir / "5_export/onnx"), tmp_path / "qdrant"
    run_index(IndexRequest(run_dir, str(ROOT / "examples/python/documents/faq"), f"qdrant:{folder}", "faq"))
    table = pa.concat_tables([pq.read_table(path) for path in shard_paths(run_dir / "index")])
    texts = [f"{title}. {text}" if title else text for title, text in zip(table.column("title").to_pylist(), table.column("text").to_pylist(), strict=True)]
    asked = "How do I keep a running total of a generator?"
    exact = np.zeros(len(texts))  # cosine + λ · lexical, without a projection
    of_query = dict(zip(*weigh_terms(graph.lexical, asked, "query"), strict=True))
    for row, text in enumerate(texts):
        exact[row] = sum(of_query.get(term, 0) * value for term, value in zip(*weigh_terms(graph.lexical, text, "document"), strict=True))
    dense = load_model(str(run_dir / "3_finetune/dense"), 64)
    exact = graph.lexical.weight * exact + (encode(dense, [asked], "query", "") @ encode(dense, texts, "document", "").T)[0]
    client, query = open_qdrant(str(folder)), encode_texts(graph, [asked], "query")[0]
    found = search_exact_words(client, "faq", query, sparse_vector(graph.lexical, asked, "query"), 384, 5)
    best = np.argsort(-exact)[:5]
    assert [key for key, _ in found] == [table.column("id")[int(row)].as_py() for row in best]
    assert np.allclose([score for _, score in found], exact[best], atol=1e-3)
