"""Standard input, output and error of a command, which may be closed, full, or read by nobody."""

from __future__ import annotations

import os
import sys


def open_closed() -> bool:
    """Open the null device in place of each closed one; returns whether standard output was closed.

    Otherwise the next file or socket would get its number, and print() would write into it.
    """
    closed = sys.stdout is None
    for descriptor, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)     # the lowest number that is free: this one
            setattr(sys, name, open(descriptor, mode, closefd=False))  # noqa: SIM115 # until the process ends
    return closed


def give_up_output() -> None:
    """Discard what is left for standard output, because writing to it failed. Else Python tries again at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
