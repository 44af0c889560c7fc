# What people install. Included by the Makefile.
.PHONY: deb image test-packaging test-fleet

deb: ## a Debian package for Debian 12, in dist/
	@scripts/deb.sh

image: deb ## a container image, localhost/unplugd, with buildah or docker
	@scripts/image.sh

test-packaging: ## package, wheel, image and compose.yaml, tried in clean surroundings (as root, 6 minutes)
	@tests/packaging/run.sh

test-fleet: ## the Ansible role, and guests' lines at a central journal, on two clean hosts (as root, 6 minutes)
	@tests/packaging/run.sh tests/packaging/manyhosts.py
