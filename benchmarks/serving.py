"""Load on `/v1/embeddings`: our service in fp32 and int8 against sentence-transformers behind a plain FastAPI route, on one machine.

python benchmarks/serving.py SET [--seconds 10] [--rounds 3] [--clients 1 8 32 128] [--infinity BIN]      SET: a BEIR folder; queries and passages are sent in turn, one text a request

Closed loop: each client sends its next request when it has the answer. Servers run one at a time on the same cores, in turns; the table has medians over rounds. int8 is also measured in retrieval, on the whole set. BIN: the program infinity_emb of an environment of its own (pip install "infinity-emb[server,torch]"), to be compared with.
"""

import argparse
import asyncio
import itertools
import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import psutil

from domain_embed.beir import read_beir
from domain_embed.inference import encode_texts, load_exported
from domain_embed.int8 import quantize_int8
from domain_embed.models import load_model
from domain_embed.onnx_export import export_onnx
from domain_embed.parity import ndcg10
from domain_embed.saved_models import save_model
from domain_embed.server_process import free_port

PLAIN = """
import sys
import uvicorn
from fastapi import FastAPI
from domain_embed.models import load_model

model, app = load_model("embedded", 256, device="cpu"), FastAPI()

@app.post("/v1/embeddings")
def embeddings(body: dict):
    vectors = model.encode([body["input"]] if isinstance(body["input"], str) else body["input"], normalize_embeddings=True, show_progress_bar=False)
    return {"object": "list", "data": [{"object": "embedding", "index": n, "embedding": v.tolist()} for n, v in enumerate(vectors)]}

@app.get("/v1/health/ready")
def ready():
    return {"ready": True}

uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")
"""


def commands(folder: Path, port: int, infinity: str = "") -> dict[str, list[str]]:
    "Return the servers."
    peer = [infinity, "v2", "--model-id", str(folder / "model"), "--engine", "torch", "--device", "cpu", "--port", str(port), "--url-prefix", "/v1", "--served-model-name", "domain_embed"]
    ours = [sys.executable, "-m", "domain_embed.service", str(folder), "--port", str(port), "--graph"]
    others = {"plain route": [sys.executable, "-c", PLAIN, str(port)]} | ({"infinity": peer} if infinity else {})
    return others | {"ours fp32": [*ours, "model.onnx"], "ours int8": [*ours, "model_int8.onnx"]}


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, text: str) -> None:
    "Send one request on an open connection; httpx with 128 connections would take more time than the servers."
    body = json.dumps({"model": "domain_embed", "input": text}).encode()
    writer.write(b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    answer = await reader.readexactly(int(head.partition(b"content-length:")[2].partition(b"\r\n")[0]))
    assert head.startswith(b"http/1.1 200") and answer.startswith(b'{"object"'), answer[:200]


async def load(port: int, texts: list[str], clients: int, seconds: float) -> list[float]:
    "Send requests for some time: the seconds of each."
    source, times, end = itertools.cycle(texts), [], time.perf_counter() + seconds

    async def loop() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < end:
            start = time.perf_counter()
            await ask(reader, writer, next(source))
            times.append(time.perf_counter() - start)
        writer.close()

    await asyncio.gather(*(loop() for _ in range(clients)))
    return times


def measure(command: list[str], port: int, texts: list[str], clients: list[int], seconds: float) -> dict[int, tuple[float, float, float, float]]:
    "Start a server and load it: requests a second, p50, p99 (ms), peak memory (MiB)."
    start, results = time.perf_counter(), {}
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            while True:
                try:
                    if httpx.post(f"http://127.0.0.1:{port}/v1/embeddings", json={"model": "domain_embed", "input": "a"}, timeout=60, trust_env=False).status_code == 200:
                        break
                except httpx.TransportError:
                    pass  # it does not listen yet
                time.sleep(0.05)
            print(f"  ready after {time.perf_counter() - start:.1f} s", file=sys.stderr)
            for number in clients:
                begin = time.perf_counter()
                times = asyncio.run(load(port, texts, number, seconds))
                taken = time.perf_counter() - begin
                memory = psutil.Process(server.pid).memory_info().rss / 2**20
                results[number] = (len(times) / taken, *(1000 * np.percentile(times, (50, 99))), memory)
        finally:
            server.terminate()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", type=Path)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--infinity", metavar="BIN", default="")
    options = parser.parse_args()
    folder, test = Path(tempfile.mkdtemp()), read_beir(options.set)
    save_model(load_model("embedded", 256), folder / "model")
    quantize_int8(export_onnx(load_model("embedded", 256), folder), folder / "model_int8.onnx")
    servers = partial(commands, folder, infinity=options.infinity)
    # passages below the maximum length: the service refuses longer ones instead of cutting them
    short = [p.content for p in test.passages if len(p.content.split()) < 120]
    texts = [text for pair in zip(itertools.cycle(test.queries.values()), short, strict=False) for text in pair]
    results = {}
    for _ in range(options.rounds):
        for name in servers(0):
            port = free_port()
            for number, values in measure(servers(port)[name], port, texts, options.clients, options.seconds).items():
                results.setdefault((number, name), []).append(values)
    print("| clients | server | requests a second | of the plain route | p50, ms | p99, ms | memory, MiB |\n|---|---|---|---|---|---|---|")
    for number in options.clients:
        plain = np.median([rate for rate, *_ in results[number, "plain route"]])
        for name in servers(0):
            rate, middle, tail, memory = np.median(results[number, name], axis=0)
            print(f"| {number} | {name} | {rate:.1f} | {rate / plain:.2f}× | {middle:.0f} | {tail:.0f} | {memory:.0f} |")
    for graph in ("model.onnx", "model_int8.onnx"):
        model = load_exported(folder, graph)
        vectors = encode_texts(model, list(test.queries.values()), "query"), encode_texts(model, [p.content for p in test.passages], "document")
        print(f"{graph}: nDCG@10 {ndcg10(test, *vectors):.4f} on {options.set.name}, {len(test.queries)} queries")


if __name__ == "__main__":
    main()
