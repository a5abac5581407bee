# make run    the embedded run, from nothing to the final table     make test   lint, types, layering and all tests
# make lint   ruff and basedpyright only                            make bench  the benchmarks of docs/benchmarks.md
# make lock   pin the requirement files anew                        make clean  remove .venv, caches and outputs
# make audit  known vulnerabilities of the pins                     make chaos  runs that are hurt on purpose
# make docs   the documentation site, in build/site
# Variables: PYTHON (3.11 or newer), ARGS (for run, bench and chaos), TESTS (for test), VENV.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
TESTS ?=
UV_VERSION := 0.13.9
BIN := $(VENV)/bin

export RAY_USAGE_STATS_ENABLED ?= 0
export VLLM_NO_USAGE_STATS ?= 1
export DO_NOT_TRACK ?= 1

.PHONY: run test chaos docs lint format audit bench lock defaults clean
.DELETE_ON_ERROR:

run: $(VENV)/.cpu.stamp
	$(BIN)/python -m next_ray.run $(ARGS)

# Threads are pinned, Ray asks for a token and the hub stays out, so that tests behave alike everywhere.
test: export OMP_NUM_THREADS := 1
test: export TOKENIZERS_PARALLELISM := false
test: export HF_HUB_OFFLINE := 1
test: export AWS_EC2_METADATA_DISABLED := true
test: export RAY_AUTH_MODE := token
test: export RAY_AUTH_TOKEN_PATH := $(abspath $(VENV))/.ray-test-token
test: lint $(VENV)/.ray-test-token
	$(if $(TESTS),$(BIN)/python -m pytest $(TESTS),$(BIN)/python tests/side_by_side.py)

# Runs of tiny that are hurt on purpose, and whether their books balance; docs/reliability.md has the figures.
chaos: $(VENV)/.dev.stamp
	$(BIN)/python -m tests.chaos $(ARGS)

# Pages, settings and Python API; a link or anchor that leads nowhere is an error.
docs: $(VENV)/.dev.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "the site is in build/site; open build/site/index.html"

lint: $(VENV)/.dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

# Known vulnerabilities of the pinned requirements; without a network to the advisory database it says so and passes.
audit: $(VENV)/.uv.stamp
	$(BIN)/python requirements/audit.py

format: $(VENV)/.dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.bench.stamp
	$(BIN)/python -m benchmarks $(ARGS)

$(VENV)/.uv.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "next_ray needs Python 3.11 or newer; $(PYTHON) is older. Name another: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv==$(UV_VERSION)
	@touch $@

# Each file is a full set of exact versions, so nothing is resolved here; dev and bench contain cpu.
$(VENV)/.%.stamp: requirements/%.txt pyproject.toml | $(VENV)/.uv.stamp
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r $<
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@

$(VENV)/.ray-test-token: | $(VENV)/.uv.stamp
	@umask 077 && $(BIN)/python -c 'import secrets; print(secrets.token_hex(32), end="")' > $@

# The present pins are kept where they still fit; UPGRADE=--upgrade moves them all.
LOCK = $(BIN)/uv pip compile pyproject.toml --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_31 \
	--override requirements/override.txt --no-header --no-annotate --no-emit-index-url $(UPGRADE)
lock: $(VENV)/.uv.stamp
	$(LOCK) --extra cpu -o requirements/cpu.txt > /dev/null
	$(LOCK) --extra cpu --extra trackers --extra docs --extra dev -c requirements/cpu.txt -o requirements/dev.txt > /dev/null
	$(LOCK) --extra cpu --extra trackers --extra docs --extra dev --extra bench -c requirements/dev.txt -o requirements/bench.txt > /dev/null
	$(LOCK) --extra gpu -o requirements/gpu.txt > /dev/null

# jobs/tiny.yaml spells out the defaults of next_ray/config/ below its comment.
defaults: $(VENV)/.cpu.stamp
	{ grep '^#' jobs/tiny.yaml; $(BIN)/python -c 'from next_ray.config import Config; from next_ray.settings import to_yaml; print(to_yaml(Config()), end="")'; } > jobs/tiny.yaml.new
	mv jobs/tiny.yaml.new jobs/tiny.yaml

clean:
	rm -rf $(VENV) outputs build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find next_ray tests -name __pycache__ -type d -prune -exec rm -rf {} +
