"""The id of each domain's ioreq server, in one small file per domain, which outlives the process.

If a server is destroyed while a vCPU waits for its answer, this vCPU hangs for ever. So a new process must take over
the *same* server, and needs its id. The file exists before the server can get its first access. It is removed when the
ports go back to QEMU or the domain is released.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from unplugd.errors import HostError
from unplugd.host.ownfiles import make_directory, read_file, replace_file

DIRECTORY = "attach"
"""Below the runtime directory."""

_LIMIT = 4096
"""Bytes of a file."""


@dataclass(frozen=True, slots=True)
class ServerId:
    """The ioreq server `server` of domain `domid`, which had the uuid `uuid`: domids are used again."""

    domid: int
    uuid: str
    server: int


class ServerIds:
    """The files, in `<runtime_dir>/attach` (0700)."""

    def __init__(self, runtime_dir: Path) -> None:
        self.directory = runtime_dir / DIRECTORY
        self.empty = self.directory / "empty"
        """The root directory of the domains' processes."""

    def prepare(self) -> None:
        """Make the directories. Raises HostError where they are not root's own."""
        try:
            make_directory(self.directory, 0o700)
            make_directory(self.empty, 0o555)
        except OSError as error:
            where = str(error.filename or self.directory)
            raise HostError("runtime directory of unplugd-attach", where, error.strerror or str(error)) from error

    def _path(self, domid: int) -> Path:
        return self.directory / f"dom{domid}.json"

    def load(self, domid: int, uuid: str) -> int | None:
        """The server's id, or None: no file, a file of another domain, or an invalid file."""
        try:
            kept = json.loads(read_file(self._path(domid), _LIMIT))
        except (OSError, ValueError):
            return None
        match kept:
            case {"domid": int(known), "uuid": str(of), "server": int(server)} if (known, of) == (domid, uuid):
                return server if 0 <= server < 8 else None
        return None

    def save(self, kept: ServerId) -> None:
        """Write the file; it is there as a whole or not at all. Raises OSError."""
        text = json.dumps({"domid": kept.domid, "uuid": kept.uuid, "server": kept.server}) + "\n"
        replace_file(self._path(kept.domid), text.encode())

    def forget(self, domid: int) -> None:
        """Remove the file, if it exists."""
        self._path(domid).unlink(missing_ok=True)

    def domids(self) -> list[int]:
        """All domains that have a file."""
        names = (path.stem for path in self.directory.glob("dom*.json"))
        return sorted(int(name[3:]) for name in names if name[3:].isdecimal())
