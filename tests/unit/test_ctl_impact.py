"""ctl/impact.py: which running guests a blacklist would hit, by a candidate file too, and the exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.lab.control import domain, serving
from unplugd.ctl.cli import main

RUNNING = (
    domain(7, "win-01", product=0xFFFF, product_name="experimental", build=0x090100, verdict="reported"),
    domain(8, "canary-1", product=0xFFFF, product_name="experimental", build=0x090100, verdict="allowed"),
    domain(9, "old-1", product=1, product_name="xensource-windows", build=86451, verdict="allowed"),
    domain(10, "odd-1", product=0x1234, build=7, verdict="allowed"),
    domain(11, "new-1"),
)


def impact(tmp_path: Path, text: str, *arguments: str, running: tuple[dict[str, Any], ...] = RUNNING) -> int:
    config = tmp_path / "unplugd.toml"
    config.write_text('[xenstore]\nbackend = "embedded"\n' + text)
    with serving(*running) as control:
        return main(["blacklist", "impact", *arguments, "--config", str(config), "--socket", str(control.path)])


def test_what_enforcing_would_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = """
        [blacklist]
        mode = "observe"
        [[blacklist.range]]
        product = "experimental"
        from = 0x090000
        [[blacklist.entry]]
        product = "xensource-windows"
        build = 86451
        reason = "loses data"
        action = "withhold"
        [[guest]]
        match = ["canary-*"]
        blacklist = "exempt"
    """
    assert impact(tmp_path, text) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 guests would be hit (5 guests running, 4 of them with a driver that announced itself):"
    assert [line.split()[:6] for line in lines[3:5]] == [
        ["win-01", "7", "experimental", "590080", "reported", "ignored"],
        ["old-1", "9", "xensource-windows", "86451", "allowed", "refused"],
    ]
    assert lines[6].startswith("XENBUS, refuse: Nothing: it logs that it is blacklisted")
    assert lines[7].startswith("XenServer, old, withhold: Not known")


@pytest.mark.parametrize(("action", "status"), [("report", 0), ("refuse", 1), ("withhold", 1)])
def test_the_exit_status_is_for_scripts(tmp_path: Path, action: str, status: int) -> None:
    entry = f'[[blacklist.entry]]\nproduct = "xensource-windows"\nbuild = 86451\naction = "{action}"\n'
    assert impact(tmp_path, entry) == status


def test_a_candidate_file_takes_the_place_of_its_namesake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = '[[blacklist.entry]]\nproduct = "{}"\nbuild = {}\n'
    drop_ins = tmp_path / "unplugd.toml.d"
    drop_ins.mkdir()
    (drop_ins / "20-list.toml").write_text(entry.format("xensource-windows", 86451))
    other = tmp_path / "new" / "20-list.toml"
    other.parent.mkdir()
    other.write_text(entry.format("experimental", 0x090100) + 'action = "withhold"\nguests = ["win-*"]\n')
    assert impact(tmp_path, "", "-l", "--file", str(other)) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["running"], found["announced"]) == (5, 4)
    assert found["guests"] == [{
        "domid": 7, "uuid": RUNNING[0]["uuid"], "name": "win-01", "product": 0xFFFF, "product_name": "experimental",
        "build": 0x090100, "verdict": "reported", "action": "withhold", "would_be": "withheld",
        "rule": "entry experimental 590080 for guests win-* (withhold)", "reason": "", "family": "XENBUS",
        "effect": found["guests"][0]["effect"],
    }]  # fmt: skip
    assert "falls back" in found["guests"][0]["effect"]
    another = other.rename(other.with_name("30-more.toml"))
    assert impact(tmp_path, "", "-l", "--file", str(another)) == 1
    assert [row["domid"] for row in json.loads(capsys.readouterr().out)["guests"]] == [7, 9]


def test_a_candidate_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.toml").write_text("[blacklist]\nmode = 1\n")
    assert impact(tmp_path, "", "--file", str(tmp_path / "bad.toml")) == 2
    assert "bad.toml: blacklist.mode" in capsys.readouterr().err
    assert impact(tmp_path, "", "--file", str(tmp_path / "none.toml")) == 2


def test_nobody_is_hit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert impact(tmp_path, "") == 0
    assert capsys.readouterr().out == (
        "No running guest would be hit (5 guests running, 4 of them with a driver that announced itself).\n")


def test_without_a_running_unplugd_there_is_nothing_to_look_at(tmp_path: Path) -> None:
    file = tmp_path / "unplugd.toml"
    file.write_text("")
    assert main(["blacklist", "impact", "--config", str(file), "--socket", str(tmp_path / "none")]) == 3
