# Included by the Makefile: tests on real Xen (tests/xen). Not part of `make test`: it takes root, some 21 minutes, and a
# gigabyte and a half in .cache/xen. Status 77: it cannot run here. The count is left in .cache/xen-tests. ROWS="NAME..."
# chooses scenarios; ROWS=builtin builds a QEMU that is unplugd's client itself, and plays those that are about it.

.PHONY: test-xen
test-xen: ## on real Xen, under emulation: build and boot Xen, dom0 and guests, then check
	@scripts/setup.sh test
	@$(PYTHON) -m tests.xen $(ROWS)
