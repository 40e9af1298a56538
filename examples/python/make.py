"""Make this example from Debian's python3.11-doc: `python make.py /usr/share/doc/python3.11/html`.

`documents/` gets pages of the Python documentation as Markdown. The FAQ's questions are taken out of its pages, so that no document
holds them, and become the human queries of `test_set/`: each is answered by the section that stood under it, among the sections of the FAQ and the tutorial.
"""

import sys
from pathlib import Path

from bs4 import BeautifulSoup

from domain_embed.beir import Passage, Question, write_beir
from domain_embed.documents import Block, html_blocks
from domain_embed.runs import write_atomic

TUTORIAL = (
    "appetite interpreter introduction controlflow datastructures modules inputoutput errors classes stdlib stdlib2 venv floatingpoint interactive"
)
HOWTO = "annotations argparse curses functional ipaddress logging regex sockets sorting unicode urllib2"
FAQ = "design extending general gui installed library programming windows"
LIBRARY = """abc array atexit base64 bisect code contextvars copy dataclasses difflib fileinput fnmatch functools glob
gzip heapq hmac json linecache pprint queue random secrets shelve shlex timeit tomllib traceback weakref zlib"""
PAGES = {"tutorial": TUTORIAL, "howto": HOWTO, "faq": FAQ, "library": LIBRARY}
HERE = Path(__file__).parent


def blocks_of(path: Path) -> list[Block]:
    "A page's blocks, code fenced, tables of contents left out."
    soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    for element in soup.select(".contents, .seealso, a.headerlink"):
        element.decompose()
    for pre in soup.select("pre"):
        pre.string = f"```\n{pre.get_text().strip()}\n```"
    return list(html_blocks(str(soup)))


def markdown(blocks: list[Block]) -> str:
    "Blocks as Markdown."
    return "\n\n".join("#" * b.level + " " + b.text if b.level else b.text for b in blocks) + "\n"


def sections(blocks: list[Block]) -> list[tuple[Block, list[Block]]]:
    "Each heading with the blocks up to the next."
    found: list[tuple[Block, list[Block]]] = []
    for block in blocks:
        if block.level:
            found.append((block, []))
        elif found:
            found[-1][1].append(block)
    return found


def main(html: Path) -> None:
    "Write documents/ and test_set/."
    passages, questions = [], []
    for folder, names in PAGES.items():
        for name in names.split():
            blocks, document = blocks_of(html / folder / f"{name}.html"), f"{folder}/{name}.md"
            for heading, body in sections(blocks):
                text = "\n\n".join(b.text for b in body)
                if len(text) < 80 or folder not in ("faq", "tutorial"):
                    continue
                asked = folder == "faq" and heading.text.endswith("?")
                passages.append(Passage(f"d{len(passages)}", document, "" if asked else heading.text, text))
                if asked:
                    questions.append(Question(f"faq{len(questions)}", heading.text, "human", [passages[-1].id], document))
            kept = [b for b in blocks if not (folder == "faq" and b.level and b.text.endswith("?"))]
            write_atomic(HERE / "documents" / document, markdown(kept))
    texts = [path.read_text(encoding="utf-8") for path in (HERE / "documents").rglob("*.md")] + [p.text for p in passages]
    questions = [q for q in questions if not any(q.text in text for text in texts)]  # a page may link to a question by its words
    write_beir(HERE / "test_set", passages, questions, {"test": [q.id for q in questions]})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
