"""The daemons that are measured: how they are configured, started and bound to a CPU, and where their sockets are."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from unplugd.simulator.privatedaemon import PrivateDaemon

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""A tmpfs, as /run is: a thousand sockets and files are made at start, and a disk takes milliseconds for each."""

PURE = ("env", "UNPLUGD_PURE=1")
"""Runs a daemon without its compiled part."""

_CONFIGURATION = """\
runtime_dir = {run}
[xenstore]
{store}
[socket]
device_model_uids = [{uid}]
[log]
{log}
[http]
listen = ""
"""

JOURNAL = 'sinks = ["journal"]\nrate = 1000000000\nburst = 1000000000\n'
"""Into the journal, and so much of it that no line is dropped."""


def uuid_of(domid: int) -> str:
    """A domain's uuid."""
    return f"4f0e0c5e-0000-4000-8000-{domid:012x}"


def embedded(domains: int) -> str:
    """The embedded store with domains 1 to `domains`."""
    return 'backend = "embedded"\n' + "".join(
        f'[[xenstore.domain]]\ndomid = {n}\nname = "vm{n}"\nuuid = "{uuid_of(n)}"\n' for n in range(1, domains + 1)
    )


def external(path: Path) -> str:
    """A xenstored's socket."""
    return f'backend = "socket"\nsocket = {json.dumps(str(path))}\n'


def configuration(directory: Path, store: str, log: str = "") -> str:
    """A configuration all of whose files are under `directory`; by default guests' lines go to files there."""
    files = f'sinks = ["file"]\ndirectory = {json.dumps(str(directory / "log"))}'
    return _CONFIGURATION.format(
        run=json.dumps(str(directory / "run")), store=store, uid=os.getuid(), log=log or files
    )


@contextlib.contextmanager
def daemon(store: str, log: str = "", wrapper: Sequence[str] = ()) -> Iterator[PrivateDaemon]:
    """An unplugd of its own."""
    with tempfile.TemporaryDirectory(prefix="unplugd-bench-", dir=MEMORY) as name:
        directory = Path(name)
        with PrivateDaemon(directory, configuration(directory, store, log), patience=120, wrapper=wrapper) as trial:
            yield trial


def sockets(trial: PrivateDaemon, first: int, last: int) -> list[str]:
    """The sockets of domains `first` to `last`."""
    return [str(trial.directory / "run" / f"dom{domid}.sock") for domid in range(first, last + 1)]


@contextlib.contextmanager
def pinned(cpu: int) -> Iterator[None]:
    """What is started meanwhile runs on one CPU only, with all of its threads."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
