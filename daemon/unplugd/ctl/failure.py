"""How `unplugctl` fails: an exit status, what is wrong, and what to do next.

The statuses are an interface: scripts act on them. EXITS is their only description; --help and the man page have it
from here.
"""

from __future__ import annotations

import sys

OK = 0
NO = 1
USAGE = 2
NOT_RUNNING = 3
NOT_FOUND = 4
XENSTORE = 5
DECLINED = 6
FAILED = 7

EXITS: tuple[tuple[int, str], ...] = (
    (OK, "done; of `status`: ready; of `blacklist check`: not blacklisted"),
    (NO, "the answer is no; of `status`: not ready; of `blacklist check`: blacklisted"),
    (USAGE, "wrong arguments, or a configuration that cannot be used"),
    (NOT_RUNNING, "unplugd does not run, does not answer, or its control socket may not be used"),
    (NOT_FOUND, "no such domain, or no such blacklist entry"),
    (XENSTORE, "xenstored cannot be reached or refused"),
    (DECLINED, "a question was not answered with yes"),
    (FAILED, "anything else: journalctl is missing, a file cannot be written"),
)
"""Exit statuses and what they mean."""


class Failure(Exception):
    """The command ends: exit status, what is wrong, and in `hint` what to do next ("" if there is nothing to say)."""

    def __init__(self, status: int, problem: str, hint: str = "") -> None:
        self.status = status
        self.problem = problem
        self.hint = hint
        super().__init__(problem)


def tell(failure: Failure) -> None:
    """What is wrong and what to do next, on standard error."""
    print(f"unplugctl: {failure.problem}", file=sys.stderr)
    for line in filter(None, failure.hint.split("\n")):
        print(f"  {line}", file=sys.stderr)
