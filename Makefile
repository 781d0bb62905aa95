# make up: everything that is needed, then freehold up. make test and make check add what only they need.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
LOCK := .venv-lock/bin/uv pip compile --no-config --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-annotate --no-header --quiet $(LOCK_FLAGS) pyproject.toml --group build

.PHONY: up down hub test test-vllm check bench soak lock

up: .venv/.base
	@$(BIN)/freehold up

down: .venv/.base
	@$(BIN)/freehold down

# What freehold pull needs.
hub: .venv/.base
	$(PIP) --require-hashes -r requirements-hub.lock

test: .venv/.test
	$(BIN)/pytest $(PYTEST_FLAGS)

# The real vLLM on the CPU, in an environment as users get it: 3.6 GB and two minutes, once; then some minutes of tests.
test-vllm: .venv/.vllm
	FREEHOLD_VLLM="$$(echo $(CURDIR)/.venv/vllm/.freehold/engines/vllm-*/bin/python)" $(BIN)/pytest -m vllm $(PYTEST_FLAGS)

check: .venv/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python tools/rooms.py --check
	$(BIN)/python tools/scores.py --check
	$(BIN)/python tools/quantization.py --check
	$(BIN)/python tools/claims.py --check
	$(BIN)/python tools/base_size.py

bench: .venv/.test
	for script in bench/*.py; do $(BIN)/python $$script || exit; done

# The gateway under mixed load, each request held against its record, memory watched. Needs gcc.
MINUTES ?= 1
soak: .venv/.base
	$(BIN)/python bench/gateway/soak.py --minutes $(MINUTES)

# The newest versions that pyproject.toml allows: make lock LOCK_FLAGS=--upgrade
lock: .venv-lock/bin/uv
	$(LOCK) --output-file requirements.lock
	$(LOCK) --extra hub --constraint requirements.lock --output-file requirements-hub.lock
	$(LOCK) --extra test --extra check --constraint requirements-hub.lock --output-file requirements-test.lock

# The stamps: what they stand for is installed, and newer than the files it follows from.
.venv/.base: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP) --require-hashes -r requirements.lock
	$(PIP) --no-index --no-deps --no-build-isolation --editable .
	@touch $@

.venv/.test: .venv/.base requirements-test.lock
	$(PIP) --require-hashes -r requirements-test.lock
	@touch $@

.venv/.vllm: .venv/.test
	mkdir -p .venv/vllm && touch .venv/vllm/freehold.toml
	cd .venv/vllm && ../bin/freehold engine install vllm
	@touch $@

.venv-lock/bin/uv:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --disable-pip-version-check uv
