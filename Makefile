# make demo     a first run: sets up .venv, trains on bundled data, draws the curves
# make test     installs the rest, checks style and types, runs the tests
# make test-all the same, and the tests that take minutes each
# make extras   what data and models named tfds/…, hf/… and clip/… need, trackers, notifications
# make notebook JupyterLab, with the notebook of results
# make bench    speed and memory beside a bare PyTorch loop and other trainers
# make bench-gpu speed on a GPU beside a bare PyTorch loop
# make format   puts the code into shape
# make help     this list

PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := demo
.PHONY: help demo extras test test-all lint format notebook bench bench-gpu

help:
	@sed -n 's/^# make/make/p' $(firstword $(MAKEFILE_LIST))

demo: .venv/core
	$(BIN)/python train.py test_cfg_digits_linear.yaml

extras: .venv/extras

# Two files of tests at a time.
test: .venv/test lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Three, as many wait for a cluster; in the order of the files, which keeps the longest off the end.
test-all: .venv/test lint
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --instafail -m "slow or not slow"

lint: .venv/test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy src *.py

format: .venv/test
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

notebook: .venv/notebook
	$(BIN)/jupyter lab notebooks/view_results.ipynb

bench: .venv/bench
	$(BIN)/python benchmarks/bench.py
	$(BIN)/python benchmarks/survival.py
	$(BIN)/python benchmarks/results.py
	$(BIN)/python benchmarks/inputs.py
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/recording.py
	$(BIN)/python benchmarks/start.py
	$(BIN)/python benchmarks/stacking.py
	$(BIN)/python benchmarks/workers.py

bench-gpu: .venv/bench
	$(BIN)/python benchmarks/gpu.py

# One stamp an installed set; pyproject.toml is the list.
FOR_extras := clip hf tfds track notify
FOR_test := $(FOR_extras) tensorflow
FOR_bench := $(FOR_test)
.venv/core: pyproject.toml | .venv/bin/uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r pyproject.toml
	@$(BIN)/python -c "import torchvision" || { echo \
	  "torchvision does not import: it was built for another torch than the one installed." \
	  "Delete .venv, and let one command install both."; exit 1; }
	@touch $@

.venv/test .venv/bench .venv/notebook .venv/extras: .venv/%: .venv/core
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r pyproject.toml \
	  $(addprefix --extra ,$(filter-out extras,$*) $(FOR_$*))
	@touch $@

# uv installs several times faster than pip; it comes from the same place. It compiles
# only on request, and uncompiled modules make every start slow where none can be written.
.venv/bin/uv:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo \
	  "$(PYTHON) is older than 3.11: name a newer one, make PYTHON=python3.12"; exit 1; }
	@echo "installing into .venv: some minutes, and several GB"
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo \
	  "no virtual environment: on Debian and Ubuntu, apt-get install python3-venv"; exit 1; }
	$(BIN)/pip install --quiet uv
