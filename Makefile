# Every target sets up what it needs, the virtual environment included.
# Needed on the machine: Python 3.11 or newer with its venv module, make, and a package registry that pip can reach.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

VENV ?= .venv
BIN := $(VENV)/bin
# Keep what Python compiles, whatever the shell says: the tests start it a thousand times.
unexport PYTHONDONTWRITEBYTECODE
STAMP := $(VENV)/.installed
# What the native part is compiled from.
NATIVE := sfroute/_native/heart.h $(addprefix sfroute/_native/,heart.c waiting.c misses.c leaving.c calls.c)
# Arguments for pytest, as in: make test ARGS="-k remove -x"
ARGS ?=

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: venv
venv: $(STAMP) ## create .venv with everything in it (PYTHON=... chooses the interpreter)

# Rebuilt when the dependencies change, the part to compile, or the version, which an installation records.
$(STAMP): pyproject.toml constraints/dev.txt sfroute/_version.py $(NATIVE) tools/build_native.py
	@.ci/make-venv $(VENV) dev constraints/dev.txt
	@touch $@

.PHONY: demo
demo: venv ## route 20,000 requests on a local cluster and kill a primary; then add, drain, crash and evacuate pods
	@$(BIN)/python examples/demo

.PHONY: trace-demo
trace-demo: venv ## send requests through a gateway and show one as a trace (OTEL_* variables say where to)
	@$(BIN)/python examples/trace_demo.py

.PHONY: gateway-demo
gateway-demo: venv ## a reverse proxy, pods that count, restarts and kills; then it stays for curl until Ctrl-C
	@# A job of its own: Ctrl-C is for the demo, which ends in order, and not for make.
	@set -m; $(BIN)/python examples/gateway/demo.py --stay || exit $$?

.PHONY: demo-polyglot
demo-polyglot: venv ## pods in Python, Node.js and Go behind Caddy, as far as these are here: restarts, a kill, no count is lost
	@programs=$$(.ci/proxies) || programs=; PATH="$$programs:$$PATH" $(BIN)/python examples/polyglot/polyglot.py

# How many test files run at a time. Tests mostly wait: of four seconds of theirs, one is a core's, so eight fit on two
# cores. Use FILES=1 with a debugger.
FILES ?= 8
# The slow ones begin first (tests/conftest.py), so that none is left alone at the end.
AT_ONCE = $(if $(filter-out 1,$(FILES)),-n $(FILES) --dist loadfile --no-loadscope-reorder)

.PHONY: test
test: venv ## run the tests on every server found on this machine
	$(BIN)/python -m pytest -m "not packaging" $(AT_ONCE) $(ARGS)

.PHONY: test-fast
test-fast: venv ## the same on one server, without the tests that take long
	SFROUTE_TEST_SERVERS=$${SFROUTE_TEST_SERVERS:-valkey91} $(BIN)/python -m pytest -m "not packaging and not slow" $(AT_ONCE) $(ARGS)

.PHONY: test-scale
test-scale: venv ## run the tests of scale at their full size, which `make test` runs smaller
	SFROUTE_TEST_SIZE=full $(BIN)/python -m pytest -m scale $(AT_ONCE) $(ARGS)

.PHONY: node-packages
node-packages: ## install ioredis, which the tests of the Node.js example need; without it they skip
	@.ci/node-packages examples/node

.PHONY: test-dashboards
test-dashboards: venv ## check the dashboard, its page and the alerts with a real Prometheus and a Chromium
	@programs=$$(.ci/prometheus) && .ci/chromium >/dev/null && \
		PATH="$$programs:$$PATH" $(BIN)/python -m pytest tests/dashboards $(ARGS)

.PHONY: dashboard-pictures
dashboard-pictures: venv ## take the pictures of the dashboard in docs/images again
	@programs=$$(.ci/prometheus) && .ci/chromium >/dev/null && \
		PATH="$$programs:$$PATH" SFROUTE_PICTURES=docs/images $(BIN)/python -m pytest tests/dashboards -k "draws or pictures" $(ARGS)

# Two proxies at a time, each with its own cluster and pods.
PROXIES_AT_ONCE = $(if $(filter-out 1,$(FILES)),-n 2 --dist loadgroup)
.PHONY: test-proxies
test-proxies: venv ## run the recipes for nginx, Caddy, HAProxy, Traefik and Envoy before pods in Python, Node.js and Go that restart and crash
	@programs=$$(.ci/proxies) && { go=$$(.ci/go) || go=$$programs; } && \
		PATH="$$programs:$$go:$$PATH" $(BIN)/python -m pytest tests/proxies $(PROXIES_AT_ONCE) $(ARGS)

# CHECKOV=no leaves out the tool that is large.
CHECKOV ?= checkov
.PHONY: test-deploy
test-deploy: venv ## render deploy/, and check it with the schemas of Kubernetes, hadolint and checkov
	@programs=$$(.ci/deploy-tools deploy $(filter-out no,$(CHECKOV))) && \
		PATH="$$programs:$$PATH" $(BIN)/python -m pytest tests/deploy $(ARGS)

.PHONY: bench-proxies
bench-proxies: venv ## measure what decisions and claims cost over HTTP, and what proxies add (needs a quiet machine)
	@programs=$$(.ci/proxies) && PATH="$$programs:$$PATH" PYTHONPATH=tests $(BIN)/python -m proxies.measure

.PHONY: test-faults
test-faults: venv ## break clusters, pods and gateways under load; ARGS="--seed 7" repeats one run, "--users 10000" is larger
	$(BIN)/python -m tests.faults $(ARGS)

MINUTES ?= 60
.PHONY: soak
soak: venv ## churn for MINUTES (60), measuring every table; then repeat test-faults as long, each time with another seed
	$(BIN)/python -m tests.field.churn --minutes $(MINUTES)
	$(BIN)/python -m tests.faults --minutes $(MINUTES) $(ARGS)

BEHAVIOUR := tests/test_operations.py tests/test_scripts_in_router.py
OLD_BEHAVIOUR := $(BEHAVIOUR) tests/test_bad_input.py tests/test_scripts.py tests/test_claim_scripts.py tests/test_script_safety.py \
	tests/test_state_scripts.py tests/test_acl.py tests/coherence/test_untracked.py tests/test_retries.py \
	tests/field/test_wrong_peers.py tests/field/test_not_now.py tests/field/test_error_texts.py tests/placement/test_trouble.py

# Besides the servers of `test`: a cluster with TLS and only the permissions that the documents grant, and a single node.
.PHONY: test-servers
test-servers: venv ## run the tests of behaviour on Valkey 8.1 and Redis 6.2, with TLS and ACLs, and on a single node
	servers=$$(PYTHON=$(BIN)/python .ci/old-servers) && SFROUTE_TEST_SERVERS=$$servers \
		$(BIN)/python -m pytest $(OLD_BEHAVIOUR) --deselect tests/test_acl.py::test_every_right_is_needed $(ARGS)
	program=$$(.ci/redis-server) && PATH="$$program:$$PATH" SFROUTE_TEST_SERVERS=redis70+secure,valkey91+single \
		$(BIN)/python -m pytest $(BEHAVIOUR) $(ARGS)

.PHONY: native
native: venv ## compile sfroute/_native again; a warning of the compiler is an error
	$(BIN)/python tools/build_native.py --strict

# What depends on which half looks up. `make test` runs them on the one that is there.
HALVES := tests/test_native.py tests/test_hot_calls.py tests/test_cache.py tests/coherence tests/test_wire_fuzz.py

.PHONY: test-pure
test-pure: venv ## run what the native part could change with the pure code
	SFROUTE_PURE=1 $(BIN)/python -m pytest $(HALVES) $(AT_ONCE) $(ARGS)

# A copy of the package with a part that checks itself, so that nothing else ever loads that.
SANITIZED := .cache/sanitized
ROUNDS ?= 1000000

.PHONY: sanitize
sanitize: venv ## run the native part under AddressSanitizer and UBSan, then ROUNDS (1,000,000) lookups for leaks
	rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)
	cp -r sfroute lua_scripts $(SANITIZED) && rm -f $(SANITIZED)/sfroute/_native/*.so
	$(BIN)/python tools/build_native.py --strict --sanitize $(SANITIZED)/sfroute/_native
	@# Python's own allocator would hide what is read after it was freed. What Python itself never frees is no leak.
	@# -P: the copy comes before this folder.
	LD_PRELOAD=$$(.ci/sanitizers) ASAN_OPTIONS=detect_leaks=0:suppressions=$(abspath .ci/asan-suppressions) PYTHONMALLOC=malloc PYTHONPATH=$(SANITIZED) SFROUTE_TEST_NATIVE=sanitized \
		$(BIN)/python -P -m pytest tests/test_native.py tests/test_hot_calls.py -p no:cacheprovider -p no:logging -q -s $(ARGS)
	SFROUTE_TEST_NATIVE=built SFROUTE_TEST_ROUNDS=$(ROUNDS) $(BIN)/python -m pytest tests/test_native.py -k leak --timeout 0 -q

.PHONY: fuzz
fuzz: MINUTES = 10
fuzz: venv ## send garbage to a router for MINUTES (10)
	SFROUTE_FUZZ_MINUTES=$(MINUTES) $(BIN)/python -m pytest tests/test_wire_fuzz.py \
		-k "whatever or cuts" --timeout 0 -s $(ARGS)

.PHONY: lint
lint: venv ## check style, formatting, who imports whom, and the spelling of everything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell

.PHONY: format
format: venv ## rewrite the files with the formatter and the safe fixes of the linter
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: types
types: venv ## check the types: mypy --strict everywhere, pyright on the public API
	$(BIN)/mypy
	$(BIN)/pyright

.PHONY: docs-reference
docs-reference: venv ## rewrite the configuration, the scripts and the drawings of docs/ from the sources
	$(BIN)/python tools/reference_pages.py
	$(BIN)/python tools/drawings.py
	$(BIN)/python tools/timelines.py

.PHONY: hooks
hooks: venv ## let git run lint and types before each commit
	$(BIN)/pre-commit install

.PHONY: docs-cli
docs-cli: venv ## rewrite docs/reference/cli.md: the options of every command, and a session that is really run
	$(BIN)/python tools/cli_sessions.py

# The tools of the site have their own environment.
DOCS_VENV ?= .cache/venv-docs
DOCS_STAMP := $(DOCS_VENV)/.installed
SITE ?= .cache/site

$(DOCS_STAMP): pyproject.toml constraints/docs.txt constraints/dev.txt
	@.ci/make-venv $(DOCS_VENV) docs constraints/docs.txt constraints/dev.txt
	@touch $@

# NO_MKDOCS_2_WARNING: mkdocs-material warns about mkdocs 2, which pyproject.toml excludes.
.PHONY: docs
docs: $(DOCS_STAMP) ## build the site of docs/ into .cache/site; a link that leads nowhere is an error
	@NO_MKDOCS_2_WARNING=true \
		$(DOCS_VENV)/bin/python -m mkdocs build --strict --config-file docs/site/mkdocs.yml --site-dir $(abspath $(SITE))
	@echo "$(SITE)/index.html"

.PHONY: api
api: venv ## rewrite tests/public_api.txt and tests/typing_of_operations.py, which tests compare
	$(BIN)/python tests/support/public_api.py
	$(BIN)/python tests/support/typed_calls.py

AUDIT := .cache/venv-audit/bin

# --strict: fail on a package that the advisory service does not know, because nothing has checked it.
.PHONY: audit
audit: venv ## look the dependencies up in a list of known vulnerabilities (needs the network: not part of ci)
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
	.cache/venv-lowest/bin/python -m pytest -m "not packaging" $(ARGS)

# What a version of Python could change: calls, threads, event loops, the end of the interpreter, spans.
OTHER_PYTHON := tests/test_operations.py tests/test_targets.py tests/test_cli.py tests/test_documents.py tests/test_fronts.py \
	tests/test_cache.py tests/test_keys.py tests/test_replies.py tests/test_retries.py tests/test_lifecycle.py \
	tests/test_bad_input.py tests/test_claim_scripts.py tests/test_deadlines.py tests/coherence tests/placement \
	tests/telemetry tests/web/test_wsgi.py tests/web/test_asgi.py tests/test_native.py tests/test_hot_calls.py

.PHONY: test-python
test-python: ## run a broad part of the tests with another interpreter: PYTHON=python3.13
	@version=$$($${PYTHON:-python3} -c 'import sys; print("%d.%d" % sys.version_info[:2])') && \
		.ci/make-venv .cache/venv-$$version other-python constraints/dev.txt && \
		.cache/venv-$$version/bin/python -m pytest -m "not packaging" $(AT_ONCE) $(OTHER_PYTHON) $(ARGS)

# The other clients in the benchmark have their own environment.
BENCH_VENV ?= .cache/venv-bench
BENCH_STAMP := $(BENCH_VENV)/.installed

$(BENCH_STAMP): pyproject.toml constraints/bench.txt constraints/dev.txt sfroute/_version.py $(NATIVE)
	@.ci/make-venv $(BENCH_VENV) bench constraints/bench.txt constraints/dev.txt
	@touch $@

.PHONY: bench
bench: $(BENCH_STAMP) ## measure against every peer, and write docs/benchmarks.md (needs a quiet machine)
	@$(BENCH_VENV)/bin/python benchmarks/suite.py $(ARGS)

.PHONY: bench-micro
bench-micro: $(BENCH_STAMP) ## measure the small parts of every call with pyperf; ARGS="--fast", ARGS="-o new.json"
	@$(BENCH_VENV)/bin/python benchmarks/micro.py --quiet $(ARGS)

.PHONY: bench-quick
bench-quick: $(BENCH_STAMP) ## the same in less than a minute: shows that it works; the figures are rough
	@$(BENCH_VENV)/bin/python benchmarks/suite.py --quick $(ARGS)

.PHONY: ci
ci: ## everything that a change must pass
	@.ci/run

.PHONY: lock
lock: ## rewrite constraints/dev.txt, bench.txt and docs.txt: the newest versions that pyproject.toml admits
	@.ci/lock

.PHONY: clean
clean: ## remove what was built, cached and installed here
	rm -rf examples/node/node_modules benchmarks/ioredis_peer/node_modules
	rm -rf $(VENV) .cache build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
