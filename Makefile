# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check

.PHONY: help demo serve test browser chaos netfaults lint types format proto clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/.has-base  ## generate text on eight simulated instances that pool their KV
	$(BIN)/distkv generate --mesh cpu-8 --block-size 16 --num-blocks 20 --max-num-seqs 8 \
	  --max-tokens 48 --seed 1 --stats --prompt-file examples/long_prompt.txt \
	  "It is a truth universally acknowledged, that" "In the beginning" "Emma was not sorry to"

serve: .venv/.has-base  ## serve the tiny model: gRPC on port 50051, OpenAI's interface and a live page on 8000
	$(BIN)/distkv serve tiny --mesh cpu-8 --block-size 16 --num-blocks 64

test: .venv/.has-test  ## run all tests, two at a time
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

browser: .venv/.has-test  ## test the live page in Chromium
	@command -v chromium chromium-browser google-chrome chrome >/dev/null || \
	  { echo "no Chromium is installed: apt-get install chromium" >&2; exit 1; }
	$(BIN)/python -m pytest tests/browser

chaos: .venv/.has-test  ## kill and stop processes of a service for 3 minutes, under load
	$(BIN)/python -m benchmarks.chaos --minutes 3

netfaults: .venv/.has-test  ## cut, slow and lose the network between three hosts; needs root and iptables
	$(BIN)/python -m benchmarks.network_faults $(FAULTS)

lint: .venv/.has-dev  ## check style and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv/.has-dev  ## check types
	$(BIN)/pyright

format: .venv/.has-dev  ## repair what style and format can repair by themselves
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

proto: .venv/.has-dev  ## make the Python code of serve/proto again
	$(BIN)/python -m serve.proto.make

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

# Kernels and whole steps, compiled for devices that are not here. Each in an environment of its own:
# with a compiler for devices every other run would look for the devices.
AOT := JAX_PLATFORMS=cpu JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1

aot-tpu: .cache/aot-tpu/.installed  ## compile for TPUs without one
	$(AOT) .cache/aot-tpu/bin/python -m pytest tests/aot/test_tpu.py

aot-gpu: .cache/aot-gpu/.installed  ## compile for H100 without one
	$(AOT) .cache/aot-gpu/bin/python -m pytest tests/aot/test_gpu.py

aot-triton: .cache/aot-triton/.installed  ## compile for A100 without one, and run the interpreter
	$(AOT) TRITON_INTERPRET=1 .cache/aot-triton/bin/python -m pytest tests/aot/test_triton_numerics.py
	$(AOT) .cache/aot-triton/bin/python -m pytest tests/aot/test_triton.py

.cache/aot-%/.installed: pyproject.toml
	@echo "installing the project and its 'aot-$*' tools into .cache/aot-$* (some minutes the first time)"
	@$(PYTHON) -m venv .cache/aot-$*
	@.cache/aot-$*/bin/python -m pip install -qq --disable-pip-version-check --editable '.[aot-$*]'
	@touch $@
