"""What people install, tried where they install it: a clean Debian 12, a clean virtual environment, an image.

Not part of `make test`: it takes minutes, needs root and Debian's mirror. tests/packaging/run.sh runs it.
"""
