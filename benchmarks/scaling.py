"""Time and peak memory of every part that meets the whole corpus, at sizes up to a million passages.

python benchmarks/scaling.py parse FOLDER ... [--files 2000]              reads files of mixed types in one process and in all, and compares
python benchmarks/scaling.py mixed FOLDER TARGET [--files 2000]             writes real pages as HTML, Markdown, PDF, Word and Excel files, in turns
python benchmarks/scaling.py corpus TEXTS.arrow FOLDER ...                passages of real documents, one text a row
python benchmarks/scaling.py measure TEXTS.arrow [--sizes N ...] [--parts NAME ...] [--out FILE]

FOLDER: Debian's documentation packages were used (/usr/share/doc/linux-doc-6.1, postgresql-doc-15, perl-doc). Beyond the number of real passages, texts are repeated with two fifths of their words replaced by others of the corpus. Each part runs in a process of its own; memory is its peak
resident size, less that of a process that has only imported what it needs, and without pages of files that are mapped. Where a part takes vectors as given, they are random
points around 2,000 centres.
"""

import argparse
import json
import multiprocessing
import resource
import shutil
import sys
import tempfile
import textwrap
import threading
import time
import zipfile
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import numpy as np
import pyarrow as pa

DIMENSIONS = 384


class Texts(Sequence):
    "A column of an Arrow file; nothing is held in memory."

    def __init__(self, path: Path, size: int):
        self.column = pa.ipc.open_file(pa.memory_map(str(path))).read_all().column("text")
        self.size, self.rng = size, np.random.default_rng(0)
        self.vocabulary = " ".join(self.column[n].as_py() for n in range(0, len(self.column), max(1, len(self.column) // 2000))).split()

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, number: int) -> str:
        if number >= self.size:
            raise IndexError(number)
        text = self.column[number % len(self.column)].as_py()
        if number < len(self.column):
            return text
        rng, words = np.random.default_rng(number), text.split()
        for place in rng.integers(0, max(1, len(words)), 2 * len(words) // 5):
            words[place] = self.vocabulary[rng.integers(len(self.vocabulary))]
        return " ".join(words)


def vectors(rows: int, seed: int = 0) -> np.ndarray:
    "Unit vectors around centres, in a file that is mapped."
    file = tempfile.NamedTemporaryFile(suffix=".npy")  # noqa: SIM115  (lives as long as the process)
    found = np.lib.format.open_memmap(file.name, mode="w+", dtype=np.float32, shape=(rows, DIMENSIONS))
    rng, centres = np.random.default_rng(seed), np.random.default_rng(9).normal(size=(2_000, DIMENSIONS))
    for start in range(0, rows, 16_384):
        size = min(16_384, rows - start)
        block = (centres[rng.integers(0, len(centres), size)] + rng.normal(size=(size, DIMENSIONS))).astype(np.float32)
        found[start : start + len(block)] = block / np.linalg.norm(block, axis=1, keepdims=True)
    found.flush()
    KEPT.append(file)
    return np.load(file.name, mmap_mode="r")


KEPT: list = []  # files that are mapped


def near_duplicates(texts: Texts) -> Callable[[], object]:
    from domain_embed.near_duplicates import near_duplicates

    return lambda: near_duplicates(texts)


def bm25(texts: Texts) -> Callable[[], object]:
    from domain_embed.lexical import bm25_index, bm25_top_k

    return lambda: bm25_top_k([texts[n] for n in range(100)], bm25_index(texts), 100)


def lexical(texts: Texts) -> Callable[[], object]:
    from domain_embed.lexical_dimensions import fit_lexical

    return lambda: fit_lexical(texts, 1536)


def mining(texts: Texts) -> Callable[[], object]:
    from domain_embed.search import search

    passages, queries = vectors(len(texts)), np.array(vectors(2_000, 1))
    return lambda: search(queries, passages, 100)


def index(texts: Texts) -> Callable[[], object]:
    from domain_embed.beir import Passage
    from domain_embed.catalog import forget_unseen, is_known, open_catalog
    from domain_embed.document_units import Unit
    from domain_embed.index import cut_shards, update_shards
    from domain_embed.shards import remove_dead

    folder = Path(tempfile.mkdtemp())
    rng = np.random.default_rng(0)

    def work() -> None:
        catalog, run = open_catalog(folder / "catalog.sqlite")
        units = (Unit(f"d{n}", "corpus", (Passage(f"d{n}", f"d{n}", "", texts[n], language="en"),)) for n in range(len(texts)))
        embedded = ((own, rng.normal(size=(len(own), DIMENSIONS)).astype(np.float32)) for own in cut_shards(units, lambda unit: is_known(catalog, run, unit)))
        update_shards(folder, catalog, run, embedded)
        forget_unseen(catalog, run)
        remove_dead(folder, catalog)

    return work


def faiss_index(texts: Texts) -> Callable[[], object]:
    from domain_embed.beir import Passage
    from domain_embed.document_units import Unit
    from domain_embed.shards import shard_path, write_shard
    from domain_embed.vector_index import build_index, save_index

    folder, of_passages = Path(tempfile.mkdtemp()), vectors(len(texts))
    for number, start in enumerate(range(0, len(texts), 4_096)):
        block = of_passages[start : start + 4_096]
        write_shard(shard_path(folder, number), [Unit(f"d{start + n}", "", (Passage(f"d{start + n}", "", "", ""),)) for n in range(len(block))], block, with_text=False)
    paths = sorted(folder.glob("part-*.parquet"))

    def work() -> str:
        built = build_index(paths, len(texts), np.array(vectors(200, 1)))
        save_index(folder / "index.faiss", built)
        return f"{built.kind}, recall@10 {built.recall:.3f}, effort {built.effort}, {(folder / 'index.faiss').stat().st_size / 1e6:.0f} MB"

    return work


def sample(texts: Texts) -> Callable[[], object]:
    from domain_embed.beir import Passage, write_passages
    from domain_embed.documents import read_corpus
    from domain_embed.models import load_model
    from domain_embed.samples import Sample

    path = Path(tempfile.mkdtemp()) / "corpus.jsonl"
    write_passages(path, (Passage(f"d{n}", f"d{n}", "", texts[n]) for n in range(len(texts))))
    tokenizer = load_model("embedded", max_length=256).tokenizer
    return lambda: str(len(read_corpus(path, tokenizer, 200, sample=Sample(5_000, seed=42)).passages))


def texts_alone(texts: Texts) -> Callable[[], object]:
    return lambda: sum(len(text) for text in texts)


PARTS = {"texts alone": texts_alone, "near duplicates": near_duplicates, "BM25": bm25, "lexical dimensions": lexical, "mining": mining, "index": index, "FAISS": faiss_index, "sample of 5,000": sample}


def anonymous() -> float:
    "This process's resident memory without mapped files, MiB."
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) / 1024


def watch(stop: threading.Event, found: list[float]) -> None:
    "Sample the memory until the work has ended."
    while not stop.is_set():
        found.append(anonymous())
        time.sleep(0.02)


def measure(part: str, path: Path, size: int, out: "multiprocessing.connection.Connection") -> None:
    "Run one part in this process."
    work = PARTS[part](Texts(path, size))
    before, stop, seen = anonymous(), threading.Event(), [0.0]
    thread = threading.Thread(target=watch, args=(stop, seen))
    thread.start()
    start = time.monotonic()
    try:
        note = work()
    finally:
        seconds = time.monotonic() - start
        stop.set()
        thread.join()
    out.send({"part": part, "passages": size, "seconds": round(seconds, 2), "mib": round(max(seen) - before), "mib_all": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024), "note": note if isinstance(note, str) else ""})


def run_measure(options: argparse.Namespace) -> None:
    context = multiprocessing.get_context("spawn")
    for part in options.parts:
        for size in options.sizes:
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=measure, args=(part, options.texts, size, there))
            process.start()
            there.close()
            try:
                row = here.recv()
            except EOFError:
                row = {"part": part, "passages": size, "note": "failed"}
            process.join()
            print(json.dumps(row), flush=True)
            if options.out:
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")


def run_corpus(options: argparse.Namespace) -> None:
    from domain_embed.chunking import token_counter
    from domain_embed.document_units import CutRules, read_units
    from domain_embed.models import load_model

    rules = CutRules(token_counter(load_model("embedded", max_length=256).tokenizer), passage_tokens=200)
    schema = pa.schema([("text", pa.string())])
    with pa.OSFile(str(options.texts), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for folder in options.folders:
            for unit in read_units(folder, rules):
                if unit.passages:
                    writer.write_table(pa.table({"text": [p.text for p in unit.passages]}, schema=schema))
    print(f"{pa.ipc.open_file(pa.memory_map(str(options.texts))).read_all().num_rows:,} passages")


DOCUMENT = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"


def write_pdf(path: Path, paragraphs: list[str]) -> None:
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

    lines = [line for paragraph in paragraphs for line in [*textwrap.wrap(paragraph, 90), ""]]
    with PdfPages(path) as pages:
        for start in range(0, max(1, len(lines)), 55):
            figure = Figure(figsize=(8.3, 11.7))
            figure.text(0.08, 0.95, "\n".join(lines[start : start + 55]), va="top", size=9, parse_math=False)
            pages.savefig(figure)


def write_word(path: Path, paragraphs: list[str]) -> None:
    body = "".join(f"<w:p><w:r><w:t>{escape(paragraph)}</w:t></w:r></w:p>" for paragraph in paragraphs)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", f'<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"><Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Override PartName="/word/document.xml" ContentType="{DOCUMENT}"/></Types>')  # fmt: skip
        archive.writestr("_rels/.rels", f'<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r1" Type="{OFFICE}" Target="word/document.xml"/></Relationships>')  # fmt: skip
        archive.writestr("word/document.xml", f'<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body>{body}</w:body></w:document>')


def write_sheet(path: Path, paragraphs: list[str]) -> None:
    import openpyxl

    book = openpyxl.Workbook()
    for row in [("number", "text"), *enumerate(paragraphs)]:
        book.active.append(row)
    book.save(path)


def run_mixed(options: argparse.Namespace) -> None:
    from domain_embed.reading import find_files, read_document

    files = [path for path in find_files(options.folder) if path.suffix == ".html"][: options.files]
    options.target.mkdir(parents=True)
    for number, path in enumerate(files):
        paragraphs, target = [block.text for document in read_document(path, path.name) for block in document.blocks], options.target / f"{number:04}"
        kind = number % 5
        if kind == 0:
            shutil.copyfile(path, target.with_suffix(".html"))
        elif kind == 1:
            target.with_suffix(".md").write_text("\n\n".join(paragraphs), encoding="utf-8")
        else:
            write, suffix = ((write_pdf, ".pdf"), (write_word, ".docx"), (write_sheet, ".xlsx"))[kind - 2]
            write(target.with_suffix(suffix), paragraphs)


def run_parse(options: argparse.Namespace) -> None:
    from domain_embed.reading import SUFFIXES, find_files
    from domain_embed.reading_pool import read_files

    files = [path for folder in options.folders for path in find_files(folder) if path.suffix in SUFFIXES][:: max(1, options.step)][: options.files]
    names, times = [str(path) for path in files], {1: [], 0: []}
    for _ in range(3):
        for workers in times:
            start = time.monotonic()
            read_files(files, names, workers=workers, desc="")
            times[workers].append(time.monotonic() - start)
    one, every = (sorted(times[workers])[1] for workers in (1, 0))
    print(f"{len(files)} files: one process {one:.1f} s, all cores {every:.1f} s: {one / every:.2f}×")


def main() -> None:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(dest="command", required=True)
    parse = commands.add_parser("parse")
    parse.add_argument("folders", nargs="+", type=Path)
    parse.add_argument("--files", type=int, default=2000)
    parse.add_argument("--step", type=int, default=1)
    mixed = commands.add_parser("mixed")
    mixed.add_argument("folder", type=Path)
    mixed.add_argument("target", type=Path)
    mixed.add_argument("--files", type=int, default=2000)
    corpus = commands.add_parser("corpus")
    corpus.add_argument("texts", type=Path)
    corpus.add_argument("folders", nargs="+", type=Path)
    found = commands.add_parser("measure")
    found.add_argument("texts", type=Path)
    found.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    found.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    found.add_argument("--out", type=Path)
    options = top.parse_args()
    {"parse": run_parse, "mixed": run_mixed, "corpus": run_corpus, "measure": run_measure}[options.command](options)


if __name__ == "__main__":
    sys.exit(main())
