"""What can go wrong, by who is at fault.

    UnplugdError
     +- ConfigError           the configuration: file, key and what would be right; exit status 2
     +- HostError             this host: a directory, a port, a missing library; exit status 2
     +- StoreError            xenstored
     |   +- NoSuchNode           the node is not there, or cannot be (a path that xenstore does not take)
     |   +- TransactionConflict  somebody else wrote in between; the transaction may be tried again
     |   +- StoreRefused         any other error that xenstored answered
     |   +- StoreUnavailable     no connection, a lost one, or a deadline that passed
     +- ClientFault           the device model broke the socket's framing: its connection is closed

A guest is never an exception: whatever it writes has an answer (contract section 1).
"""

from __future__ import annotations

_LONGEST = 1000
"""Characters of a file's name, of a key and of a problem that are shown."""


class UnplugdError(Exception):
    """Base of all errors that unplugd raises on purpose."""


class ConfigError(UnplugdError):
    """A configuration that cannot be used.

    `file` is the path as the administrator wrote it, `key` the dotted key ("" for the file as a whole),
    `problem` says what is wrong and what would be right. All three are bounded and printable, because names of files
    and keys can contain anything.
    """

    def __init__(self, file: str, key: str, problem: str) -> None:
        self.file = _legible(file)
        self.key = _legible(key)
        self.problem = _legible(problem)
        super().__init__(": ".join(part for part in (self.file, self.key, self.problem) if part))


def _legible(text: str) -> str:
    """Untrusted text, bounded and printable."""
    cut = text if len(text) <= _LONGEST else text[:_LONGEST] + "..."
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in cut)


class HostError(UnplugdError):
    """The host does not give what the service needs: `what` could not be had at `where`, because `why`."""

    def __init__(self, what: str, where: str, why: str) -> None:
        self.what = what
        self.where = where
        self.why = why
        super().__init__(f"{what}: {where}: {why}")


class StoreError(UnplugdError):
    """Base of what a xenstore request can end in."""


class NoSuchNode(StoreError):
    """There is no node at `path`: ENOENT, or EINVAL for a path that xenstore cannot hold."""

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(f"no xenstore node {path}")


class TransactionConflict(StoreError):
    """EAGAIN at the end of a transaction: nothing was written."""


class StoreRefused(StoreError):
    """xenstored answered the request for `path` with the error `code` (its own word: "EACCES", "EQUOTA", ...)."""

    def __init__(self, path: str, code: str) -> None:
        self.path = path
        self.code = code
        super().__init__(f"xenstored answered {code} for {path}")


class StoreUnavailable(StoreError):
    """xenstored could not be asked or did not answer in time: `reason`."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class ClientFault(UnplugdError):
    """A frame that no device model may send (contract section 1).

    `reason` is the value of the label `reason` of `unplugd_protocol_errors_total`, `detail` is for people.
    """

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}")
