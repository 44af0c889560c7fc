"""ctl/top.py: rates between two looks."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time

import pytest

from tests.lab.control import blacklisted, domain, serving
from unplugd.ctl import show, top
from unplugd.ctl.cli import main


@pytest.fixture(autouse=True)
def _no_colour() -> None:
    show.use_colour("never")


def dropped(count: int) -> dict[str, object]:
    return {"lines": 10, "bytes": 1000, "dropped_lines": {"rate-limit": count, "sink": 0}}


def test_rates() -> None:
    before = {(one["domid"], one["uuid"]): one for one in (domain(7, log=dropped(5)), domain(8))}
    rows = top.rates(before, [
        domain(7, log={"lines": 30, "bytes": 3000, "dropped_lines": {"rate-limit": 5, "sink": 1}}),
        domain(8, log={"lines": 0}), domain(9, log={"lines": 50}),
    ], 2.0)  # fmt: skip
    assert [(row["lines_per_second"], row["bytes_per_second"], row["dropped_per_second"]) for row in rows] == [
        (10.0, 1000.0, 0.5), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0),
    ]  # fmt: skip


def test_a_daemon_that_began_anew_gives_no_negative_rates() -> None:
    old = domain(7, log=dropped(5))
    (row,) = top.rates({(7, old["uuid"]): old}, [domain(7)], 1.0)
    assert row["lines_per_second"] == row["bytes_per_second"] == row["dropped_per_second"] == 0.0
    assert top.rates({}, [domain(7)], 0.0)[0]["lines_per_second"] == 0.0


def test_orders() -> None:
    rows = [
        {"domid": domid, "name": name, "bytes_per_second": by, "dropped_per_second": dr, "lines": 0, "dropped": 0}
        for domid, name, by, dr in ((3, "a", 1.0, 0.0), (1, "c", 5.0, 0.0), (2, "b", 5.0, 9.0))
    ]
    got = {order: [row["domid"] for row in top.ordered(rows, order)] for order in ("id", "name", "bytes", "dropped")}
    assert got == {"id": [1, 2, 3], "name": [3, 2, 1], "bytes": [1, 2, 3], "dropped": [2, 1, 3]}
    assert set(top.KEYS.values()) == set(got)


def test_batch(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(domain(), blacklisted(8), domain(9, log={"throttled": True}), domain(10, log={"limited": False})) as c:
        assert main(["top", "-b", "-i", "2", "-d", "0.05", "-s", "id", "--socket", str(c.path)]) == 0
    tables = capsys.readouterr().out.strip("\n").split("\n\n")
    assert len(tables) == 2
    lines = tables[0].splitlines()
    assert lines[0].split() == list(top.HEADS)
    assert [line.split()[1] for line in lines[1:]] == ["7", "8", "9", "10"]
    assert "BLACKLISTED" in lines[2]
    assert "throttled" in lines[3]
    assert "unlimited" in lines[4]


def test_json_is_a_line_an_iteration(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(domain()) as control:
        assert main(["top", "-l", "-i", "2", "-d", "0.05", "--socket", str(control.path)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 2
    assert set(lines[0]) == {"time", "domains"}
    assert set(lines[0]["domains"][0]) == {
        "domid", "name", "uuid", "connections", "lines_per_second", "bytes_per_second", "dropped_per_second", "lines",
        "dropped", "balance", "throttled", "limited", "driver", "verdict",
    }  # fmt: skip


def test_without_a_terminal_it_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(domain()) as control:
        assert main(["top", "--socket", str(control.path)]) == 2
    assert "top -b" in capsys.readouterr().err


def test_on_a_terminal_it_can_be_sorted_and_quit() -> None:
    with serving(domain(7, "first"), domain(8, "ev\x1bil")) as control:
        master, slave = pty.openpty()
        command = [sys.executable, "-m", "unplugd.ctl", "top", "-d", "0.1", "--socket", str(control.path)]
        process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=os.environ | {"TERM": "xterm"}
        )
        os.close(slave)
        seen = b""
        end = time.monotonic() + 30
        pressed = quitting = False
        while time.monotonic() < end and process.poll() is None:
            if select.select([master], [], [], 0.1)[0]:
                try:
                    seen += os.read(master, 65536)
                except OSError:
                    break
            if b"sorted by bytes" in seen and not pressed:
                os.write(master, b"n")
                pressed = True
            if b"sorted by name" in seen and not quitting:
                os.write(master, b"q")
                quitting = True
        assert process.wait(30) == 0
        os.close(master)
    assert b"ev\\x1bil" in seen
    assert b"\x1b[?1049h" in seen


def test_on_a_narrow_terminal_long_names_give_way_first() -> None:
    rows = top.rates({}, [domain(7, "x" * 60), domain(8, "short")], 1.0)
    wide, narrow, narrowest = (top.fitting(rows, columns) for columns in (200, 112, 40))
    assert "x" * 37 + "..." in wide[1]
    assert max(map(len, narrow)) <= 112 < max(map(len, wide))
    assert "short" in narrow[2]
    assert narrowest[1].startswith("x" * 9 + "... ")
