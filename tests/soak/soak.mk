# Included by the Makefile, which sets PYTHON.

.PHONY: soak soak-long fuzzer

soak: fuzzer ## what takes minutes (15 at most): kills under load, floods, memory, fuzzing
	@$(PYTHON) -m tests.soak

soak-long: fuzzer ## the same with the full figures: 200 kills, an hour of fuzzing
	@$(PYTHON) -m tests.soak --long

# The fuzzer that coverage guides is only built for some Pythons; without it inputs are random.
fuzzer:
	@scripts/setup.sh test
	@$(PYTHON) -c 'import atheris' 2>/dev/null || $(PYTHON) -m pip install --quiet 'atheris>=2.3' || \
	    echo 'atheris cannot be installed here: fuzzing is not guided by coverage'
