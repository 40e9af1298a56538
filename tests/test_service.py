"""The service as a process: the clients that people use, hostile requests, load, and its end."""

import asyncio
import base64
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest

from domain_embed.encode import encode
from domain_embed.inference import encode_texts, load_exported, tokenize
from domain_embed.int8 import quantize_int8
from domain_embed.models import load_model
from domain_embed.onnx_export import export_onnx
from domain_embed.server_process import free_port, served

STRANGE = ["a", "the pump moves water", "مرحبا بالعالم", "🙂🙂", "水泵 E40", "word " * 500, "\0", "A" * 3000]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    "A model with a prompt for queries, and its export in 32 and 8 bits."
    folder = tmp_path_factory.mktemp("service") / "onnx"
    model = load_model("embedded", 64, query_prompt="query: ")
    quantize_int8(export_onnx(model, folder), folder / "model_int8.onnx")
    return model, folder


def command(folder: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "domain_embed.service", str(folder), "--name", "m", "--port", str(free_port()), *more]


@pytest.fixture(scope="module")
def url(exported):
    "A running service with small limits."
    with served(command(exported[1], "--max-body", "1000000", "--max-queue", "600"), 60) as address:
        yield address


def post(url: str, **body: object) -> httpx.Response:
    return httpx.post(f"{url}/embeddings", json={"model": "m", "input_type": "query"} | body, timeout=60, trust_env=False)


def test_openai_clients_get_the_models_own_vectors(exported, url):
    model, _ = exported
    expected = {kind: encode(model, STRANGE, kind, "") for kind in ("query", "document")}

    async def ask(client: openai.AsyncOpenAI) -> list:
        return (await client.embeddings.create(model="m-passage", input=STRANGE, extra_body={"truncate": "END"})).data

    options = {"base_url": url, "api_key": "none", "max_retries": 0}
    with openai.OpenAI(**options) as client:
        for encoding in ("float", "base64"):
            answer = client.embeddings.create(model="m", input=STRANGE, encoding_format=encoding, extra_body={"input_type": "query", "truncate": "END"})
            vectors = [np.frombuffer(base64.b64decode(d.embedding), "<f4") if isinstance(d.embedding, str) else d.embedding for d in answer.data]
            assert np.abs(np.array(vectors) - expected["query"]).max() < 1e-4
        assert answer.usage.prompt_tokens == answer.usage.total_tokens > 64
        assert {m.id for m in client.models.list()} == {"m", "m-query", "m-passage"} and client.models.retrieve("m").id == "m"
        with pytest.raises(openai.NotFoundError, match="it is called 'm'"):
            client.embeddings.create(model="other", input="a")
    passages = asyncio.run(ask(openai.AsyncOpenAI(**options)))
    assert np.abs(np.array([d.embedding for d in passages]) - expected["document"]).max() < 1e-4


def test_a_prompt_is_never_cut(exported):
    graph = load_exported(exported[1])
    long = "one two three " * 100 + "end"
    prompt = graph.tokenizer.encode("query:", add_special_tokens=False).ids
    for side in ("START", "END"):
        ids = tokenize(graph, [long], "query", side)[0]
        assert len(ids) == 64 and ids[1 : 1 + len(prompt)] == prompt
    assert graph.tokenizer.decode(tokenize(graph, [long], "query", "START")[0]).endswith("end")


@pytest.mark.parametrize("graph", ["model.onnx", "model_int8.onnx"])
def test_a_vector_does_not_depend_on_other_texts(exported, graph):
    model = load_exported(exported[1], graph)
    texts = [text * n for n in range(1, 9) for text in STRANGE]
    together = encode_texts(model, texts, "document")
    for number in (0, 5, 17, 63):
        assert np.abs(encode_texts(model, texts[number : number + 1], "document") - together[number]).max() < 1e-5
    reference = encode(exported[0], texts, "document", "")
    assert (together * reference).sum(axis=1).min() > (0.9999 if graph == "model.onnx" else 0.97)


def test_what_cannot_be_answered_has_openais_error(url):
    def status(content: bytes, **headers: str) -> int:
        answer = httpx.post(f"{url}/embeddings", content=content, headers=headers, timeout=60, trust_env=False)
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"} and answer.headers["x-request-id"]
        return answer.status_code

    for body in (b"", b"null", b"[]", b'{"model": "m", "input": "\\ud800"}', b'{"model": "m", "input": "\xff\xfe"}', b'{"model": "m", "input": [[1, 2]]}'):
        assert status(body) == 400
    assert status(b'{"model": "m", "input": [' + b"null," * 150_000 + b"null]}") == 400
    assert status(json.dumps({"model": "m", "input_type": "query", "input": ["a"] * 10_000}).encode()) == 400
    assert status(json.dumps({"model": "m", "input_type": "query", "input": "x " * 50_000}).encode()) == 400  # longer than 64 tokens
    assert status(b"x" * 1_000_001) == 413
    assert status(b"{" + b" " * 5_000_000, **{"content-length": "5000001"}) == 413
    assert post(url, input="").status_code == 400 and post(url, input="a", dimensions=100).status_code == 400
    assert post(url, input="x " * 50_000, truncate="END").status_code == 200
    assert post(url, input="a", input_type=None).status_code == 400 and "m-query" in post(url, input="a", input_type=None).text
    assert "check_embedding_ctx_length=False" in post(url, input=[1, 2, 3]).text
    for method, path, expected in (("GET", "/nothing", 404), ("GET", "/embeddings", 405), ("DELETE", "/models", 405), ("GET", "/models/x/y", 404)):
        answer = httpx.request(method, url + path, trust_env=False)
        assert answer.status_code == expected and answer.json()["error"]["message"]


def chunked(url: str, chunks: int) -> int:
    "Send a body in chunks without a length: the status."
    host, port = url.split("/")[2].split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    try:
        connection.request("POST", "/v1/embeddings", iter([b"x" * 100_000] * chunks), encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
        return connection.getresponse().status
    except (BrokenPipeError, ConnectionResetError):  # refused before everything was sent
        return 413
    finally:
        connection.close()


def test_hostile_clients_do_not_harm_others(url):
    host, port = url.split("/")[2].split(":")
    slow = [socket.create_connection((host, int(port))) for _ in range(20)]
    for connection in slow:
        connection.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
    gone = socket.create_connection((host, int(port)))
    body = json.dumps({"model": "m", "input_type": "query", "input": ["word " * 50] * 500}).encode()
    gone.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    time.sleep(0.3)
    gone.close()  # its 500 texts leave the queue
    assert chunked(url, 1000) == 413  # 100 MB
    start = time.monotonic()
    answer = post(url, input=["a pump", "a valve"])
    assert answer.status_code == 200 and time.monotonic() - start < 15
    assert httpx.get(f"{url}/health/live", trust_env=False).status_code == 200
    metrics = httpx.get(f"{url}/metrics", trust_env=False).text
    assert "domain_embed_queue_texts 0.0" in metrics and 'domain_embed_requests_total{status="413"}' in metrics
    for connection in slow:
        connection.close()


def test_clients_that_do_not_read_are_left(exported):
    own, texts = command(exported[1], "--max-seconds", "4"), 2048
    port = int(own[own.index("--port") + 1])
    address = f"http://127.0.0.1:{port}/v1"
    body = json.dumps({"model": "m", "input_type": "query", "input": ["a"] * texts}).encode()
    with subprocess.Popen(own, stderr=subprocess.DEVNULL) as server, contextlib.ExitStack() as stack:
        stack.callback(server.kill)
        wait_until_ready(address)
        lazy = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20)) for _ in range(2)]
        for connection in lazy:
            connection.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        time.sleep(12)
        assert post(address, input=["a pump"]).status_code == 200
        received = [0, 0]
        for number, connection in enumerate(lazy):
            with contextlib.suppress(ConnectionResetError):
                while part := connection.recv(1 << 20):
                    received[number] += len(part)
    assert all(0 < size < texts * 384 * 8 for size in received), "the server must not keep what nobody reads"


def test_a_full_queue_is_refused_and_health_is_answered(url):
    texts = ["word " * 50] * 300
    slowest, stop = [0.0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            start = time.monotonic()
            assert httpx.get(f"{url}/health/ready", trust_env=False, timeout=30).status_code == 200
            slowest[0] = max(slowest[0], time.monotonic() - start)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post(url, input=texts), range(8)))
    stop.set()
    watcher.join()
    assert {answer.status_code for answer in answers} == {200, 429} and slowest[0] < 3  # one core may be taken by another test
    assert all(answer.headers["retry-after"] for answer in answers if answer.status_code == 429)
    assert all(len(answer.json()["data"]) == 300 for answer in answers if answer.status_code == 200)


def wait_until_ready(address: str) -> None:
    "Wait for a server."
    while True:
        try:
            if httpx.get(f"{address}/health/ready", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)


def test_sigterm_finishes_what_was_accepted(exported):
    own = command(exported[1])
    address = f"http://127.0.0.1:{own[own.index('--port') + 1]}/v1"
    with subprocess.Popen(own, stderr=subprocess.PIPE, text=True) as server, ThreadPoolExecutor(4) as pool:
        wait_until_ready(address)
        waiting = [pool.submit(post, address, input=["word " * 50] * 100) for _ in range(4)]
        time.sleep(1)
        server.send_signal(signal.SIGTERM)
        assert [job.result().status_code for job in waiting] == [200] * 4
        log = server.stderr.read()
    assert server.returncode in (0, -signal.SIGTERM)
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert [line["status"] for line in lines if line["path"] == "/v1/embeddings"] == [200] * 4 and "word" not in log


def test_sigterm_breaks_no_open_connection(exported):
    own = command(exported[1])
    address = f"http://127.0.0.1:{own[own.index('--port') + 1]}/v1"

    def ask() -> list[tuple[int, str]]:
        "Ask on one connection after the other until there is no server; an open connection that breaks raises."
        answers = []
        with httpx.Client(trust_env=False, timeout=30) as client:
            while True:
                try:
                    answer = client.post(f"{address}/embeddings", json={"model": "m-query", "input": "a pump"})
                except (httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError):  # of a new connection: the one before was to be closed
                    assert answers[-1][1] == "close"
                    return answers
                answers.append((answer.status_code, answer.headers.get("connection", "")))

    with subprocess.Popen(own, stderr=subprocess.DEVNULL) as server, ThreadPoolExecutor(4) as pool:
        wait_until_ready(address)
        clients = [pool.submit(ask) for _ in range(4)]
        time.sleep(1)
        server.send_signal(signal.SIGTERM)
        answers = [client.result() for client in clients]
    for own_answers in answers:
        assert {status for status, _ in own_answers} == {200} and own_answers[0][1] == "" and own_answers[-1][1] == "close"


def test_keys_are_needed_beyond_this_machine(exported):
    refused = subprocess.run(command(exported[1], "--host", "0.0.0.0"), capture_output=True, text=True, check=False, env={**os.environ, "DOMAIN_EMBED_API_KEYS": ""})
    assert refused.returncode == 2 and "DOMAIN_EMBED_API_KEYS" in refused.stderr
    own = command(exported[1])
    address = f"http://127.0.0.1:{own[own.index('--port') + 1]}/v1"
    with subprocess.Popen(own, stderr=subprocess.DEVNULL, env={**os.environ, "DOMAIN_EMBED_API_KEYS": "one,two"}) as server:
        wait_until_ready(address)  # needs no key
        given = [{}, {"Authorization": "Bearer three"}, {"Authorization": "two"}, {"Authorization": "Bearer two"}]
        statuses = [httpx.get(f"{address}/models", headers=headers, trust_env=False).status_code for headers in given]
        server.terminate()
    assert statuses == [401, 401, 401, 200]
