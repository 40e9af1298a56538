"""Hostile clients of `/v1/embeddings`, one kind after the other: the service's memory, how fast it answers its health check, and the answers of a client beside them.

python benchmarks/hostile.py FOLDER [--graph model.onnx] [--seconds 20]      FOLDER: an exported model, a run's 5_export/onnx

Each kind is sent by 8 connections of another process. The client beside them sends one text after the other and compares each vector with the first answer. Memory: of the process, highest of ten samples a second.
"""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil

from domain_embed.server_process import free_port, served

CONNECTIONS = 8


def post(body: bytes, length: int | None = None) -> bytes:
    "Return a request."
    return b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (len(body) if length is None else length) + body


def embed(given: object, **more: object) -> bytes:
    "Return a request for vectors."
    return post(json.dumps({"model": "m", "input": given, "input_type": "query", **more}).encode())


PARTS = b"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"%x\r\n%s\r\n" % (1 << 20, b"x" * (1 << 20)) * 100
ATTACKS = {  # what is sent, and the seconds after which the client goes (0: it waits for the answer)
    "none": (b"", 0),
    "100 MB with a length": (post(b"x" * (100 << 20)), 0),
    "100 MB in parts": (PARTS, 0),
    "10,000 texts": (embed(["a pump"] * 10_000), 0),
    "100,000 characters, refused": (embed("pump " * 20_000), 0),
    "100,000 characters, cut": (embed("pump " * 20_000, truncate="END"), 0),
    "80 × 200,000 characters, cut": (embed(["pump " * 40_000] * 80, truncate="END"), 0),
    "a lone surrogate": (post(b'{"model": "m", "input": "\\ud800"}'), 0),
    "not UTF-8": (post(b'{"model": "m", "input": "\xff\xfe"}'), 0),
    "2,048 texts, gone after .2 s": (embed(["pump " * 50] * 2048), 0.2),
    "bodies that do not come": (post(b"{", 1000), 5),
    "answers that are not read": (embed(["a"] * 2048), 5),
}


async def attack(port: int, content: bytes, leave: float, end: float) -> Counter[str]:
    "Send a request again and again: what came of it."
    outcomes: Counter[str] = Counter()
    while time.time() < end:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
            writer.write(content)
            if leave:
                await asyncio.sleep(leave)
                outcomes["left"] += 1
            else:
                outcomes[(await asyncio.wait_for(reader.readline(), 120)).split()[1].decode()] += 1
            writer.transport.abort()
        except (ConnectionError, IndexError):
            outcomes["connection closed"] += 1
    return outcomes


def attackers(port: int, name: str, end: float, results: Connection) -> None:
    "Attack with several connections."

    async def all_of_them() -> Counter[str]:
        return sum(await asyncio.gather(*(attack(port, *ATTACKS[name], end) for _ in range(CONNECTIONS))), Counter())

    results.send(asyncio.run(all_of_them()))


async def ask(port: int, content: bytes) -> tuple[float, int, bytes]:
    "Send a request on a connection of its own: milliseconds, status, body."
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    writer.write(content)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    body = await reader.readexactly(int(head.partition(b"content-length:")[2].partition(b"\r\n")[0]))
    writer.close()
    return 1000 * (time.perf_counter() - start), int(head.split()[1]), body


async def watch(port: int, process: psutil.Process, seconds: float) -> tuple[list[float], list[float], Counter[str], float]:
    "Ask for health and for vectors: milliseconds of both, what came of the vectors, and the highest memory in MiB."
    end, memory, health, polite, outcomes = time.time() + seconds, [0.0], [], [], Counter()
    first = (await ask(port, embed("how much pressure does the pump give")))[2]

    async def repeat(content: bytes, times: list[float], pause: float) -> None:
        while time.time() < end:
            milliseconds, status, body = await ask(port, content)
            times.append(milliseconds)
            if times is polite:
                outcomes[str(status) if status != 200 or body == first else "WRONG"] += 1
            memory[0] = max(memory[0], process.memory_info().rss / 2**20)
            await asyncio.sleep(pause)

    await asyncio.gather(
        repeat(b"GET /v1/health/ready HTTP/1.1\r\nHost: x\r\n\r\n", health, 0.1),
        repeat(embed("how much pressure does the pump give"), polite, 0.1),
    )
    return health, polite, outcomes, memory[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--graph", default="model.onnx")
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    port, context = free_port(), get_context("spawn")
    command = [sys.executable, "-m", "domain_embed.service", str(options.folder), "--graph", options.graph, "--name", "m", "--port", str(port)]
    print("| 8 connections send | responses | health, ms: p50, p99, highest | the client beside: p50, p99, ms | its answers | memory, MiB |\n|---|---|---|---|---|---|")
    shown = partial(np.percentile, q=(50, 99, 100))
    with served(command, 120):
        (process,) = psutil.Process().children()
        for name in ATTACKS:
            receive, send = context.Pipe(False)
            enemies = context.Process(target=attackers, args=(port, name, time.time() + options.seconds + 2, send))
            if name != "none":
                enemies.start()
                time.sleep(2)
            health, polite, outcomes, memory = asyncio.run(watch(port, process, options.seconds))
            fate = receive.recv() if name != "none" else {}
            with suppress(AssertionError):  # it was not started
                enemies.join()
            texts = [", ".join(f"{count} × {what}" for what, count in sorted(own.items())) or "–" for own in (fate, outcomes)]
            numbers = [" ".join(f"{value:.0f}" for value in values) for values in (shown(health), shown(polite)[:2])]
            print(f"| {name} | {texts[0]} | {numbers[0]} | {numbers[1]} | {texts[1]} | {memory:.0f} |", flush=True)


if __name__ == "__main__":
    main()
