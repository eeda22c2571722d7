# Two commands matter: `make demo` and `make test`. Both make their own virtual environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Two pytest workers with one thread each, programs that they start too: the tests are sized for two cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: help demo test test-all test-reliability site lint format clean

help:
	@echo "make demo      install, train a small network on handwritten digits, compress it, print the table"
	@echo "make test      install, check style and types, run the tests"
	@echo "make test-all  the same with the slow tests, variations that take too long for every day"
	@echo "make test-reliability  make every file event and call fail, and count what is lost"
	@echo "make site      build the documentation as a site, in site/; a link that leads nowhere is an error"
	@echo "make lint      check style and types only"
	@echo "make format    let ruff rewrite the style"
	@echo "make clean     remove the virtual environment, caches and results"

demo: $(VENV)/.stamp-demo
	$(BIN)/rankwise demo -o demo-out

test: lint
	$(PYTEST) -m "not slow and not reliability"

test-all: lint
	$(PYTEST) -m ""

test-reliability: $(VENV)/.stamp-dev
	$(PYTEST) tests/reliability -m ""

site: $(VENV)/.stamp-site
	$(BIN)/properdocs build --strict

lint: $(VENV)/.stamp-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.stamp-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist demo-out site

# torch comes first and alone: the pinned version is taken where pip finds it (on Linux a local CPU wheel or the CPU index
# in PIP_EXTRA_INDEX_URL saves gigabytes of CUDA), and everything after finds it already installed.
$(VENV)/.stamp-torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	@touch $@

$(VENV)/.stamp-demo: $(VENV)/.stamp-torch pyproject.toml
	$(PIP) -e ".[demo,onnx]"
	@touch $@

$(VENV)/.stamp-site: $(VENV)/.stamp-demo
	$(PIP) -e ".[docs]"
	@touch $@

# torchvision and timm without their dependencies: torchvision's registry wheels ask for a torch of their own. Rankwise uses
# model definitions, data sets and transforms, and these work beside any torch (see rankwise/inputs/torchvision_shim.py).
$(VENV)/.stamp-dev: $(VENV)/.stamp-demo
	$(PIP) -e ".[dev,demo,onnx,executorch,bench,report]"
	$(PIP) --no-deps torchvision timm
	$(PIP) transformers peft
	@touch $@
