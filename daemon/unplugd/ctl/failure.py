"""How `unplugctl` fails: with an exit status, the problem, and the next step.

Scripts use the exit statuses, so they are an interface. EXITS is the only description; --help and the man page use it.
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
    (OK, "done; of `status`: ready; of `blacklist check`: not blacklisted; `impact`: no guest is hit"),
    (NO, "the answer is no; of `status`: not ready; of `blacklist check`: blacklisted; `impact`: guests are hit"),
    (USAGE, "wrong arguments, or an invalid configuration"),
    (NOT_RUNNING, "unplugd does not run or does not answer, or permission for its control socket is denied"),
    (NOT_FOUND, "no such domain, or no such blacklist entry"),
    (XENSTORE, "xenstored cannot be reached or refused a request"),
    (DECLINED, "a question was answered with no"),
    (FAILED, "other failures: journalctl is missing, a file cannot be written"),
)
"""Exit statuses and what they mean."""


class Failure(Exception):
    """The command ends with this exit status and problem; `hint` is the next step, or empty."""

    def __init__(self, status: int, problem: str, hint: str = "") -> None:
        self.status = status
        self.problem = problem
        self.hint = hint
        super().__init__(problem)


def tell(failure: Failure) -> None:
    """Print the problem and the next step on standard error."""
    print(f"unplugctl: {failure.problem}", file=sys.stderr)
    for line in filter(None, failure.hint.split("\n")):
        print(f"  {line}", file=sys.stderr)
