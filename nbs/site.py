"""Make the rendered site independent of the network and of a server: python nbs/site.py _docs

Links between pages are checked, pictures get a text, and API entries a link to their source, which becomes part of the site. KaTeX comes from npm into the site instead of from a CDN, web fonts are left out, and the search index is a script, since a page opened as a file may not fetch.
"""

import ast
import html
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

ROOT = Path(__file__).parents[1]
KATEX = "0.16.11"
CDN = f"https://cdn.jsdelivr.net/npm/katex@{KATEX}/dist"
FETCH = 'const r = await fetch(offset + "search.json");\n      index = await r.json();'
SCRIPT = """index = await new Promise((found, failed) => {
        const script = document.createElement("script");
        script.src = offset + "search.js"; script.onload = () => found(window.searchIndex); script.onerror = failed;
        document.head.append(script);
      });"""


def replace(path: Path, old: str, new: str) -> None:
    "Replace a text that must be there."
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{path} has changed: {old!r} is missing"
    path.write_text(text.replace(old, new), encoding="utf-8")


def broken_links(site: Path) -> list[str]:
    "List the links between pages whose page or anchor is missing."
    pages = {path.name: path.read_text(encoding="utf-8") for path in site.glob("*.html")}
    pages |= {f"source/{path.name}": path.read_text(encoding="utf-8") for path in (site / "source").glob("*.html")}
    anchors = {name: set(re.findall(r'id="([^"]+)"', text)) for name, text in pages.items()}
    found = []
    for name, text in pages.items():
        pictures = [picture for picture in re.findall(r'<img[^>]*src="([^"]+)"', text) if not picture.startswith("data:") and not (site / name).parent.joinpath(picture).exists()]
        found += [f"{name}: {picture}" for picture in pictures]
        for link in set(re.findall(r'<a[^>]*href="([^"]+)"', text)):
            target, _, anchor = link.partition("#")
            target = target.removeprefix("./") or name
            missing = not (site / target).exists() or (anchor and anchor not in anchors.get(target, {anchor}))
            if missing and not re.match(r"[a-z]+:", link):
                found.append(f"{name}: {link}")
    return sorted(found)


def describe_pictures(text: str) -> str:
    "Give each picture of a page the paragraph before it as its text."
    parts, before = re.split(r'(<img src="data:[^>]*>)', text), ""
    for n, part in enumerate(parts):
        if not part.startswith('<img src="data:'):
            paragraphs = re.findall(r"<p>(.*?)</p>", part, re.DOTALL)
            before = html.unescape(re.sub(r"<[^>]+>", "", paragraphs[-1])) if paragraphs else before
        elif "alt=" not in part:
            parts[n] = part.replace("<img ", f'<img alt="{html.escape(" ".join(before.split())[:200])}" ', 1)
    return "".join(parts)


def definitions(module: Path) -> dict[str, int]:
    "Return the line of each function, class and method of a module."
    found = {}
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node.lineno
            found |= {f"{node.name}.{own.name}": own.lineno for own in node.body if isinstance(own, ast.FunctionDef)}
    return found


def link_sources(site: Path) -> int:
    "Render the modules, and link each API entry to its definition; the number of links."
    (site / "source").mkdir()
    count = 0
    for notebook in sorted((ROOT / "nbs").glob("*.ipynb")):
        exported = re.search(r"#\| default_exp (\w+)", notebook.read_text(encoding="utf-8"))
        page = site / f"{notebook.stem}.html"
        if not exported or not page.exists():
            continue
        module = ROOT / f"domain_embed/{exported[1]}.py"
        formatter = HtmlFormatter(full=True, title=module.name, lineanchors="L", anchorlinenos=True, linenos="inline", wrapcode=True)
        (site / f"source/{module.stem}.html").write_text(highlight(module.read_text(encoding="utf-8"), PythonLexer(), formatter), encoding="utf-8")
        text = page.read_text(encoding="utf-8")
        for name, line in definitions(module).items():
            heading = f">{name}</h"
            text, entries = re.subn(rf"({re.escape(heading)}\d>)", rf'\1<a class="source" href="source/{module.stem}.html#L-{line}">source</a>', text, count=1)
            count += entries
        page.write_text(text, encoding="utf-8")
    return count


def main(site: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "--silent", f"katex@{KATEX}", "--pack-destination", folder], check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as package:
            package.extractall(folder, [m for m in package.getmembers() if m.name.startswith("package/dist/")], filter="data")
        shutil.move(Path(folder) / "package/dist", site / "katex")
    for page in site.glob("*.html"):
        if CDN in page.read_text(encoding="utf-8"):
            replace(page, CDN, "katex")
        page.write_text(describe_pictures(page.read_text(encoding="utf-8")), encoding="utf-8")
    assert link_sources(site) > 300
    for theme in (site / "site_libs/themes").glob("*.css"):
        text = theme.read_text(encoding="utf-8")
        theme.write_text(re.sub(r"@import url\(https://fonts[^)]*\);", "", text), encoding="utf-8")
        assert "fonts.googleapis" not in theme.read_text(encoding="utf-8"), theme
    index = json.dumps(json.loads((site / "search.json").read_text(encoding="utf-8")), ensure_ascii=False)
    (site / "search.js").write_text(f"window.searchIndex = {index};\n", encoding="utf-8")
    replace(site / "site_libs/smalldocs.js", FETCH, SCRIPT)
    broken = broken_links(site)
    assert not broken, broken


if __name__ == "__main__":
    main(Path(sys.argv[1]))
