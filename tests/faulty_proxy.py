"""A proxy before a real OpenAI-compatible server that fails in every way a server can, and counts what it delivered."""

import hashlib
import http.client
import http.server
import random
import threading
import time
from collections import Counter
from itertools import cycle
from urllib.parse import urlsplit

FAULTS = ("429", "429", "500", "503", "stall", "drop", "cut", "junk", "half")


class FaultyProxy:
    "A context manager; `url` is its base URL."

    def __init__(self, upstream: tuple[str, ...], share: float, stall: float = 4.5, seed: int = 0, never: bytes = b""):
        self.upstream, self.share, self.stall = cycle(map(urlsplit, upstream)), share, stall
        self.random, self.lock = random.Random(seed), threading.Lock()
        self.never = never  # a request that holds this is answered 500
        self.delivered: Counter[str] = Counter()  # hash of a request's body → whole replies sent
        self.faults: Counter[str] = Counter()
        self.under_way = self.most_under_way = 0

    def fault(self) -> str:
        "What happens to this request."
        with self.lock:
            return self.random.choice(FAULTS) if self.random.random() < self.share else ""

    def __enter__(self) -> "FaultyProxy":
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                fault = "500" if proxy.never and proxy.never in body else proxy.fault()
                with proxy.lock:
                    proxy.faults[fault] += 1
                    proxy.under_way += 1
                    proxy.most_under_way = max(proxy.most_under_way, proxy.under_way)
                try:
                    self.answer(fault, body)
                finally:
                    with proxy.lock:
                        proxy.under_way -= 1

            def answer(self, fault: str, body: bytes) -> None:
                if fault == "drop":
                    self.close_connection = True
                    return self.connection.close()
                if fault == "stall":
                    time.sleep(proxy.stall)
                    return self.reply(200, b'{"too": "late"}')
                if fault in ("429", "500", "503"):
                    return self.reply(int(fault), b'{"error": {"message": "no"}}', **({"Retry-After": "0.2"} if fault == "429" else {}))
                if fault == "junk":
                    return self.reply(200, b"<html>Bad gateway</html>")
                with proxy.lock:
                    upstream = next(proxy.upstream)
                connection = http.client.HTTPConnection(upstream.hostname, upstream.port, timeout=300)
                path = upstream.path + self.path.removeprefix("/v1")
                connection.request("POST", path, body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                content = response.read()
                if fault == "cut":  # valid HTTP, half of the JSON
                    return self.reply(200, content[: len(content) // 2])
                if fault == "half":  # the connection breaks in the middle of the body
                    self.reply(200, content[: len(content) // 2], length=len(content))
                    self.close_connection = True
                    return self.connection.close()
                with proxy.lock:
                    proxy.delivered[hashlib.sha256(body).hexdigest()] += response.status == 200
                return self.reply(response.status, content)

            def reply(self, status: int, content: bytes, length: int | None = None, **headers: str) -> None:
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(content) if length is None else length))
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(content)
                    self.wfile.flush()
                except OSError:  # the client has gone
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
