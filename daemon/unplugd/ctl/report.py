"""`unplugctl report`: one tar with everything for a bug report: bounded, readable, and safe to attach.

It does not contain log lines of guests, comments of configuration files (they may contain anything), or the environment
of the units. A part that cannot be made says why, and the others are made all the same: the host may be broken in any
way.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import stat
import subprocess
import sys
import tarfile
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from unplugd import __version__
from unplugd.config.files import paths
from unplugd.config.load import Config, load
from unplugd.core.blacklist import ROOT
from unplugd.ctl import show
from unplugd.ctl.configuration import effective, toml
from unplugd.ctl.control import Control
from unplugd.ctl.failure import FAILED, OK, Failure
from unplugd.ctl.journal import entries
from unplugd.ctl.store import read_node, with_store
from unplugd.errors import ConfigError, NoSuchNode

if TYPE_CHECKING:
    from unplugd.xenstore.store import Store

PART_LIMIT = 1 << 20
"""Bytes of a part; what is beyond is cut."""
EVENTS = 1000
"""unplugd's own records, the last ones."""
PATIENCE = 10.0
"""Seconds for another program."""
MOST = 2000
"""Nodes of xenstore, and files of a directory, that are listed."""

LIBRARIES = ("pyxs", "aiofiles", "prometheus-client", "h11", "systemd-python")
UNITS = ("unplugd.service", "unplugd-http.socket", "unplugd-attach.service")
PROPERTIES = (
    "Id", "LoadState", "ActiveState", "SubState", "Result", "StatusText", "MainPID", "NRestarts", "ExecMainCode",
    "ExecMainStatus", "ExecMainStartTimestamp", "ExecMainExitTimestamp", "StateChangeTimestamp", "FragmentPath",
    "DropInPaths", "NFileDescriptorStore", "FileDescriptorStoreMax", "LimitNOFILE", "MemoryCurrent", "TasksCurrent",
    "WatchdogUSec", "CapabilityBoundingSet", "RestrictAddressFamilies", "PrivateNetwork", "ReadWritePaths",
)  # fmt: skip
DOMAIN_NODES = ("name", "vm", "log-throttling", "image/device-model-kill-uid", "unplug/product", "unplug/product-name",
                "unplug/build", "unplug/blacklisted", "unplug/unplugged", "unplug/verdict")

HEAD = """\
A report of unplugd, made by `unplugctl report`.

It contains: versions, the effective configuration with the reasons of blacklist entries, the status of the service, the
guests with their names and uuids as `unplugctl list -l` shows them, metrics, unplugd's own records, properties of the
units, the nodes of xenstore that unplugd reads and writes, and the files in its directories by name and size.
It does not contain: what guests wrote to their logs, comments of configuration files, the environment of the units.

"""


class _Report:
    """What the parts are made from."""

    def __init__(self, options: Namespace) -> None:
        self._options = options
        self._problem: ConfigError | None = None
        try:
            self.config = load(self._path)
        except ConfigError as error:
            self._problem, self.config = error, Config()
        self._control = Control(options.socket or str(self.config.runtime_dir / "control.sock"))

    @property
    def _path(self) -> Path | None:
        return Path(self._options.config) if self._options.config else None

    def parts(self) -> dict[str, Callable[[], str]]:
        """Name to how it is made."""
        def asked(page: str) -> Callable[[], str]:
            return lambda: json.dumps(self._control.json(page), indent=1).replace("\x7f", "\\u007f")

        return {
            "versions.txt": self._versions,
            "configuration.toml": self._configuration,
            "configuration-files.txt": self._configuration_files,
            "configuration-check.json": asked("/api/v1/configuration"),
            "status.json": asked("/api/v1/status"),
            "domains.json": asked("/api/v1/domains"),
            "metrics.txt": self._metrics,
            "events.txt": self._events,
            "units.txt": lambda: _output(
                "systemctl", "show", "--no-pager", f"--property={','.join(PROPERTIES)}", *UNITS),
            "unit-events.txt": lambda: _output(
                "journalctl", "--no-pager", "--quiet", "--output=short-iso", f"--lines={EVENTS}", "_PID=1",
                *(f"UNIT={unit}" for unit in UNITS)),
            "process.txt": self._process,
            "xenstore.txt": self._xenstore,
            "directories.txt": self._directories,
        }

    @staticmethod
    def _versions() -> str:
        system = os.uname()
        lines = [f"unplugctl {__version__}", f"Python {platform.python_version()}",
                 f"{system.sysname} {system.release} {system.version} {system.machine}"]
        for library in LIBRARIES:
            try:
                lines.append(f"{library} {metadata.version(library)}")
            except metadata.PackageNotFoundError:
                lines.append(f"{library} is not there")
        for file in ("/etc/os-release", "/proc/xen/capabilities", "/sys/hypervisor/type",
                     *(f"/sys/hypervisor/version/{name}" for name in ("major", "minor", "extra"))):
            with contextlib.suppress(OSError):
                lines += [f"{file}: {line}" for line in Path(file).read_text("utf-8", "replace").splitlines()]
        return "\n".join(lines)

    def _configuration(self) -> str:
        if self._problem is not None:
            raise self._problem
        head = "# What the files come to, defaults included. Their comments are not here.\n"
        return head + toml(effective(self.config))

    def _configuration_files(self) -> str:
        return "\n".join(_listed(Path(file)) for file in paths(self._options.config)) or "no file, the defaults"

    def _metrics(self) -> str:
        status, body = self._control.get("/metrics")
        return f"# status {status}\n{body.decode('utf-8', 'replace')}"

    @staticmethod
    def _events() -> str:
        options = Namespace(directory=None, namespace=None, lines=EVENTS, since=None, follow=False)
        found = entries(options, ["SYSLOG_IDENTIFIER=unplugd", "_UID=0"])
        return "\n".join(f"{show.moment(entry['time'])}  {entry['event']}  {entry['message']}" for entry in found)

    def _process(self) -> str:
        pid, uid = self._control.peer()
        text = f"process {pid}, uid {uid}\n"
        for name in ("status", "limits"):
            text += Path(f"/proc/{pid}/{name}").read_text("utf-8", "replace")
        return text

    def _xenstore(self) -> str:
        if self.config.xenstore.backend == "embedded":
            return "the embedded store: there is none to ask"
        return with_store(self.config.xenstore, _nodes)

    def _directories(self) -> str:
        return "\n".join(line for directory in (self.config.runtime_dir, self.config.runtime_dir / "state",
                                                self.config.log.directory) for line in _entries_of(directory))


async def _nodes(store: Store) -> str:
    """The blacklist, and of each domain what unplugd reads and writes; with paths, as `xenstore-ls -f` shows them."""
    paths: list[str] = []

    async def below(path: str) -> list[str]:
        try:
            return [f"{path}/{name}" for name in await store.directory(path)]
        except NoSuchNode:
            return []

    for product in await below(ROOT):
        paths += [product, *await below(product)]
    for domain in await below("/local/domain"):
        paths += [f"{domain}/{name}" for name in DOMAIN_NODES]
    lines = []
    for path in paths[:MOST]:
        value = await read_node(store, path)
        if value is not None:
            lines.append(f"{path} = {json.dumps(value)}")
    if len(paths) > MOST:
        lines.append(f"... and {len(paths) - MOST} more")
    return "\n".join(lines) or "there are no nodes of unplugd's"


def _entries_of(directory: Path) -> Iterator[str]:
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        yield f"{directory}: {error.strerror}"
        return
    yield _listed(directory)
    yield from (_listed(directory / name) for name in names[:MOST])
    if len(names) > MOST:
        yield f"... and {len(names) - MOST} more"


def _listed(path: Path) -> str:
    """A file as `ls -l` has it."""
    try:
        found = path.lstat()
    except OSError as error:
        return f"{path}: {error.strerror}"
    changed = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(found.st_mtime))
    return f"{stat.filemode(found.st_mode)} {found.st_uid}:{found.st_gid} {found.st_size} {changed} {path}"


def _output(*command: str) -> str:
    """What a program says, at most PART_LIMIT bytes and within PATIENCE. Raises OSError, Failure."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # noqa: S603 # no shell
    late = threading.Timer(PATIENCE, process.kill)
    late.start()
    assert process.stdout is not None  # noqa: S101 # PIPE
    try:
        said = process.stdout.read(PART_LIMIT + 1)
    finally:
        late.cancel()
        process.kill()
        process.stdout.close()
        status = process.wait()
    if status not in (0, -9) and not said:
        raise Failure(FAILED, f"{command[0]} ended with status {status}")
    return said.decode("utf-8", "surrogateescape")


def _made(make: Callable[[], str]) -> tuple[bytes, str]:
    """A part, escaped and bounded, and why there is none."""
    try:
        text, problem = make(), ""
    except Failure as failure:
        text = problem = failure.problem
    except OSError as error:
        text = problem = f"{error.filename or ''}: {error.strerror or error}"
    except ConfigError as error:
        text = problem = str(error)
    except Exception as error:  # noqa: BLE001 # a part that fails for whatever reason must not take the others along
        text = problem = f"{type(error).__name__}: {error}"
    data = "".join(f"{show.safe(line)}\n" for line in text.splitlines()).encode()
    if len(data) > PART_LIMIT:
        data = data[:PART_LIMIT].rpartition(b"\n")[0] + b"\n... cut here\n"
    return data, show.safe(problem)


def _write(stream: BinaryIO, options: Namespace) -> dict[str, str]:
    """Write the tar; says which parts could not be made, and why."""
    top = f"unplugd-report-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    problems = {}
    members = {}
    for name, make in _Report(options).parts().items():
        members[name], problem = _made(make)
        if problem:
            problems[name] = problem
    missing = "".join(f"{name} could not be made: {problem}\n" for name, problem in problems.items())
    members = {"README.txt": (HEAD + missing).encode(), **members}
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(f"{top}/{name}")
            member.size, member.mtime, member.mode = len(data), int(time.time()), 0o600
            tar.addfile(member, io.BytesIO(data))
    return problems


def report(options: Namespace) -> int:
    """`unplugctl report`."""
    if options.output == "-":
        problems = _write(sys.stdout.buffer, options)
        sys.stdout.buffer.flush()
        return _told(problems, sys.stderr)
    path = options.output or time.strftime("unplugd-report-%Y%m%d-%H%M%S.tar", time.gmtime())
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            problems = _write(stream, options)
    except OSError as error:
        raise Failure(FAILED, f"{path}: {error.strerror}", "unplugctl report --output FILE  names another") from None
    print(f"{path}: {show.size(os.path.getsize(path))}; look through it (tar -xf), then attach it")
    print("  it has the names of the guests, and nothing that they wrote")
    return _told(problems, sys.stdout)


def _told(problems: dict[str, str], stream: Any) -> int:
    for name, problem in problems.items():
        print(f"  without {name}: {problem}", file=stream)
    return OK
