"""Every command of the README, typed by a newcomer: python benchmarks/newcomer.py FOLDER

Builds the wheel, installs it into an environment of its own in the empty FOLDER, and runs what the README's shell blocks say, in their order, on pages of the Python documentation. Only what names something the newcomer lacks is replaced: documents, a database. Servers are started, asked and
stopped; the Python block runs while `deploy` serves. Prints a Markdown table of commands and seconds; the exit status is 1 if a command failed.
"""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "examples/python/documents"
DOCUMENTS = {"handbook": "faq", "my-documents": "howto", "archive": "tutorial"}  # a folder of the README → of the example
REPLACED = {"postgresql://me@localhost/search": "search-index", "runs/other": "runs/handbook"}  # what a newcomer lacks
SERVERS = {"deploy": "http://127.0.0.1:8000/v1/health/ready", "playground": "http://127.0.0.1:8100/"}
PAGES_EACH = 6


def blocks(kind: str) -> list[str]:
    "Return the README's code blocks of a language."
    return re.findall(rf"```{kind}\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def commands() -> list[str]:
    "Return the lines of the README's shell blocks, the installation first, without comments."
    lines = [line.partition("  #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    lines = [line for line in lines if line and not line.startswith("make ")]
    return sorted(lines, key=lambda line: not line.startswith("pip install"))


def wait_until_ready(server: subprocess.Popen, address: str) -> None:
    "Wait until a server answers."
    for _ in range(600):
        if server.poll() is not None:
            raise RuntimeError(f"it ended with status {server.returncode}")
        try:
            if httpx.get(address, trust_env=False, timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass  # it does not listen yet
        time.sleep(0.2)
    raise RuntimeError(f"nothing answers at {address} after two minutes")


class Newcomer:
    "A folder with documents, an environment and a log."

    def __init__(self, folder: Path):
        self.folder, self.bin, self.failed = folder, folder / "env/bin", False
        folder.mkdir(parents=True)
        build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)]
        subprocess.run(build, check=True)
        self.wheel = next(folder.glob("domain_embed-*.whl"))
        subprocess.run([sys.executable, "-m", "venv", self.bin.parent], check=True)
        for name, source in DOCUMENTS.items():
            (folder / name).mkdir()
            for page in sorted((PAGES / source).glob("*.md"))[:PAGES_EACH]:
                shutil.copy(page, folder / name)

    def run(self, arguments: list[str]) -> None:
        "Run a program of the environment to its end."
        done = subprocess.run([self.bin / arguments[0], *arguments[1:]], cwd=self.folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError((done.stdout + done.stderr)[-600:])

    def serve(self, arguments: list[str], address: str) -> None:
        "Start a server, ask it, run the README's Python block if it serves the run that the block names, and stop it."
        server = subprocess.Popen([self.bin / arguments[0], *arguments[1:]], cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_until_ready(server, address)
            if arguments[1:] == ["deploy", "runs/mine"]:
                (self.folder / "use.py").write_text("\n".join(blocks("python")))
                self.run(["python", "use.py"])
        finally:
            server.terminate()
            server.wait()

    def type(self, line: str) -> None:
        "Do what a line says, and log it."
        typed = line
        for old, new in (*REPLACED.items(), ("/path/to/domain_embed", str(self.wheel))):
            typed = typed.replace(old, new)
        arguments = [word.strip("'\"") for word in re.findall(r"\"[^\"]*\"|'[^']*'|\S+", typed)]
        if arguments == ["pip", "install", "torch"]:
            arguments[2] = "torch==2.13.0"
        start, result = time.monotonic(), "done"
        try:
            if arguments[1] == "lab":
                self.run([*arguments, "--no-open"])
            elif arguments[1] in SERVERS:
                self.serve(arguments, SERVERS[arguments[1]])
            else:
                self.run(arguments)
        except RuntimeError as error:
            self.failed, result = True, f"FAILED: {error}"
        print(f"| `{line}` | {time.monotonic() - start:.0f} | {result} |", flush=True)


def main() -> int:
    newcomer = Newcomer(Path(sys.argv[1]).resolve())
    print("| command | seconds | |\n|---|---|---|")
    for line in commands():
        newcomer.type(line)
    return int(newcomer.failed)


if __name__ == "__main__":
    sys.exit(main())
