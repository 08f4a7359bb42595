# Everything here works from a fresh clone: the first target that needs .venv makes it.

PYTHON ?= python3
# What `make test` runs: all, or for example TESTS=tests/unit.
TESTS ?=

# Where `make test-deploy` keeps what it builds from Go modules.
PARTS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/job-orchestrator-parts

# What `make images` builds: on BASE (default: the official slim Python), and behind a mirror or a
# proxy with a configuration of pip and the certificates that it trusts. No layer keeps these two.
IMAGES ?= server client example prodigy
DOCKER ?= docker
BASE ?=
PIP_CONF ?=
CA_BUNDLE ?=
BUILD_FLAGS ?=

VENV := .venv
BIN := $(VENV)/bin
PACKAGES := shared orchestrator_server orchestrator_client
SOURCES := $(addsuffix /src,$(PACKAGES)) tests examples
PIP := install --quiet --disable-pip-version-check
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' shared/pyproject.toml)
COMPOSE := $(DOCKER) compose -f deploy/compose/compose.yaml
comma := ,
BUILD := DOCKER_BUILDKIT=1 $(DOCKER) build -f deploy/Dockerfile \
	$(if $(BASE),--build-arg BASE=$(BASE)) \
	$(if $(PIP_CONF),--secret id=pip_conf$(comma)src=$(PIP_CONF)) \
	$(if $(CA_BUNDLE),--secret id=ca_bundle$(comma)src=$(CA_BUNDLE)) $(BUILD_FLAGS)
.DEFAULT_GOAL := help

.PHONY: help install demo server client test test-prodigy test-faults test-deploy images up down logs
.PHONY: lint format clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

install: $(VENV)/installed ## make .venv with the three packages

# $(call venv,FOLDER) makes a virtual environment, or says what is missing for that.
define venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is \
	needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.11, for example")'
	$(PYTHON) -m venv $(1)
endef

$(VENV)/installed: $(addsuffix /pyproject.toml,$(PACKAGES))
	$(call venv,$(VENV))
	$(BIN)/pip $(PIP) $(addprefix -e ./,$(PACKAGES))
	@touch $@

$(VENV)/installed-tools: $(VENV)/installed tests/requirements.txt
	$(BIN)/pip $(PIP) -r tests/requirements.txt
	@touch $@

.venv-example/installed: examples/interface/requirements.txt
	$(call venv,.venv-example)
	.venv-example/bin/pip $(PIP) -r $<
	@touch $@

.venv-prodigy/installed: examples/prodigy/requirements.txt
	$(call venv,.venv-prodigy)
	.venv-prodigy/bin/pip $(PIP) -r $<
	@touch $@

demo: $(VENV)/installed .venv-example/installed ## run a real job from upload to result, then stop
	@$(BIN)/python examples/demo.py

server: $(VENV)/installed ## start a server with the service "example" in the foreground
	SERVICE_EXAMPLE_URL=$${SERVICE_EXAMPLE_URL:-http://127.0.0.1:9000} exec $(BIN)/orch-server

client: $(VENV)/installed .venv-example/installed ## start a client for it in the foreground
	PATH="$(CURDIR)/.venv-example/bin:$$PATH" exec $(BIN)/orch-client

test: $(VENV)/installed-tools .venv-example/installed ## run the tests, or those of TESTS=path
	$(BIN)/python -m pytest $(TESTS)

test-prodigy: $(VENV)/installed-tools .venv-prodigy/installed ## run PRODIGY (needs a C compiler)
	$(BIN)/python -m pytest -m prodigy tests/acceptance

test-faults: $(VENV)/installed-tools ## run the fault scenarios in full: 30 kills of each kind, cuts, full disks
	FAULTS_SCALE=10 $(BIN)/python -m pytest -m "not prodigy" --timeout 1500 tests/acceptance/faults

test-deploy: $(VENV)/installed-tools ## run the images, Compose, the chart and the units for real (root, Go)
	tests/deploy/prepare "$(PARTS)"
	PARTS="$(PARTS)" $(BIN)/python -m pytest -m deploy --timeout 1500 $(or $(TESTS),tests/deploy)

soak: $(VENV)/installed-tools ## inject faults at random for MINUTES=30, and print what became of all jobs
	PYTHONPATH=tests $(BIN)/python -m acceptance.faults.soak $(or $(MINUTES),30)

bench: $(VENV)/installed-tools ## measure how fast it is, all cases or CASE=name; see docs/performance.md
	PYTHONPATH=tests $(BIN)/python -m bench $(CASE)

images: ## build the images of server and clients, or those of IMAGES=
	for image in $(IMAGES); do \
	    $(BUILD) --target $$image -t job-orchestrator/$$image:$(VERSION) . || exit; \
	done

up: images ## start a server and two clients by Docker Compose
	$(COMPOSE) up --detach --wait --no-build

down: ## stop them; volumes stay
	$(COMPOSE) down

logs: ## show what they say
	$(COMPOSE) logs --follow

lint: $(VENV)/installed-tools ## check style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(SOURCES)

format: $(VENV)/installed-tools ## put the code into the one format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove what the other targets made, but no data of server or client
	rm -rf .venv .venv-example .venv-prodigy .demo .coverage .mypy_cache .pytest_cache .ruff_cache
	rm -rf build $(addsuffix /build,$(PACKAGES)) $(addsuffix /src/*.egg-info,$(PACKAGES))
	find $(SOURCES) -name __pycache__ -prune -exec rm -rf {} +
