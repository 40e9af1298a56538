"""Load on a service that is killed and started again: python benchmarks/kills.py RUN [--minutes 30] [--every 60] [--clients 8] [--graph model.onnx]

Every answer is compared with the vectors of the exported model. A request may be answered or refused (no connection, a connection that breaks, 429, 503); a wrong vector, another status or no reply within a minute is a failure. Kills are SIGKILL and SIGTERM in turns; after SIGTERM,
what was accepted must be answered. Prints one JSON line; the exit status is 1 if anything failed.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from threading import Event, Lock, Thread

import httpx
import numpy as np

from domain_embed.inference import ExportedModel, encode_texts, load_exported
from domain_embed.jsonl import read_jsonl
from domain_embed.manifests import artefact
from domain_embed.server_process import free_port

WORDS = "the pump moves water valve motor opens at 5 bar error E40 水泵 🙂 how often is filter cleaned".split()


class Load:
    "Clients that ask until they are told to stop, and what became of their requests."

    def __init__(self, url: str, texts: list[str], expected: dict[str, np.ndarray]):
        self.url, self.texts, self.expected = url, texts, expected
        self.counts, self.lock, self.stop = Counter(), Lock(), Event()
        self.ending = False  # SIGTERM has been sent and the server has not ended

    def outcome(self, client: httpx.Client, rng: random.Random) -> str:
        "Send one request."
        kind, chosen = rng.choice(("query", "passage")), rng.sample(range(len(self.texts)), rng.choice((1, 1, 2, 16)))
        body = {"model": f"m-{kind}", "input": [self.texts[n] for n in chosen], "truncate": "END"}
        try:
            answer = client.post(f"{self.url}/embeddings", json=body)
        except httpx.ConnectError:
            return "refused: no connection"
        except httpx.TimeoutException:
            return "FAILED: no reply"
        except httpx.TransportError:
            return "refused: broken connection, SIGTERM" if self.ending else "refused: broken connection"
        if answer.status_code in (429, 503):
            return f"refused: {answer.status_code}"
        if answer.status_code != 200:
            return f"FAILED: status {answer.status_code}"
        vectors = np.array([row["embedding"] for row in answer.json()["data"]], dtype=np.float32)
        return "answered" if np.abs(vectors - self.expected[kind][chosen]).max() < 1e-4 else "FAILED: wrong vector"

    def run(self, seed: int) -> None:
        "One client."
        rng = random.Random(seed)
        with httpx.Client(timeout=60, trust_env=False) as client:
            while not self.stop.is_set():
                found = self.outcome(client, rng)
                with self.lock:
                    self.counts[found] += 1
                time.sleep(0.2 if found.startswith("refused") else rng.random() / 10)


def start(folder: Path, graph: str, port: int) -> subprocess.Popen:
    "Start the server and wait until it is ready."
    command = [sys.executable, "-m", "domain_embed.service", str(folder), "--graph", graph, "--name", "m", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(300):
        try:
            if httpx.get(f"http://127.0.0.1:{port}/v1/health/ready", timeout=2, trust_env=False).status_code == 200:
                return server
        except httpx.TransportError:
            pass  # it does not listen yet
        time.sleep(0.2)
    raise RuntimeError("the server is not ready after a minute")


def vectors_of(model: ExportedModel, texts: list[str]) -> dict[str, np.ndarray]:
    "Return the expected vectors by kind."
    return {"query": encode_texts(model, texts, "query"), "passage": encode_texts(model, texts, "document")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--every", type=float, default=60, help="seconds between kills")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--graph", default="model.onnx")
    options = parser.parse_args()
    folder, port, rng = artefact(options.run, "export", "onnx"), free_port(), random.Random(0)
    corpus = [row["text"] for row in read_jsonl(artefact(options.run, "prepare", "eval_beir") / "corpus.jsonl")][:60]
    texts = corpus + [" ".join(rng.choices(WORDS, k=rng.choice((1, 4, 20, 300)))) for _ in range(60)]
    load = Load(f"http://127.0.0.1:{port}/v1", texts, vectors_of(load_exported(folder, options.graph), texts))
    server, kills = start(folder, options.graph, port), Counter()
    clients = [Thread(target=load.run, args=(number,), daemon=True) for number in range(options.clients)]
    for client in clients:
        client.start()
    begin = time.monotonic()
    end = begin + 60 * options.minutes
    try:
        while time.monotonic() + options.every < end:
            time.sleep(options.every)
            how = (signal.SIGKILL, signal.SIGTERM)[kills.total() % 2]
            load.ending = how == signal.SIGTERM
            server.send_signal(how)
            status = server.wait(timeout=90)
            load.ending = False
            kills[f"{how.name}, status {status}"] += 1
            server = start(folder, options.graph, port)
        time.sleep(max(0.0, end - time.monotonic()))
    finally:
        load.stop.set()
        for client in clients:
            client.join()
        server.terminate()
        server.wait()
        minutes = round((time.monotonic() - begin) / 60, 1)
        print(json.dumps({"minutes": minutes, "kills": kills, "requests": load.counts.total()} | dict(sorted(load.counts.items()))))
    return int(any(name.startswith("FAILED") or name.endswith("SIGTERM") for name in load.counts))


if __name__ == "__main__":
    sys.exit(main())
