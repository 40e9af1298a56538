"""No file can break stage 1, and no heading or text of a document is lost on the way to its passages."""

import io
import json
import os
import random
import re
import subprocess
import sys
import zipfile
from collections import Counter
from functools import cache
from pathlib import Path

import openpyxl
import pytest
from conftest import run_here
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from pptx import Presentation
from test_generate import word_file

from domain_embed.beir import Passage, read_passages, write_passages
from domain_embed.chunking import cut_passages, token_counter
from domain_embed.documents import read_corpus
from domain_embed.formats import Block, html_blocks, markdown_blocks
from domain_embed.jsonl import read_jsonl
from domain_embed.models import load_model
from domain_embed.office import csv_records
from domain_embed.pipeline import main
from domain_embed.reading import Document, find_files
from domain_embed.reading_pool import read_files
from domain_embed.records import record_blocks
from domain_embed.runs import sha256
from domain_embed.samples import Sample

WORDS = st.text("abcdefg ÄßéжЖ水泵ポ.!?", min_size=1, max_size=30).map(lambda text: " ".join(text.split())).filter(bool)
BLOCKS = st.lists(
    st.one_of(
        st.builds(Block, WORDS, st.integers(1, 6)),
        st.builds(lambda words, times: Block(" ".join([words] * times)), WORDS, st.integers(1, 60)),
    ),
    min_size=1,
    max_size=25,
)


@cache
def tokenizer():
    return load_model("embedded", 256).tokenizer


def squeezed(text: str) -> str:
    return "".join(text.split())


def assert_nothing_lost(blocks: list[Block], limit: int) -> None:
    "Every heading and every text occurs in the passages, and every passage keeps within the limit."
    ends = token_counter(tokenizer())
    passages = cut_passages(Document("folder/document.md", tuple(blocks)), limit, ends)
    whole = squeezed("".join(p.text for p in passages))
    for block in blocks:
        short = any(squeezed(block.text) in squeezed(p.title) or squeezed(block.text) in squeezed(p.text) for p in passages)
        assert short or squeezed(block.text) in whole, (block, passages)  # what is longer than a passage goes on in the next one
    assert all(len(ends(p.content)) <= limit for p in passages), [(len(ends(p.content)), p) for p in passages]


@settings(max_examples=300, deadline=None)
@given(BLOCKS, st.integers(16, 120))
def test_every_heading_and_every_text_is_in_a_passage(blocks, limit):
    assert_nothing_lost(blocks, limit)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.text("abcxyz", min_size=1, max_size=8), st.integers(1, 40)), min_size=1, max_size=20))
def test_nothing_is_lost_from_markdown_and_html(parts):
    texts = [(level, f"{word} {n} " * (1 if level else times)) for n, (level, word, times) in enumerate(parts)]
    markdown = "\n\n".join("#" * level + " " * bool(level) + text for level, text in texts)
    html = "".join(f"<h{level}>{text}</h{level}>" if level else f"<p>{text}" for level, text in texts)
    for found in (list(markdown_blocks(markdown.encode())), list(html_blocks(f"<main>{html}"))):
        assert [(b.level, b.text) for b in found] == [(level, text.strip()) for level, text in texts]
        assert_nothing_lost(found, 48)


VALUES = st.one_of(WORDS, st.integers(-(10**6), 10**6), st.text("水泵关闭阀门", min_size=1, max_size=9))
RECORDS = st.recursive(VALUES, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text("abcxyz", min_size=1, max_size=4), inner, max_size=4)), max_leaves=9)


def leaves(value):
    "Every string and number of a JSON value."
    if isinstance(value, (dict, list)):
        return [leaf for inner in (value.values() if isinstance(value, dict) else value) for leaf in leaves(inner)]
    return [str(value)]


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text("abcxyz", min_size=1, max_size=4), RECORDS, min_size=1, max_size=4), st.lists(WORDS, min_size=2, max_size=5))
def test_every_value_of_a_record_is_in_a_block(record, cells):
    text = squeezed("".join(block.text for block in record_blocks(record)))
    assert all(squeezed(leaf) in text for leaf in leaves(record))
    long = "a text of more than fifteen words " * 3
    ((_, blocks),) = csv_records("\n".join(["code,meaning", ",".join(f'"{c}"' for c in [long, *cells])]).encode())
    assert all(squeezed(cell) in squeezed("".join(b.text for b in blocks)) for cell in (long, *cells))


def test_the_review_s_six_error_codes_keep_their_headings():
    source = "# Pump\n\n# Error codes\n\n" + "".join(f"## E100{n}\n\nReason number {n}.\n\n" for n in range(1, 7)) + "# Reserved\n"
    passages = cut_passages(Document("errors.md", tuple(markdown_blocks(source.encode()))), 220, token_counter(tokenizer()))
    for heading in ("Pump", *(f"E100{n}" for n in range(1, 7)), "Reserved"):
        assert any(heading in p.content for p in passages), heading


# ---- fuzzing


def _pdf() -> bytes:
    with PdfPages(file := io.BytesIO()) as pdf:
        for n in range(2):
            figure = Figure(figsize=(6, 8))
            figure.text(0.1, 0.9, f"Chapter {n}", size=18)
            figure.text(0.1, 0.5, "The pump moves water.\nThe valve stops it.", size=10)
            pdf.savefig(figure)
    return file.getvalue()


def _sheet() -> bytes:
    book = openpyxl.Workbook()
    for row in (["code", "meaning"], ["E17", "no water in the pump"], ["E18", "too hot"]):
        book.active.append(row)
    book.save(file := io.BytesIO())
    return file.getvalue()


def _slides() -> bytes:
    deck = Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[1])
    slide.shapes.title.text, slide.placeholders[1].text_frame.text = "Starting", "Open valve V3 first."
    deck.save(file := io.BytesIO())
    return file.getvalue()


def _book() -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        archive.writestr("META-INF/container.xml", '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles><rootfile full-path="p.opf"/></rootfiles></container>')  # fmt: skip
        archive.writestr("p.opf", '<package xmlns="http://www.idpf.org/2007/opf"><manifest><item id="1" href="one.html"/></manifest><spine><itemref idref="1"/></spine></package>')  # fmt: skip
        archive.writestr("one.html", "<h1>Pumps</h1><p>They move water.")
    return file.getvalue()


SEEDS = {
    "pdf": _pdf,
    "docx": word_file,
    "pptx": _slides,
    "xlsx": _sheet,
    "epub": _book,
    "html": lambda: b"<html><head><title>Pumps</title></head><body><h1>P-200</h1><p>It moves <b>water</b>.<table><tr><td>a<td>b</table></body>",
    "md": lambda: b"---\ntitle: Pumps\ndate: 2024-02-28\ntags: [a, b]\n---\n\n# P-200\n\n- It moves *water*.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n",
    "rst": lambda: b"Pumps\n=====\n\n.. note:: Loud.\n\n.. code-block:: sh\n\n   start\n\nSee :ref:`wiring <w>`.\n",
    "json": lambda: json.dumps([{"id": n, "subject": "Pump stops", "body": "It stops after a minute."} for n in range(3)]).encode(),
    "jsonl": lambda: b'{"id": "a", "body": "It stops after a minute."}\n{"id": "b", "body": "It does not start at all."}\n',
    "csv": lambda: b'id,text\n1,"It stops after a minute, and then it starts again on its own after some time, which nobody wants."\n2,x\n',
    "eml": lambda: b"Subject: Pump\nContent-Type: multipart/alternative; boundary=b\n\n--b\nContent-Type: text/plain; charset=latin-1\n\nIt stops.\n--b--\n",
    "txt": lambda: "Pumps\n=====\n\nSie fördern Wasser.\n".encode("utf-16"),
}
TOKENS = (b"<" * 500, b"[" * 3000, b"\0\xff\xfe", b"%PDF-", b"endobj", b"/Length 99999999", b"\xed\xa0\x80", b"\\ud800", b"<?xml?><!DOCTYPE a [<!ENTITY b 'c'>]>", b"PK\x05\x06", b"2024-02-30", b"9" * 5000, b"\r\n\t" * 50)  # fmt: skip


def mutated(data: bytes, rng: random.Random) -> bytes:
    "Flip, cut, repeat and insert."
    content = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(content) + 1)
        match rng.randrange(5):
            case 0:
                content[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del content[at : at + rng.choice((1, 10, 200))]
            case 2:
                content[at:at] = content[at : at + rng.choice((5, 100))] * rng.choice((1, 50))
            case 3:
                content[at:at] = rng.choice(TOKENS)
            case 4:
                del content[max(1, at) : (len(content) if rng.random() < 0.2 else at + 3)]
    return bytes(content)


def mutated_file(suffix: str, data: bytes, rng: random.Random) -> bytes:
    "A file with mutations; of an archive, often those of a member."
    if suffix not in ("docx", "pptx", "xlsx", "epub") or rng.random() < 0.3:
        return mutated(data, rng)
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(file := io.BytesIO(), "w") as copy:
        chosen = rng.choice(archive.namelist())
        for name in archive.namelist():
            copy.writestr(name, mutated(archive.read(name), rng) if name == chosen else archive.read(name))
    return file.getvalue()


def write_mutations(folder: Path, number: int, seed: int) -> None:
    rng, seeds = random.Random(seed), {suffix: make() for suffix, make in SEEDS.items()}
    for n in range(number):
        suffix = rng.choice(list(seeds))
        (folder / f"{n:05}.{suffix}").write_bytes(mutated_file(suffix, seeds[suffix], rng))


def assert_all_used_or_skipped(folder: Path, number: int, found: dict[str, str]) -> None:
    "Every file is used or skipped with a reason; both happen often."
    names = {name.partition("#")[0] for name in found}
    assert len(names) == number and names == {path.name for path in folder.iterdir()}
    reasons = Counter(re.sub(r"[\d.,]+", "#", reason) for reason in found.values())
    print(reasons.most_common())
    assert reasons[""] > number / 4 and len(reasons) > 5 and not any("longer than" in reason for reason in reasons)


def test_mutated_files_are_used_or_skipped(tmp_path):
    write_mutations(tmp_path, 200, seed=1)
    files = find_files(tmp_path)
    documents = read_files(files, [path.name for path in files], seconds=60)
    assert_all_used_or_skipped(tmp_path, 200, {d.name: d.skipped for d in documents})


@pytest.mark.slow
def test_2000_mutated_files_through_stage_1(tmp_path):
    folder = tmp_path / "documents"
    folder.mkdir()
    write_mutations(folder, 2000, seed=2)
    metrics = run_here("generate", tmp_path / "run", f"generate.documents={folder}", "generate.max_passages=40", "generate.file_timeout=60")["metrics"]
    found = {row["document"]: row["skipped"] for row in read_jsonl(tmp_path / "run/1_generate/documents.jsonl")}
    assert_all_used_or_skipped(folder, 2000, found)
    assert sum(row["files"] for row in metrics["skipped"]) == metrics["skipped_documents"] == sum(map(bool, found.values()))
    assert len(read_passages(tmp_path / "run/1_generate/passages.jsonl")) == metrics["passages"]


def test_versions_of_a_manual_are_kept_and_boilerplate_is_reported(tmp_path):
    sections = "".join(f"## Step {n}\n\nTurn screw {n} by {n + 3} degrees and wait.\n\n" for n in range(20))
    for version in range(5):
        (tmp_path / f"manual-{version}.md").write_text(f"# Manual {version}\n\nThis is version {version}.\n\n{sections}")
    for n in range(10):
        (tmp_path / f"note-{n}.md").write_text(f"# Note {n}\n\nPump {n} was repaired by team {n} in room {n}.\n\nAll rights reserved by Pumps Ltd.\n")
    corpus = read_corpus(tmp_path, tokenizer(), 120)
    for version in range(5):
        own = " ".join(p.text for p in corpus.passages if p.document == f"manual-{version}.md")
        assert all(f"screw {n} by" in own for n in range(20)), version
    assert sum("All rights reserved" in p.text for p in corpus.passages) == 1
    assert corpus.boilerplate == [{"text": "All rights reserved by Pumps Ltd.", "documents": 10, "removed": 9, "kept_in": "note-0.md"}]
    assert {row["document"] for row in corpus.documents if row["passages"]} == {path.name for path in tmp_path.iterdir()}


def test_a_sample_grows_with_the_archive(tmp_path):
    for n in range(30):
        (tmp_path / f"note-{n}.md").write_text(f"# Note {n}\n\nPump {n} was repaired by team {n} in room {n}.\n")
    (tmp_path / "tickets.jsonl").write_text("".join(f'{{"id": "T-{n}", "body": "The pump {n} stops after {n} minutes."}}\n' for n in range(30)))
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.md")).write_text("# Coffee\n\nThe machine is on floor 2.\n")  # not UTF-8
    assert len(sha256(tmp_path)) == 64
    before = {row["document"] for row in read_corpus(tmp_path, tokenizer(), 120, sample=Sample(10, seed=1)).documents}
    assert len(before) == 10 and before != {row["document"] for row in read_corpus(tmp_path, tokenizer(), 120, sample=Sample(10, seed=2)).documents}
    (tmp_path / "new.md").write_text("# New\n\nA new pump was bought.\n")
    after = {row["document"] for row in read_corpus(tmp_path, tokenizer(), 120, sample=Sample(10, seed=1)).documents}
    assert len(before - after) <= 1 and after - before <= {"new.md"}


def test_a_sample_of_a_ready_corpus_has_whole_documents(tmp_path):
    passages = [Passage(f"p{n}", f"d{n // 3}", "", f"Pump {n} is in room {n}.", group=f"p{n % 3}") for n in range(60)]
    write_passages(tmp_path / "corpus.jsonl", passages)
    corpus = read_corpus(tmp_path, tokenizer(), 120, sample=Sample(7, seed=1))
    found = [p.id for p in corpus.passages]
    assert len(found) == 21 and Counter(p.document for p in corpus.passages).most_common()[-1][1] == 3
    assert found == [p.id for p in passages if p.id in found] and all(p.group in found for p in corpus.passages)


def test_readers_of_office_files_are_an_extra():
    "What reads documents can be imported without the libraries of the extra `documents`."
    lacking = ("pdfminer", "mammoth", "pptx", "openpyxl", "jupyterlab")
    program = f"import sys; sys.modules |= dict.fromkeys({lacking}); from domain_embed import corpus, document_units, lab"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_files_without_their_library_stop_a_run_before_it_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("domain_embed.reading.LIBRARY_OF", {".pdf": "no_such_library"})
    (tmp_path / "manual.pdf").write_bytes(b"%PDF-1.4")
    assert main(["generate", "--documents", str(tmp_path / "manual.pdf"), str(tmp_path / "run")]) == 2
    assert "domain-embed[documents]" in capsys.readouterr().err and not (tmp_path / "run").exists()
