"""Make the rendered site independent of the network and of a server: python nbs/site.py _docs

KaTeX comes from npm into the site instead of from a CDN, web fonts are left out, and the search index is a script, since a page opened as a file may not fetch.
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


if __name__ == "__main__":
    main(Path(sys.argv[1]))
