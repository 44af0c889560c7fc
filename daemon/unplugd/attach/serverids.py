"""The id of each domain's ioreq server, in one small file per domain, which outlives the process.

If a server is destroyed while a vCPU waits for its answer, this vCPU hangs for ever. So a new process must take over
the *same* server, and needs its id. The file exists before the server can get its first access. It is removed when the
ports go back to QEMU or the domain is released.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

DIRECTORY = "attach"
"""Below the runtime directory."""


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

    def prepare(self) -> None:
        """Make the directory. Raises OSError."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _path(self, domid: int) -> Path:
        return self.directory / f"dom{domid}.json"

    def load(self, domid: int, uuid: str) -> int | None:
        """The server's id, or None: no file, a file of another domain, or an invalid file."""
        try:
            kept = json.loads(self._path(domid).read_bytes())
        except (OSError, ValueError):
            return None
        match kept:
            case {"domid": int(known), "uuid": str(of), "server": int(server)} if (known, of) == (domid, uuid):
                return server if 0 <= server < 8 else None
        return None

    def save(self, kept: ServerId) -> None:
        """Write the file, completely or not at all. Raises OSError."""
        path = self._path(kept.domid)
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps({"domid": kept.domid, "uuid": kept.uuid, "server": kept.server}) + "\n")
        os.replace(fresh, path)

    def forget(self, domid: int) -> None:
        """Remove the file, if it exists."""
        self._path(domid).unlink(missing_ok=True)

    def domids(self) -> list[int]:
        """All domains that have a file."""
        names = (path.stem for path in self.directory.glob("dom*.json"))
        return sorted(int(name[3:]) for name in names if name[3:].isdecimal())
