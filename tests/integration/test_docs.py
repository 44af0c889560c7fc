"""What the documentation shows of a running daemon is what a running daemon shows."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts import terminal
from tests.documents import ALL_BLOCKS, ROOT, RUNS_BESIDE, Block
from tests.lab.daemon import free_port, uuid
from unplugd.simulator.cli import play
from unplugd.simulator.devicemodel import DeviceModel
from unplugd.simulator.drivers import CHATTY, CITRIX, FREEBSD, LINUX, XENBUS
from unplugd.simulator.privatedaemon import PrivateDaemon, fetch

CONFIGURATION = """
runtime_dir = "{run}"
[xenstore]
backend = "embedded"
[[xenstore.domain]]
domid = 7
name = "web-01"
uuid = "4f0e0c5e-0000-4000-8000-000000000007"
{more}
[[blacklist.entry]]
product = "xensource-windows"
build = 86451
reason = "loses data on resume"
[socket]
device_model_uids = [{uid}]
[log]
sinks = ["file"]
directory = "{run}/log"
rate = 1
burst = 8192
[http]
listen = "127.0.0.1:{port}"
"""


OTHERS = {8: ("win-ts", XENBUS), 9: ("old-win", CITRIX), 10: ("bsd-gw", FREEBSD), 11: ("chatty", CHATTY)}


class Running:
    """A daemon with one domain, 7."""

    def __init__(self, run: Path, port: int) -> None:
        self.run = run
        self.port = port

    def here(self, command: str) -> str:
        """A command of the documentation, for this daemon."""
        return command.replace("/run/unplugd", str(self.run)).replace("127.0.0.1:9877", f"127.0.0.1:{self.port}")

    def domain(self) -> dict[str, Any]:
        """What the API says of domain 7."""
        status, text = fetch(self.run / "control.sock", "/api/v1/domains/7")
        assert status == 200
        described: dict[str, Any] = json.loads(text)
        return described


@pytest.fixture
def running() -> Iterator[Running]:
    with tempfile.TemporaryDirectory(prefix="unplugd-docs-") as directory:
        run, port = Path(directory) / "run", free_port()
        more = "".join(
            f'[[xenstore.domain]]\ndomid = {domid}\nname = "{name}"\nuuid = "{uuid(domid)}"\n'
            for domid, (name, _) in OTHERS.items()
        )
        text = CONFIGURATION.format(run=run, uid=os.geteuid(), port=port, more=more)
        with PrivateDaemon(Path(directory), text) as trial:
            yield Running(run, port)
            assert trial.stop() == 0


@pytest.mark.parametrize("block", [block for block in ALL_BLOCKS if block.note == RUNS_BESIDE], ids=lambda b: b.page)
def test_commands_beside_a_daemon(block: Block, running: Running) -> None:
    if "curl" in block.text and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    if block.text.startswith("cc ") and shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    for command in block.text.splitlines():
        done = subprocess.run(
            ["bash", "-e", "-c", running.here(command)],
            cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (command, done.stderr)
        assert done.stdout


def shape(value: object) -> object:
    """A JSON document without what may be otherwise."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    return type(value).__name__


def test_the_documented_domain_is_one(running: Running) -> None:
    (example,) = [block for block in ALL_BLOCKS if block.note == "example of a domain"]
    documented = json.loads(example.text)
    with DeviceModel(running.run / "dom7.sock", timeout=30) as device:
        play(LINUX.logging(b"hello dom0\n"), device)
    found = running.domain()
    assert shape(found) == shape(documented)
    same = ("domid", "name", "uuid", "product", "product_name", "build", "blacklisted", "unplugged", "unplugged_mask")
    assert {key: found[key] for key in same} == {key: documented[key] for key in same}


def test_the_list_in_the_readme_is_unplugctls(running: Running) -> None:
    (shown,) = [block for block in ALL_BLOCKS if block.note == "from unplugctl list"]
    for domid, guest in {7: LINUX, **{domid: guest for domid, (_, guest) in OTHERS.items()}}.items():
        with DeviceModel(running.run / f"dom{domid}.sock", timeout=30) as device:
            play(guest, device)
    done = subprocess.run(
        [sys.executable, "-m", "unplugd.ctl", "--socket", str(running.run / "control.sock"), "list"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    first, *lines = shown.text.splitlines()
    assert first == "$ unplugctl list"
    # how many lines are dropped depends on the time that it takes
    assert [re.sub(r"\d+ dropped", "n dropped", line) for line in done.stdout.splitlines()] == [
        re.sub(r"\d+ dropped", "n dropped", line) for line in lines
    ]


def test_the_pictures_are_what_unplugctl_says(running: Running) -> None:
    for domid, guest in {7: LINUX, **{domid: guest for domid, (_, guest) in OTHERS.items()}}.items():
        with DeviceModel(running.run / f"dom{domid}.sock", timeout=30) as device:
            play(guest, device)
    for name, command in (("list", ["list"]), ("show", ["show", "old-win"])):
        done = subprocess.run(
            [sys.executable, "-m", "unplugd.ctl", "--socket", str(running.run / "control.sock"), *command],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        recorded = plain(ROOT / "docs" / "pictures" / f"{name}.cast")[1:]
        assert [alike(line) for line in recorded] == [alike(line) for line in done.stdout.splitlines()]


def plain(cast: Path) -> list[str]:
    """The lines of a recording, without colours."""
    return [re.sub(r"\x1b\[[0-9;]*m", "", line) for _, line in terminal.read(cast).lines]


def alike(line: str) -> str:
    """A line without its numbers, its spaces, and what depends on the time that passed."""
    line = re.sub(r"uuid [0-9a-f-]+", "uuid", line)
    line = re.sub(r"\bthrottled, |, over it", "", re.sub(r"-?\d[\d.:-]*", "0", line))
    return line.replace(" ", "")


def test_the_demo_that_is_shown_is_the_demo(tmp_path: Path) -> None:
    (extract,) = [block for block in ALL_BLOCKS if block.note == "from make demo"]
    done = subprocess.run(
        [sys.executable, "-m", "unplugd.demo"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=80, check=True,
    )  # fmt: skip
    printed = [re.sub(r"\d+", "0", line) for line in done.stdout.splitlines()]
    headlines = [re.sub(r"\d+", "0", line) for line in plain(ROOT / "docs" / "pictures" / "demo.cast")[1:]
                 if line and not line.startswith(" ") and "/" not in line]
    assert [line for line in headlines if line not in printed and ".venv" not in line] == []
    at = 0
    for line in extract.text.splitlines():
        if line:
            at = printed.index(re.sub(r"\d+", "0", line), at)
