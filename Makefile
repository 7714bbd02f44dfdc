# One entry point. `make` alone lists what there is.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
BIN := .venv/bin
export DEMO_SECONDS

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- run ---

.PHONY: setup up down status demo
setup: ## Install what is missing: system packages, .venv, compiled loops, Kafka's jars
	@infra/bootstrap.sh

up: setup ## Start the services and the platform
	@$(BIN)/millrace up

down: ## Stop everything; data stays (PURGE=1 deletes it)
	@$(BIN)/millrace down $(if $(PURGE),--purge)

status: ## Show what runs
	@$(BIN)/millrace status

demo: setup ## Feed all four domains and watch; DEMO_SECONDS=60 stops by itself and reconciles
	@$(BIN)/millrace demo

# --- verify ---

.PHONY: check lint format test scan
check: setup scan ## Lint, types, import directions, known weaknesses, generated docs, released schemas, published API
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/millrace docs --check
	$(BIN)/millrace schema check --offline

# Hashes of packages and of test data look like secrets to whatever measures entropy: kinds of secrets alone.
SECRETS := --no-verify --disable-plugin HexHighEntropyString --disable-plugin Base64HighEntropyString \
	--exclude-secrets '^(api_key|signed-requests|kafka-)$$' # names of secrets
SCAN := .venv-scan/bin
scan: .venv-scan/made ## Look for known weaknesses, for what our own rules forbid, and for secrets
	$(SCAN)/bandit -q -c pyproject.toml -r api connectors infra models schemas sinks streams
	PATH="$(CURDIR)/$(SCAN):$$PATH" $(SCAN)/semgrep scan --quiet --error --metrics off --disable-version-check \
		--config infra/semgrep.yml .
	git ls-files -z -- . ':!tests' ':!*.lock' ':!infra/semgrep.yml' | xargs -0 $(SCAN)/detect-secrets-hook $(SECRETS)

# Not in `check`: an index without advisories knows none of the packages. Strict, as that must not pass for clean.
.PHONY: audit-dependencies
audit-dependencies: .venv-scan/made ## Ask the package index which locked versions have published vulnerabilities
	$(SCAN)/pip-audit --strict --require-hashes --disable-pip -r requirements.lock

.venv-scan/made: infra/scan.lock | setup
	$(BIN)/uv venv -q --clear --python $(BIN)/python .venv-scan
	$(BIN)/uv pip sync -q --require-hashes --python $(SCAN)/python infra/scan.lock
	touch $@

lint: setup ## Lint alone
	$(BIN)/ruff check .

format: setup ## Format the code and repair what ruff can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Two at a time, as tests wait more than they compute; then those that must be alone.
# Processes that a test starts measure themselves (pyproject: coverage.run.patch); hence combine.
UNMARKED := not docker and not real_input and not faults and not endurance and not secure
test: setup ## All tests on the real components; coverage must reach 85 %
	@infra/bootstrap.sh test
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n 2 --dist loadfile -m "$(UNMARKED) and not alone"
	$(BIN)/coverage run -m pytest -m "$(UNMARKED) and alone"
	$(BIN)/coverage combine -q
	$(BIN)/coverage report --fail-under=85

.PHONY: test-real-input
test-real-input: setup ## Whole files of real data through the platform, with the time of each
	$(BIN)/pytest -s -m real_input tests/real_input tests/streams/orders

.PHONY: test-secure
test-secure: setup ## The deny matrix principal x operation x topic, and a pipeline, on a secured broker
	$(BIN)/pytest -m "secure or short_secure" tests/secure

.PHONY: test-hostile
test-hostile: setup ## Input that nobody thought of, to every route, GraphQL and console, all parts up (EXAMPLES=200)
	MILLRACE_EXAMPLES=$(or $(EXAMPLES),200) $(BIN)/pytest -s -m alone tests/end_to_end/test_hostile_input.py

.PHONY: test-docker
test-docker: ## Try the Docker way with our own images, under a daemon of its own; as root
	@infra/bootstrap.sh docker
	@infra/docker/test.sh

.PHONY: faults endurance mutants
faults: setup ## Kill, stop and starve real processes and services (SEED=1); as root
	MILLRACE_FAULTS_SEED=$(or $(SEED),1) MILLRACE_FAULTS_HISTORIES=150 $(BIN)/pytest -s -m "faults or short_faults"

endurance: setup ## 200 kills over 2 million records (SEED=1 KILLS=200 RECORDS=2000000); as root
	MILLRACE_FAULTS_SEED=$(or $(SEED),1) MILLRACE_FAULTS_KILLS=$(or $(KILLS),200) \
		MILLRACE_FAULTS_RECORDS=$(or $(RECORDS),2000000) $(BIN)/pytest -s -m endurance tests/faults

mutants: setup ## Take each safeguard out and require its test to fail
	$(BIN)/python -m tests.faults.mutants

# --- measure ---

BENCHMARKS := process sink codec latency decision reads million rule_cost
LONG_BENCHMARKS := nexmark recovery scale
.PHONY: bench bench-full bench-soak $(BENCHMARKS:%=bench-%) $(LONG_BENCHMARKS:%=bench-%)
bench: $(BENCHMARKS:%=bench-%) ## All benchmarks beside their peers, three slices of 15 s each, with their checks

$(BENCHMARKS:%=bench-%) $(LONG_BENCHMARKS:%=bench-%): bench-%: setup
	$(BIN)/python -m benchmarks.$* $(ARGS)

bench-full: ## As bench, with five slices, peers too with duplicates; and Nexmark, recovery, scale, soak
	@$(MAKE) bench-process bench-codec bench-million ARGS="--slices 5"
	@$(MAKE) bench-sink ARGS="--slices 5 --full"
	@$(MAKE) bench-latency ARGS="--seconds 120 --warm-up 20 --peers --search"
	@$(MAKE) bench-nexmark bench-recovery bench-scale bench-soak

bench-soak: ## Memory of the fraud pipeline under even input (MINUTES=20)
	@$(MAKE) bench-scale ARGS="--soak $(or $(MINUTES),20)"

# --- maintain ---

.PHONY: docs lock pictures clean
docs: setup ## Render the generated documentation anew
	$(BIN)/millrace docs

lock: setup ## Renew requirements.lock from pyproject.toml
	$(BIN)/uv pip compile -q pyproject.toml --group dev --universal --python-version 3.11 --upgrade \
		--generate-hashes --no-emit-index-url --custom-compile-command "make lock" -o requirements.lock
	$(BIN)/uv pip compile -q --group scan --universal --python-version 3.11 --upgrade \
		--generate-hashes --no-emit-index-url --custom-compile-command "make lock" -o infra/scan.lock

pictures: setup ## Take the pictures of the console in docs/console anew
	@infra/bootstrap.sh test
	MILLRACE_PICTURES=1 $(BIN)/pytest tests/console/test_journeys.py tests/console/test_rule_journey.py

clean: ## Stop this checkout's instance and delete it with all caches and .venv
	@[ ! -x $(BIN)/millrace ] || $(BIN)/millrace down --purge
	rm -rf .venv .venv-scan .millrace .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache htmlcov .coverage*
	find models streams -name '*.so' -delete; rm -rf build
	find . -name __pycache__ -prune -exec rm -rf {} +
