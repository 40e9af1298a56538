"""Make the rendered site independent of the network and of a server: python nbs/site.py _docs

Links between pages are checked. KaTeX comes from npm into the site instead of from a CDN, web fonts are left out, and the search index is a script, since a page opened as a file may not fetch.
"""

import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

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
    anchors = {name: set(re.findall(r'id="([^"]+)"', text)) for name, text in pages.items()}
    found = []
    for name, text in pages.items():
        for link in set(re.findall(r'<a[^>]*href="([^"]+)"', text)):
            target, _, anchor = link.partition("#")
            target = target.removeprefix("./") or name
            missing = not (site / target).exists() or (anchor and anchor not in anchors.get(target, {anchor}))
            if missing and not re.match(r"[a-z]+:", link):
                found.append(f"{name}: {link}")
    return sorted(found)


def main(site: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "--silent", f"katex@{KATEX}", "--pack-destination", folder], check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as package:
            package.extractall(folder, [m for m in package.getmembers() if m.name.startswith("package/dist/")], filter="data")
        shutil.move(Path(folder) / "package/dist", site / "katex")
    for page in site.glob("*.html"):
        if CDN in page.read_text(encoding="utf-8"):
            replace(page, CDN, "katex")
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
