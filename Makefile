# make demo    every distribution of the shipped model: demo/sheet.png and demo/index.html
# make test    lint, format, types, tests
# make clean   remove what these two made, except the environment (rm -rf .venv does that)
#
# PyPI's torch for Linux carries gigabytes of CUDA. Without a GPU:
#     make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
TORCH_INDEX ?=

VENV := .venv
BIN := $(VENV)/bin
# Pip is called from outside: it then needs no python3-venv package (ensurepip), which Debian leaves out.
INSTALL := $(PYTHON) -m pip --python $(BIN)/python install --quiet --constraint constraints.txt \
           $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: demo test clean

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py --out demo

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv --without-pip $(VENV)
	@echo "installing (torch is large: this takes some minutes the first time)"
	$(INSTALL) --editable '.[serve]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) --editable '.[dev,data,released,tensorboard,serve,ray,browser,api-tests]'
	touch $@

clean:
	rm -rf demo build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
