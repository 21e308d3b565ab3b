# Every target sets up what it needs, the virtual environment included.
# Needed on the machine: Python 3.11 or newer with its venv module, make, and a package registry that pip can reach.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Arguments for pytest, as in: make test ARGS="-k remove -x"
ARGS ?=

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: venv
venv: $(STAMP) ## create .venv with everything in it (PYTHON=... chooses the interpreter)

# Made again whenever the dependencies change, or the version, which an installation remembers.
$(STAMP): pyproject.toml constraints/dev.txt sfroute/_version.py
	@.ci/make-venv $(VENV) dev constraints/dev.txt
	@touch $@

.PHONY: demo
demo: venv ## route 20,000 requests on a local cluster, kill a primary; let pods drain, crash and be evacuated
	@$(BIN)/sfroute demo

.PHONY: trace-demo
trace-demo: venv ## send requests through a gateway and show one as a trace (OTEL_* variables say where to)
	@$(BIN)/python examples/trace_demo.py

.PHONY: gateway-demo
gateway-demo: venv ## a reverse proxy, pods that count, restarts and kills; then it stays for curl until Ctrl-C
	@# A job of its own: Ctrl-C is for the demo, which ends in order, and not for make.
	@set -m; $(BIN)/python examples/gateway/demo.py --stay || exit $$?

.PHONY: test
test: venv ## run the tests on every server found on this machine
	$(BIN)/python -m pytest -m "not packaging" $(ARGS)

.PHONY: test-fast
test-fast: venv ## the same without the tests that take long
	$(BIN)/python -m pytest -m "not packaging and not slow" $(ARGS)

.PHONY: node-packages
node-packages: ## install ioredis, with which the tests run the example in Node.js; they skip it otherwise
	@.ci/node-packages examples/node

.PHONY: test-dashboards
test-dashboards: venv ## check the dashboard and the alerts with a real Prometheus
	@programs=$$(.ci/prometheus) && PATH="$$programs:$$PATH" $(BIN)/python -m pytest tests/dashboards $(ARGS)

.PHONY: test-faults
test-faults: venv ## break clusters under load and check every call; ARGS="--seed 7" repeats one run
	$(BIN)/python -m tests.faults $(ARGS)

MINUTES ?= 60
.PHONY: soak
soak: venv ## the same again and again for MINUTES (60), each time with another seed
	$(BIN)/python -m tests.faults --minutes $(MINUTES) $(ARGS)

BEHAVIOUR := tests/test_operations.py tests/test_scripts_in_router.py
OLD_BEHAVIOUR := $(BEHAVIOUR) tests/test_bad_input.py tests/test_scripts.py tests/test_script_safety.py \
	tests/test_state_scripts.py tests/test_acl.py tests/coherence/test_untracked.py

# A cluster with TLS, entered with no more rights than the documents give, and a single node, beside what `test` runs on.
.PHONY: test-servers
test-servers: venv ## run the tests of behaviour on Valkey 8.1 and Redis 6.2, with TLS and ACLs, and on a single node
	servers=$$(PYTHON=$(BIN)/python .ci/old-servers) && SFROUTE_TEST_SERVERS=$$servers \
		$(BIN)/python -m pytest -m "not slow" $(OLD_BEHAVIOUR) --deselect tests/test_acl.py::test_every_right_is_needed $(ARGS)
	program=$$(.ci/redis-server) && PATH="$$program:$$PATH" SFROUTE_TEST_SERVERS=redis70+secure,valkey91+single \
		$(BIN)/python -m pytest -m "not slow" $(BEHAVIOUR) $(ARGS)

.PHONY: fuzz
fuzz: MINUTES = 10
fuzz: venv ## send garbage to a router for MINUTES (10)
	SFROUTE_FUZZ_MINUTES=$(MINUTES) $(BIN)/python -m pytest tests/test_wire_fuzz.py \
		-k "whatever or cuts" --timeout 0 -s $(ARGS)

.PHONY: lint
lint: venv ## check style, formatting and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

.PHONY: format
format: venv ## let the formatter and the safe fixes of the linter rewrite the files
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: types
types: venv ## check the types: mypy --strict everywhere, pyright on the public API
	$(BIN)/mypy
	$(BIN)/pyright

.PHONY: docs-reference
docs-reference: venv ## write the configuration, the scripts and the drawings of docs/ anew, from the sources
	$(BIN)/python docs/reference_pages.py
	$(BIN)/python docs/drawings.py

.PHONY: hooks
hooks: venv ## let git run lint and types before each commit
	$(BIN)/pre-commit install

.PHONY: docs-cli
docs-cli: venv ## write docs/reference/cli.md anew: the options of every command, and a session really run
	$(BIN)/python docs/cli_sessions.py

# The site's tools have an environment of their own.
DOCS_VENV ?= .cache/venv-docs
DOCS_STAMP := $(DOCS_VENV)/.installed
SITE ?= .cache/site

$(DOCS_STAMP): pyproject.toml constraints/docs.txt constraints/dev.txt
	@.ci/make-venv $(DOCS_VENV) docs constraints/docs.txt constraints/dev.txt
	@touch $@

# NO_MKDOCS_2_WARNING: mkdocs-material tells everyone of a successor of mkdocs, which pyproject.toml excludes.
.PHONY: docs
docs: $(DOCS_STAMP) ## build the site of docs/ into .cache/site; a link that leads nowhere is an error
	@NO_MKDOCS_2_WARNING=true \
		$(DOCS_VENV)/bin/python -m mkdocs build --strict --config-file docs/site/mkdocs.yml --site-dir $(abspath $(SITE))
	@echo "$(SITE)/index.html"

.PHONY: api
api: venv ## write tests/public_api.txt anew: the public interface, which a test holds fast
	$(BIN)/python tests/public_api.py

AUDIT := .cache/venv-audit/bin

# --strict: a package of which the service of advisories knows nothing has not been looked at, and is a failure.
.PHONY: audit
audit: venv ## look up the dependencies among known vulnerabilities (needs the network: not part of ci)
	@[[ -x $(AUDIT)/pip-audit ]] || { $(BIN)/python -m venv .cache/venv-audit && $(AUDIT)/pip install -qq pip-audit; }
	$(AUDIT)/pip-audit --strict --progress-spinner off --no-deps --disable-pip -r constraints/dev.txt
	$(AUDIT)/pip-audit --strict --progress-spinner off --no-deps --disable-pip -r constraints/lowest.txt

.PHONY: build
build: venv ## build the wheel and the sdist into dist/
	rm -rf dist
	$(BIN)/python -m build --quiet
	@ls -l dist

.PHONY: wheel-test
wheel-test: venv ## install the built wheel into an empty environment and use it there
	$(BIN)/python -m pytest -m packaging $(ARGS)

.PHONY: test-lowest
test-lowest: ## run the tests with the lowest versions that pyproject.toml admits
	@.ci/make-venv .cache/venv-lowest test constraints/lowest.txt constraints/dev.txt
	.cache/venv-lowest/bin/python -m pytest -m "not packaging and not slow" $(ARGS)

# The contenders have an environment of their own.
BENCH_VENV ?= .cache/venv-bench
BENCH_STAMP := $(BENCH_VENV)/.installed

$(BENCH_STAMP): pyproject.toml constraints/bench.txt constraints/dev.txt sfroute/_version.py
	@.ci/make-venv $(BENCH_VENV) bench constraints/bench.txt constraints/dev.txt
	@touch $@

.PHONY: bench
bench: $(BENCH_STAMP) ## measure beside every peer, and write docs/benchmarks.md (needs a quiet machine)
	@$(BENCH_VENV)/bin/python benchmarks/suite.py $(ARGS)

.PHONY: bench-micro
bench-micro: $(BENCH_STAMP) ## the small parts that every call goes through, by pyperf; ARGS="--fast", ARGS="-o new.json"
	@$(BENCH_VENV)/bin/python benchmarks/micro.py --quiet $(ARGS)

.PHONY: bench-quick
bench-quick: $(BENCH_STAMP) ## the same in less than a minute: shows that it works, and rough figures
	@$(BENCH_VENV)/bin/python benchmarks/suite.py --quick $(ARGS)

.PHONY: ci
ci: ## everything that a change must pass
	@.ci/run

.PHONY: lock
lock: ## write constraints/dev.txt, bench.txt and docs.txt anew: the newest versions that pyproject.toml admits
	@.ci/lock

.PHONY: clean
clean: ## remove what was built, cached and installed here
	rm -rf examples/node/node_modules benchmarks/ioredis_peer/node_modules
	rm -rf $(VENV) .cache build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
