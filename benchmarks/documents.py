"""How much of 30 office files each reader keeps: five types, six files each, written here, so that every heading and text in them is known.

python benchmarks/documents.py [READER ...]      READER: markitdown, kreuzberg, unstructured, docling, each installed in this environment; without one: ours

"Headings" counts those that come out marked as headings (Markdown's #, or a title element), "texts" the paragraphs and cells whose words all come out in order.
"""

import csv
import io
import re
import sys
import tempfile
import time
import zipfile
from email.message import EmailMessage
from pathlib import Path

import openpyxl
from pptx import Presentation

WORDS = "pump valve pressure water motor filter gauge pipe seal bearing".split()


def sentence(n: int) -> str:
    return f"Step {n}: turn the {WORDS[n % 10]} {n} times until the {WORDS[(n + 3) % 10]} shows {n * 7} bar."


def write_files(folder: Path) -> dict[Path, tuple[list[str], list[str]]]:
    "Files, with their headings and texts."
    made = {}
    for k in range(6):
        heads, texts = [f"Chapter {k}{n} about {WORDS[n]}" for n in range(4)], [sentence(10 * k + n) for n in range(4)]
        rows = [[f"E{k}{n}", WORDS[n], sentence(40 + 10 * k + n)] for n in range(5)]
        cells = [cell for row in rows for cell in row]
        deck = Presentation()
        for head, text in zip(heads, texts, strict=True):
            slide = deck.slides.add_slide(deck.slide_layouts[1])
            slide.shapes.title.text, slide.placeholders[1].text_frame.text = head, text
            slide.notes_slide.notes_text_frame.text = f"Note: {text}"
        deck.save(path := folder / f"{k}.pptx")
        made[path] = heads, [*texts, *(f"Note: {t}" for t in texts)]
        book = openpyxl.Workbook()
        book.active.title = f"Errors {k}"
        for row in [["code", "part", "meaning"], *rows]:
            book.active.append(row)
        book.save(path := folder / f"{k}.xlsx")
        made[path] = [f"Errors {k}"], cells
        path = folder / f"{k}.csv"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["code", "part", "meaning"], *rows])
        made[path] = [], cells
        with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
            archive.writestr("mimetype", "application/epub+zip")
            archive.writestr("META-INF/container.xml", '<container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles><rootfile full-path="p.opf" media-type="application/oebps-package+xml"/></rootfiles></container>')  # fmt: skip
            items = "".join(f'<item id="i{n}" href="{n}.xhtml" media-type="application/xhtml+xml"/>' for n in range(4))
            spine = "".join(f'<itemref idref="i{n}"/>' for n in range(4))
            archive.writestr("p.opf", f'<package xmlns="http://www.idpf.org/2007/opf" version="3.0"><metadata xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>Book</dc:title></metadata><manifest>{items}</manifest><spine>{spine}</spine></package>')  # fmt: skip
            for n, (head, text) in enumerate(zip(heads, texts, strict=True)):
                archive.writestr(f"{n}.xhtml", f'<html xmlns="http://www.w3.org/1999/xhtml"><head><title>{head}</title></head><body><h1>{head}</h1><p>{text}</p></body></html>')
        path = folder / f"{k}.epub"
        path.write_bytes(buffer.getvalue())
        made[path] = heads, texts
        mail = EmailMessage()
        mail["Subject"], mail["From"], mail["To"] = heads[0], "kim@example.com", "ada@example.com"
        mail.set_content("\n\n".join(texts))
        path = folder / f"{k}.eml"
        path.write_bytes(mail.as_bytes())
        made[path] = heads[:1], texts
    return made


def ours(path: Path) -> tuple[list[str], str]:
    from domain_embed.reading_pool import read_files

    blocks = [b for d in read_files([path], [path.name]) for b in d.blocks]
    return [b.text for b in blocks if b.level], "\n".join(b.text for b in blocks)


def of_markdown(text: str) -> tuple[list[str], str]:
    return re.findall(r"^#+ *(.+)$", text, re.M), text


def markitdown(path: Path) -> tuple[list[str], str]:
    from markitdown import MarkItDown

    return of_markdown(MarkItDown().convert(str(path)).text_content)


def kreuzberg(path: Path) -> tuple[list[str], str]:
    from kreuzberg import ExtractionConfig, extract_file_sync

    try:
        config = ExtractionConfig(output_format="markdown")
    except TypeError:
        config = ExtractionConfig()
    return of_markdown(extract_file_sync(str(path), config=config).content)


def unstructured(path: Path) -> tuple[list[str], str]:
    from unstructured.partition.auto import partition

    elements = partition(filename=str(path))
    return [e.text for e in elements if e.category == "Title"], "\n".join(e.text for e in elements)


def docling(path: Path) -> tuple[list[str], str]:
    from docling.document_converter import DocumentConverter

    return of_markdown(DocumentConverter().convert(str(path)).document.export_to_markdown())


def squeezed(text: str) -> str:
    return re.sub(r"[\W_]+", " ", text).strip().lower()


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    made = write_files(folder)
    for reader in [globals()[name] for name in sys.argv[1:]] or [ours]:
        found: dict[str, list[int]] = {}
        errors, start = {}, time.perf_counter()
        for path, (heads, texts) in made.items():
            row = found.setdefault(path.suffix, [0, 0, 0, 0])
            try:
                titles, text = reader(path)
            except Exception as error:  # noqa: BLE001
                titles, text = [], ""
                errors[path.suffix] = type(error).__name__
            marked, whole = {squeezed(t) for t in titles}, squeezed(text)
            row[0] += sum(squeezed(h) in marked for h in heads)
            row[1] += len(heads)
            row[2] += sum(squeezed(t) in whole for t in texts)
            row[3] += len(texts)
        cells = [f"{a} of {b}, {c} of {d}" + (f" ({errors[kind]})" if kind in errors else "") for kind, (a, b, c, d) in found.items()]
        print(f"| {reader.__name__} | {' | '.join(cells)} | {time.perf_counter() - start:.1f} |   columns: {' '.join(found)}, seconds", flush=True)


if __name__ == "__main__":
    main()
