# TenSafe. `make` lists the targets. Everything runs in .venv, against the built and installed wheel.
PYTHON ?= python3.11
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Where to take torch from, for a machine without a GPU (README.md, "Installing").
TORCH_INDEX_URL ?=

# requirements/lock-cuda.txt on a machine with an NVIDIA GPU.
LOCK ?= requirements/lock.txt
LOCKS := $(LOCK) requirements/cookbook.txt
# The stamps carry digests of what they were made from: a deleted or restored file counts as a change.
DIGEST := sha256sum | cut -c1-16
LOCK_ID := $(shell cat $(LOCKS) | $(DIGEST))
SOURCE_ID := $(shell find functions gpu_tasks pyproject.toml README.md tools/build_wheel.py -type f \
	-not -name '*.pyc' -not -path '*.egg-info/*' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | $(DIGEST))
LOCKED := $(VENV)/.locked-$(LOCK_ID)
INSTALLED := $(VENV)/.installed-$(LOCK_ID)-$(SOURCE_ID)

# One thread per process is faster than many for the small tensors of the tests.
TESTING := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} TENSAFE_REQUIRE_INSTALLED=1

.PHONY: help install test test-fast lint lint-infra aws-local aws-all ministack images localstack sam-local cost demo compare bench function vllm-newest proto clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

install: $(INSTALLED)  ## make .venv, install the locked packages and the built wheel

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || \
		{ echo "TenSafe needs CPython 3.11: install it, or name it with make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(LOCKED): $(LOCKS) | $(PY)
	@echo "installing $$(cat $(LOCKS) | grep -c ==) locked packages into $(VENV) (a few minutes the first time)"
	@$(if $(TORCH_INDEX_URL),$(PIP) install -qq --no-deps --force-reinstall --index-url "$(TORCH_INDEX_URL)" \
		"$$(grep '^torch==' $(LOCK))")
	@$(PIP) install -qq --no-deps $(addprefix -r ,$(LOCKS))
	@$(PY) tools/check_torch.py
	@rm -f $(VENV)/.locked-* $(VENV)/.installed-*
	@touch $@

$(INSTALLED): $(LOCKED)
	@rm -rf dist
	@wheel=$$($(PY) tools/build_wheel.py dist); $(PIP) install --quiet --no-deps --no-index --force-reinstall "$$wheel"; \
		echo "installed $$wheel"
	@rm -f $(VENV)/.installed-*
	@touch $@

test: install lint lint-infra ministack  ## lint, then every test that this machine can run (what it cannot is skipped with the reason)
	@$(TESTING) tools/run_tests.sh

test-fast: install  ## unit and contract tests that are quick and open no sockets
	@$(TESTING) $(PY) -m pytest -q -m "not slow and not sockets and not docker and not gpu" tests/unit $(wildcard tests/contract)

lint: $(LOCKED)  ## ruff check, ruff format --check, mypy --strict
	@$(VENV)/bin/ruff check --quiet .
	@$(VENV)/bin/ruff format --quiet --check . || { $(VENV)/bin/ruff format --check . | head -20; exit 1; }
	@$(VENV)/bin/mypy

# Tools whose pins are not the service's have environments of their own, made anew when their list changes.
TOOL_ID = $(shell cat requirements/$(1).txt | $(DIGEST))
SAM := .cache/sam/.ready-$(call TOOL_ID,sam)
CHECKOV := .cache/checkov/.ready-$(call TOOL_ID,checkov)
MINISTACK := .cache/ministack/.ready-$(call TOOL_ID,ministack)

.cache/%:
	@name=$$(basename $(@D)); echo "making .cache/$$name"; rm -rf $(@D); $(PYTHON) -m venv $(@D); \
		$(@D)/bin/python -m pip --disable-pip-version-check install -qq --no-deps -r requirements/$$name.txt
	@touch $@

lint-infra: $(SAM) $(CHECKOV)  ## cfn-lint, sam validate and checkov over template.yaml and infra/
	@tools/lint_infra.sh

ministack: $(MINISTACK)  ## the environment of the emulator that tests deploy template.yaml to

images: install  ## build the images of the GPU tasks with buildah (root, Debian) and start them; IMAGE=name: one; ACCELERATOR=cuda
	@TENSAFE_REQUIRE_IMAGES=1 TENSAFE_IMAGES=$(IMAGE) TENSAFE_ACCELERATOR=$(ACCELERATOR) $(TESTING) $(PY) -m pytest -q -s -m images tests/integration/infra

localstack: install  ## the tests of the emulator on LocalStack; needs a Docker engine
	@$(TESTING) localstack/run.sh

sam-local: install ministack $(SAM)  ## shared tests over `sam local start-api`; needs a Docker engine
	@$(TESTING) localstack/sam_local.sh

aws-local: install ministack function  ## template.yaml on an emulator with real functions and tasks (MODEL=name=folder)
	@$(PY) -m tools.aws_local $(if $(MODEL),--model "$(MODEL)")

aws-all: install ministack $(SAM)  ## all tests on that emulator, as `make test`, and through SAM CLI all that it can
	@TENSAFE_SAM_LOCAL=all $(TESTING) $(PY) -m pytest -q tests/integration/aws

cost: install  ## write infra/cost.md from tools/prices.toml and the counted calls
	@$(PY) -m tools.cost

demo: install  ## fine-tune with differential privacy, sample, write a report (MODEL=hub id or path)
	@$(PY) examples/private_finetune.py $(if $(MODEL),--model "$(MODEL)")

compare: install  ## train the same text in every privacy mode, chart held-out loss against epsilon
	@$(PY) examples/compare_privacy.py $(if $(MODEL),--model "$(MODEL)")

bench: install  ## measure; ONLY=name runs one
	@$(PY) -m benchmarks $(if $(ONLY),--only "$(ONLY)")

function: install  ## build what Lambda runs into build/lambda (function/, function.zip)
	@$(PY) tools/build_function.py build/lambda --wheel dist/*.whl

vllm-newest: install  ## what the newest vLLM for CPU would break: the contract tests on it, in a venv of its own
	@$(PY) tools/vllm_newest.py

proto: $(LOCKED)  ## generate the protocol-buffer modules from the .proto files
	@test -x .cache/proto/bin/python || $(PYTHON) -m venv .cache/proto
	@.cache/proto/bin/python -m pip --disable-pip-version-check install --quiet --no-deps -r requirements/proto.txt
	@cd functions && find . -name '*.proto' -printf '%P\n' | LC_ALL=C sort | \
		xargs ../.cache/proto/bin/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=.

clean:  ## remove .venv, build output, caches, demo-out and compare-out
	@findmnt -rno TARGET | grep -F "$(CURDIR)/.cache/images/" | sort -r | xargs -r -n1 umount || true
	@rm -rf $(VENV) build dist .cache .aws-sam .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-out compare-out
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
