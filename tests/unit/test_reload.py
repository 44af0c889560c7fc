"""reload.py: the files are read in a process of their own, and whatever happens to it, or in a reload, is a refusal."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from unplugd import reload
from unplugd.config.load import Config, load
from unplugd.errors import ConfigError, HostError
from unplugd.host.runtimedir import RuntimeDirectory
from unplugd.host.status import ServiceStatus
from unplugd.reload import Reload, read
from unplugd.sinks.records import Event


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "unplugd.toml"
    path.write_text("publish = false\n[products]\nmine = 7\n[[blacklist.entry]]\nproduct = 'mine'\nbuild = 1\n")
    return path


def refusal(file: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        asyncio.run(read(file))
    return str(caught.value)


def test_it_reads_what_load_reads(file: Path) -> None:
    assert asyncio.run(read(file)) == (load(file), [str(file)])
    file.write_text("[log]\nrate = 'x'\n")
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert refusal(file) == str(caught.value)


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("raise SystemExit(5)", "it ended with status 5"),
        ("raise ValueError('no such luck')", "ValueError: no such luck"),
        ("import os; os.kill(os.getpid(), 9)", "it ended with status -9"),
        ("print('nonsense')", "failed: "),
        ("pass", "failed: "),
        ("import pickle, sys; sys.stdout.buffer.write(pickle.dumps(('0.0', 1, 2)))", "it is unplugd 0.0, this one is"),
        ("import sys; sys.stdout.write('x' * 3000000)", "failed: "),
    ],
)  # fmt: skip
def test_a_reader_that_fails_is_a_refusal(
    file: Path, monkeypatch: pytest.MonkeyPatch, program: str, why: str
) -> None:
    monkeypatch.setattr(reload, "_PROGRAM", program)
    said = refusal(file)
    assert said.startswith(f"{file}: is not read: the process that reads it failed: ")
    assert why in said


def test_a_reader_that_hangs_is_given_up(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "_PROGRAM", "import time; time.sleep(60)")
    monkeypatch.setattr(reload, "PATIENCE", 0.3)
    began = time.monotonic()
    assert "could not be read within 0.3 s" in refusal(file)
    assert time.monotonic() - began < 20


def test_without_a_process_there_is_no_reload(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(file.parent / "no-python"))
    assert refusal(file) == f"{file}: is not read: no process can be started for it: No such file or directory"


class Reloading:
    """A Reload whose apply() is the test's."""

    def __init__(self, file: Path, apply: Callable[[Config], Awaitable[None]]) -> None:
        self.said: list[tuple[Event, str]] = []
        self.directory = RuntimeDirectory(file.parent / "run")
        self.status = ServiceStatus(file)
        self.told = 0
        self.reload = Reload(file, self.directory, self.status, apply, lambda *what: self.said.append(what))

    def _tell(self) -> list[str]:
        self.told += 1
        return ["STATUS=x"]

    async def until(self, told: int) -> None:
        """Follow until the manager was told so often."""
        task = asyncio.get_running_loop().create_task(self.reload.follow(self._tell))
        async with asyncio.timeout(60):
            while self.told < told:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        task.cancel()


@pytest.mark.parametrize(
    ("fault", "problem", "kinds"),
    [
        (None, "", [Event.RELOADED]),
        (ConfigError("f", "k", "p"), "f: k: p", [Event.RELOAD_REFUSED]),
        (HostError("a", "b", "c"), "a: b: c", [Event.RELOAD_REFUSED]),
        (ZeroDivisionError("x"), "a fault of unplugd's own: ZeroDivisionError", [Event.INTERNAL, Event.RELOAD_REFUSED]),
    ],
)
def test_it_is_taken_or_refused_and_goes_on(
    file: Path, fault: Exception | None, problem: str, kinds: list[Event]
) -> None:
    async def apply(config: Config) -> None:
        assert not config.publish
        if fault is not None:
            raise fault

    async def main() -> None:
        one = Reloading(file, apply)
        marker, refused = one.directory.path / "reload", one.directory.path / "reload.refused"
        marker.touch()
        one.reload.ask()
        await one.until(1)
        assert [kind for kind, _ in one.said] == kinds
        assert one.status.problem == problem
        assert not marker.exists()
        assert (refused.read_text() if refused.exists() else "") == (f"{problem}\n" if problem else "")
        # who has not waited finds no file
        refused.unlink(missing_ok=True)
        one.reload.ask()
        await one.until(2)
        assert not refused.exists()

    asyncio.run(main())


def test_those_who_ask_meanwhile_get_one_more(file: Path) -> None:
    async def main() -> None:
        applied = 0

        async def apply(config: Config) -> None:
            nonlocal applied
            applied += 1
            if applied == 1:
                for _ in range(10):
                    one.reload.ask()

        one = Reloading(file, apply)
        one.reload.ask()
        await one.until(2)
        assert applied == 2

    asyncio.run(main())


def test_a_check_applies_nothing(file: Path) -> None:
    async def main() -> None:
        async def apply(config: Config) -> None:
            raise AssertionError

        one = Reloading(file, apply)
        assert await one.reload.check() == {"configured": str(file), "valid": True, "files": [str(file)]}
        file.write_text("odd = 1\n")
        said = await one.reload.check()
        assert (said["valid"], said["file"], said["key"]) == (False, str(file), "odd")
        assert one.said == []

    asyncio.run(main())
