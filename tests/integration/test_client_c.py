"""clients/unplugd-client.h against the daemon, through clients/probe.c."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.daemon import PATIENCE, Daemon, Run, embedded, eventually

CLIENTS = Path(__file__).parents[2] / "clients"
STRICT = "-std=c99 -D_POSIX_C_SOURCE=200809L -Wall -Wextra -Wpedantic -Wconversion -Werror"

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    binary = tmp_path_factory.mktemp("client") / "probe"
    subprocess.run(["gcc", *STRICT.split(), CLIENTS / "probe.c", "-o", binary], check=True)
    return binary


class Probe:
    """A running probe."""

    def __init__(self, binary: Path, socket: Path, wait_ms: int) -> None:
        self._process = subprocess.Popen([binary, socket, str(wait_ms)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         text=True, bufsize=1)

    def send(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")

    def answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def ask(self, line: str) -> str:
        self.send(line)
        return self.answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        assert self._process.wait(PATIENCE) == 0
        self._process.stdout.close()


@pytest.fixture
def daemon(run: Run) -> Daemon:
    return run(embedded(7, blacklist={"entry": [{"product": "gplpv-windows", "build": 9}]}))


@pytest.fixture
def waiting(probe: Path, daemon: Daemon) -> Iterator[Probe]:
    """A probe that waits for unplugd without bound."""
    process = Probe(probe, daemon.runtime / "dom7.sock", -1)
    yield process
    process.close()


def test_the_header_is_cplusplus_too() -> None:
    subprocess.run(["gcc", "-x", "c++", "-std=c++11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only",
                    CLIENTS / "unplugd-client.h"], check=True)


def test_a_drivers_sequence(waiting: Probe) -> None:
    assert waiting.ask("r 0x10 2") == "0x49d2"
    assert waiting.ask("r 0x12 1") == "0x1"
    assert waiting.ask("r 0x14 4") == "0xffffffff"
    assert waiting.ask("w 0x12 2 2") == "0"
    assert waiting.ask("w 0x10 4 8") == "0"
    assert waiting.ask("r 0x10 2") == "0x49d2"
    assert waiting.ask("w 0x10 2 3") == "3"
    assert waiting.ask("w 0x10 2 16") == "0"
    assert waiting.ask("w 0x10 4 9") == "0"
    assert waiting.ask("r 0x10 2") == "0xd249"
    assert waiting.ask("reset") == "1"
    assert waiting.ask("r 0x10 2") == "0x49d2"
    assert waiting.ask("w 0x10000 1 1") == "0"
    assert waiting.ask("r 0x10 1") == "0x1"


def test_strings_of_any_length(daemon: Daemon, waiting: Probe) -> None:
    assert waiting.ask("i 0x10 2 3") == "d249" * 3
    assert waiting.ask("i 0x12 1 5000") == "01" * 5000
    text = "x" * 3000 + "y" * 3000
    assert waiting.ask(f"o 0x12 1 {text}") == "0"
    assert waiting.ask("w 0x12 1 10") == "0"
    # a line has at most 4095 bytes
    expected = [text[:4095], text[4095:]]
    eventually(lambda: [line.partition(" ")[2] for line in logged(daemon)] == expected)


def logged(daemon: Daemon) -> list[str]:
    return [line for file in daemon.log_directory.glob("*.log") for line in file.read_text().splitlines()]


def test_an_access_outlives_unplugd(daemon: Daemon, waiting: Probe) -> None:
    assert waiting.ask("w 0x12 2 2") == "0"
    daemon.kill()
    waiting.send("w 0x10 4 9")
    time.sleep(0.2)
    daemon.start()
    assert waiting.answer() == "0"
    assert waiting.ask("r 0x10 2") == "0xd249"  # the product number was not forgotten


def test_without_unplugd_there_is_no_device(daemon: Daemon, probe: Path) -> None:
    process = Probe(probe, daemon.runtime / "dom7.sock", 200)
    assert process.ask("r 0x10 2") == "0x49d2"
    daemon.kill()
    assert process.ask("r 0x10 2") == "0xffff"
    assert process.ask("w 0x10 2 3") == "0"
    assert process.ask("i 0x12 1 2") == "ffff"
    assert process.ask("reset") == "0"
    daemon.start()
    assert process.ask("r 0x10 2") == "0x49d2"
    process.close()


def test_a_path_that_is_too_long(probe: Path) -> None:
    done = subprocess.run([probe, "/" + "x" * 200, "0"], input="", capture_output=True, text=True, check=False)
    assert done.returncode == 2
