"""Clients of other projects against the running service. They are installed by `make test-slow`."""

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
    "A running service, and the model's own vectors of queries."
    folder = tmp_path_factory.mktemp("clients") / "onnx"
    model = load_model("embedded", 64, query_prompt="query: ")
    export_onnx(model, folder)
    command = [sys.executable, "-m", "domain_embed.service", str(folder), "--name", "m", "--port", str(free_port())]
    with served(command, 60) as url:
        yield url, encode(model, TEXTS, "query", "")


def test_langchain(service):
    openai = pytest.importorskip("langchain_openai")
    url, expected = service
    client = openai.OpenAIEmbeddings(base_url=url, api_key="none", model="m-query", check_embedding_ctx_length=False)
    assert np.abs(np.array(client.embed_documents(TEXTS)) - expected).max() < 1e-4


def test_llama_index(service):
    embeddings = pytest.importorskip("llama_index.embeddings.openai_like")
    url, expected = service
    client = embeddings.OpenAILikeEmbedding(api_base=url, api_key="none", model_name="m-query")
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
