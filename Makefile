# `make demo` and `make test` need only Python >= 3.11; everything else goes into .venv.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install -qq --disable-pip-version-check --constraint constraints.txt

PIP_OLDEST := $(VENV)-oldest/bin/python -m pip install -qq --disable-pip-version-check \
              --constraint constraints-oldest.txt
TOOLS_OLDEST := hypothesis pandas polars pyarrow pytest sybil

PUBLIC := $(addprefix sklearn_g2d/,_base.py avid/_detector.py g2d/_detector.py adapters.py \
          calibration.py export.py inspection.py metrics.py model_selection.py \
          persistence.py callbacks.py dask.py) \
          $(wildcard $(addprefix sklearn_g2d/,datasets/*.py display/*.py features/*.py \
          patches/*.py video/*.py))

# Tests that between them use every dependency.
OLDEST_TESTS := $(addprefix tests/test_,callbacks.py datasets.py display.py features.py \
                input.py onnx.py persistence.py properties.py video.py)

.PHONY: help demo test test-slow test-oldest package release-check lint docs docs-check format clean

help:
	@echo "make demo       see the detector beside PyOD's on real data (3 minutes)"
	@echo "make test       run the tests"
	@echo "make test-slow  run the tests that take long, 24 minutes together"
	@echo "make test-oldest  run some tests with the oldest dependencies that are allowed"
	@echo "make package    build wheel and sdist, and use each away from its sources"
	@echo "make release-check  the same, and whether this version can be uploaded to PyPI"
	@echo "make lint       check style, types, docstrings, security and licences"
	@echo "make docs       build the site, with the gallery, into docs/_build/html"
	@echo "make docs-check look at the site with a browser, if there is one"
	@echo "make format     rewrite the sources in the house style"
	@echo "make clean      remove the environment and what the tools left"

# torch comes first and alone, so that nothing else pulls in another build of it.
$(VENV)/torch: constraints.txt
	@echo "Installing into $(VENV); the first time takes some minutes."
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	touch $@

$(VENV)/benchmarks: $(VENV)/torch pyproject.toml
	$(PIP) --editable '.[benchmarks]'
	touch $@

$(VENV)/dev: $(VENV)/torch pyproject.toml
	$(PIP) --editable '.[dev]'
	touch $@ $(VENV)/benchmarks

$(VENV)/docs: $(VENV)/dev
	$(PIP) --editable '.[docs]'
	touch $@

demo: $(VENV)/benchmarks
	$(PY) -m benchmarks.demo

# In two processes, each of one thread: these tests are many and small.
test: $(VENV)/dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/dev
	$(PY) -m pytest -m slow

$(VENV)-oldest/ready: constraints-oldest.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)-oldest
	$(PIP_OLDEST) torch
	$(PIP_OLDEST) --editable '.[images,onnx,plot,progress,video]' $(TOOLS_OLDEST)
	touch $@

test-oldest: $(VENV)-oldest/ready
	$(VENV)-oldest/bin/python -m pytest $(OLDEST_TESTS)

package: $(VENV)/dev
	$(PY) .ci/package.py

release-check: $(VENV)/dev
	$(PY) .ci/package.py --release

lint: $(VENV)/dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m numpydoc lint $(PUBLIC)
	$(PY) -m piplicenses > $(VENV)/licences

# All pages are written (-a): a search index that is only added to forgets titles and index entries.
docs: $(VENV)/docs
	rm -rf docs/api
	$(PY) -m sphinx -W -a --keep-going -q docs docs/_build/html
	$(PY) docs/checks/links.py docs/_build/html

docs-check: docs
	$(PY) docs/checks/browser.py docs/_build/html

format: $(VENV)/dev
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:
	rm -rf $(VENV) $(VENV)-oldest build *.egg-info .pytest_cache .mypy_cache .ruff_cache demo \
	    docs/_build docs/api docs/auto_examples
