# Included by the Makefile, which sets PYTHON.

.PHONY: sanitize analyse

sanitize: ## the compiled part under AddressSanitizer and UBSan: unit tests, then both fuzzers (3 minutes)
	@scripts/setup.sh sanitize
	@$(PYTHON) -m tests.fuzz

analyse: ## gcc's and clang's analysers on the compiled part
	@scripts/analyse.sh
