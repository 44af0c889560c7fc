# unplugd: `make` alone says what there is.

PYTHON := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint unit integration docs-check bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { sub(/:.*/, "", $$1); printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## see unplugd do its job here, without Xen (90 seconds at most)
	@scripts/setup.sh demo
	@$(PYTHON) -m unplugd.demo

test: ## set up all that is needed, then run everything: lint, types, unit and integration tests
	@scripts/test.sh lint types imports docs core unit integration

setup: ## only set up: .venv, and as root the Debian packages that the tests need
	@scripts/setup.sh test

lint: ## ruff, mypy --strict, and which way imports point
	@scripts/test.sh lint types imports

unit: ## the unit tests
	@scripts/test.sh unit

integration: ## against the real xenstored, journald, systemd and Prometheus
	@scripts/test.sh integration

docs-check: ## generated documentation is what the code says
	@scripts/test.sh docs

bench: ## how fast it is here
	@scripts/setup.sh test
	@$(PYTHON) -m benchmarks

clean: ## take away what setup and tests made
	rm -rf .venv .cache .hypothesis build dist daemon/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What takes longer than the tests: sanitizers, real Xen, soak, packages.
include tests/fuzz/fuzz.mk tests/xen/xen.mk tests/soak/soak.mk tests/packaging/packaging.mk
