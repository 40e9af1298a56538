"""Clients of other projects against the running service. They are installed by `make test-slow`."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from domain_embed.encode import encode
from domain_embed.models import load_model
from domain_embed.onnx_export import export_onnx
from domain_embed.server_process import free_port, served

pytestmark = pytest.mark.slow
TEXTS = ["how much pressure does the pump give", "error E17"]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    "A running service, the model's own vectors of queries, and the exported model."
    folder = tmp_path_factory.mktemp("clients") / "onnx"
    model = load_model("embedded", 64, query_prompt="query: ")
    export_onnx(model, folder)
    command = [sys.executable, "-m", "domain_embed.service", str(folder), "--name", "m", "--port", str(free_port())]
    with served(command, 60) as url:
        yield url, encode(model, TEXTS, "query", ""), folder


def test_langchain(service):
    openai = pytest.importorskip("langchain_openai")
    url, expected, _ = service
    client = openai.OpenAIEmbeddings(base_url=url, api_key="none", model="m-query", check_embedding_ctx_length=False)
    assert np.abs(np.array(client.embed_documents(TEXTS)) - expected).max() < 1e-4


def test_langchain_with_token_ids(service, monkeypatch):
    openai, llama = pytest.importorskip("langchain_openai"), importlib.util.find_spec("llama_index.core")
    if not llama:
        pytest.skip("llama-index-core brings cl100k_base, which tiktoken would download")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(Path(llama.submodule_search_locations[0]) / "_static/tiktoken_cache"))
    _, expected, folder = service
    command = [sys.executable, "-m", "domain_embed.service", str(folder), "--name", "m", "--port", str(free_port()), "--token-ids", "cl100k_base"]
    with served(command, 60) as url:
        client = openai.OpenAIEmbeddings(base_url=url, api_key="none", model="m-query", tiktoken_model_name="text-embedding-3-small")
        assert np.abs(np.array(client.embed_documents(TEXTS)) - expected).max() < 1e-4


@pytest.mark.parametrize(("module", "name"), [("openai", "OpenAIEmbedding"), ("openai_like", "OpenAILikeEmbedding")])
def test_llama_index(service, module, name):
    embeddings = pytest.importorskip(f"llama_index.embeddings.{module}")
    url, expected, _ = service
    client = getattr(embeddings, name)(api_base=url, api_key="none", model_name="m-query")
    assert np.abs(np.array(client.get_text_embedding_batch(TEXTS)) - expected).max() < 1e-4


def test_curl(service):
    body = '{"model": "m-query", "input": "error E17", "encoding_format": "base64"}'
    answer = subprocess.run(["curl", "-s", f"{service[0]}/embeddings", "-H", "Content-Type: application/json", "-d", body], capture_output=True, text=True, check=True)
    assert '"object":"embedding"' in answer.stdout


def test_schemathesis_finds_no_failure_of_the_server(service):
    pytest.importorskip("schemathesis")
    url = service[0].removesuffix("/v1")
    program = str(Path(sys.executable).with_name("schemathesis"))
    command = [program, "run", f"{url}/openapi.json", "--url", url, "--checks", "not_a_server_error", "--max-examples", "60", "--no-color"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
