# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check

.PHONY: help demo test lint types format clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/.has-base  ## generate text on eight simulated instances that pool their KV
	$(BIN)/distkv generate --mesh cpu-8 --block-size 16 --num-blocks 20 --max-num-seqs 8 \
	  --max-tokens 48 --seed 1 --stats --prompt-file examples/long_prompt.txt \
	  "It is a truth universally acknowledged, that" "In the beginning" "Emma was not sorry to"

test: .venv/.has-test  ## run all tests
	$(BIN)/python -m pytest

lint: .venv/.has-dev  ## check style and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv/.has-dev  ## check types
	$(BIN)/pyright

format: .venv/.has-dev  ## repair what style and format can repair by themselves
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## delete what can be made again, .venv too
	rm -rf .venv .cache .pytest_cache .ruff_cache .hypothesis build dist

.venv/bin/python:
	$(PYTHON) -m venv .venv

# One stamp per set of extras, so that a second run starts at once.
.venv/.has-base: pyproject.toml | .venv/bin/python
	@echo "installing the project into .venv (some minutes the first time)"
	@$(PIP) --editable .
	@touch $@

.venv/.has-%: pyproject.toml | .venv/bin/python
	@echo "installing the project and its '$*' tools into .venv (some minutes the first time)"
	@$(PIP) --editable '.[$*]'
	@touch $@
