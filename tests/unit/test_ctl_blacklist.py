"""ctl/blacklist.py without a xenstore: arguments, what is asked before, and what is shown. The rest: integration."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from tests.lab.control import blacklisted, domain, serving
from unplugd.core.registry import Registry
from unplugd.ctl import persist
from unplugd.ctl.arguments import parse_build, parse_product
from unplugd.ctl.blacklist import gather
from unplugd.ctl.cli import main
from unplugd.ctl.failure import Failure


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "unplugd.toml"
    file.write_text(
        '[xenstore]\nbackend = "embedded"\n[[blacklist.entry]]\nproduct = "xensource-windows"\nbuild = 86451\n'
        'reason = "loses data on resume"\n[[blacklist.range]]\nproduct = "experimental"\n'
        'from = 0x080000\nto = 0x0801ff\n'
    )
    return file


def ctl(config: Path, *arguments: str) -> int:
    return main(["blacklist", *arguments, "--config", str(config), "--socket", str(config.parent / "none")])


def test_build_numbers() -> None:
    good = {"0": 0, "86451": 86451, "0x10": 16, "0XfF": 255, "4294967295": 0xFFFFFFFF, "9.0.4": 0x090004, "007": 7}
    assert {text: parse_build(text) for text in good} == good
    for bad in ("", "-1", "4294967296", "1.2", "1.256.0", "x", "0x", "1_0", "٣", "1e3"):
        with pytest.raises(Failure, match="no build number"):
            parse_build(bad)


@pytest.mark.parametrize(("product", "family"), [(3, "Linux"), (1, "XenServer, old"), (2, "GPLPV")])
def test_a_version_is_not_taken_for_the_build_number_of_a_driver_that_has_other_ones(product: int, family: str) -> None:
    with pytest.raises(Failure, match=f"2.6.32 is no build number of {family}"):
        parse_build("2.6.32", product)
    assert parse_build("2.6.32", 0xFFFF) == parse_build("2.6.32", 0x1234) == 0x20620


def test_what_a_version_was_taken_for_is_said(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl(config, "check", "experimental", "9.2.350") == 0
    said = capsys.readouterr().out
    assert "experimental build 590686: not blacklisted" in said
    assert "9.2.350 is what XENBUS drivers announce as 590686 (0x9035e); so they do 9.3.94, 9.3.350" in said
    assert ctl(config, "add", "-p", "experimental", "9.0.4") == 0
    said = capsys.readouterr().out
    assert "9.0.4 is what XENBUS drivers announce as 589828 (0x90004)\n" in said
    assert "refuse: Nothing: it logs that it is blacklisted" in said
    assert ctl(config, "check", "experimental", "590686") == 0
    assert "announce" not in capsys.readouterr().out


def test_products() -> None:
    registry = Registry({"my-drivers": 0x1234})
    good = {"linux": "linux", "3": "linux", "0x1234": "my-drivers", "my-drivers": "my-drivers"}
    assert {text: parse_product(text, registry) for text in good} == good
    with pytest.raises(Failure, match="product 205 has no name here") as unnamed:
        parse_product("205", registry)
    assert '[products]  "vmdp" = 205' in unnamed.value.hint
    with pytest.raises(Failure, match="product 7 has no name here"):
        parse_product("7", registry)
    with pytest.raises(Failure) as failure:
        parse_product("no\x1bne", registry)
    assert failure.value.status == 2
    assert "\x1b" not in failure.value.problem
    assert "linux (3)" in failure.value.hint


def test_check(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl(config, "check", "1", "86451") == 1
    assert f"by {config}: loses data on resume" in capsys.readouterr().out
    assert ctl(config, "check", "experimental", "8.1.255") == 1
    assert "range 524288-524799" in capsys.readouterr().out
    assert ctl(config, "check", "experimental", "8.2.0") == 0
    assert "not blacklisted" in capsys.readouterr().out
    assert ctl(config, "check", "-l", "linux", "1") == 0
    assert json.loads(capsys.readouterr().out) == {
        "product": "linux", "build": 1, "blacklisted": False, "xenstore": False, "files": [], "reason": "",
        "guests": [], "action": None, "mode": "enforce", "family": "Linux",
    }  # fmt: skip


def test_check_names_the_guests(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(blacklisted(7, "evil\x1b[2J"), domain()) as control:
        assert main(["blacklist", "check", "1", "86451", "--config", str(config), "--socket", str(control.path)]) == 1
    assert "running guests with this driver: evil\\x1b[2J (7)" in capsys.readouterr().out


def test_list(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl(config, "list") == 0
    assert [line.split()[:4] for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["experimental", "524288-524799", "configuration", "?"], ["xensource-windows", "86451", "configuration", "?"],
    ]  # fmt: skip
    assert ctl(config, "list", "-l") == 0
    rows = json.loads(capsys.readouterr().out)["entries"]
    assert {tuple(row) for row in rows} == {
        ("product", "from", "to", "action", "for", "xenstore", "files", "reason", "guests", "problem")}  # fmt: skip


def test_an_empty_list_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.toml").write_text('xenstore.backend = "embedded"\n')
    assert ctl(tmp_path / "empty.toml", "list") == 0
    assert capsys.readouterr().out == "No driver build is blacklisted.\n"


def test_everything_that_blacklists_is_brought_together() -> None:
    configured = [
        persist.ConfiguredEntry(Path("/a"), "linux", 1, 1, "config", False),
        persist.ConfiguredEntry(Path("/b"), "linux", 2, 2, "", False),
        persist.ConfiguredEntry(Path("/b"), "linux", 0, 9, "", True),
        persist.ConfiguredEntry(Path("/b"), "xenserver-windows-v7.0+", 5, 5, "", False),
    ]  # fmt: skip
    in_xenstore = {("linux", "1"): "store", ("linux", "x"): "", ("linux", "01"): "", ("unknown", "4"): ""}
    running = [domain(7, product_name="linux", product=3, build=1)]
    rows = gather(in_xenstore, configured, Registry({}), running)

    def one(product: str, first: int, last: int) -> dict[str, Any]:
        (row,) = [row for row in rows if (row["product"], row["from"], row["to"]) == (product, first, last)]
        return row

    assert len(rows) == 5
    assert one("linux", 1, 1) == {
        "product": "linux", "from": 1, "to": 1, "action": "refuse", "for": None, "xenstore": True,
        "files": ["/a"], "reason": "store", "guests": [7], "problem": "",
    }  # fmt: skip
    assert "not in xenstore" in one("linux", 2, 2)["problem"]
    assert one("linux", 0, 9)["guests"] == [7]
    assert one("linux", 0, 9)["problem"] == ""
    assert one("xenserver-windows-v7.0+", 5, 5)["problem"] == ""
    assert "blacklists nothing" in one("unknown", 4, 4)["problem"]


def test_every_linux_is_asked_about(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert ctl(config, "add", "--persist", "linux", "1") == 6
    captured = capsys.readouterr()
    assert "every Linux guest" in captured.err
    assert "--yes" in captured.err
    assert not persist.drop_ins(config).exists()

    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal())
    for answer, status in (("", 6), ("n", 6), ("y", 0)):
        monkeypatch.setattr("builtins.input", lambda prompt, answer=answer: answer)
        assert ctl(config, "add", "--persist", "linux", "1") == status
    assert ctl(config, "check", "linux", "1") == 1
    # only this one is every Linux
    assert ctl(config, "add", "--persist", "linux", "2") == 0


def test_add_and_remove_without_a_xenstore(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl(config, "add", "1", "5") == 2
    assert "--persist" in capsys.readouterr().err
    assert ctl(config, "add", "-p", "-l", "1", "5", "--reason", "why") == 0
    added = json.loads(capsys.readouterr().out)
    path = persist.drop_ins(config) / persist.FILE
    assert added == {
        "product": "xensource-windows", "build": 5, "xenstore": False, "file": str(path), "reloaded": False,
        "guests": None,
    }  # fmt: skip
    assert ctl(config, "add", "-p", "1", "5") == 0
    assert "as it was before" in capsys.readouterr().out
    assert ctl(config, "remove", "1", "5") == 4
    assert "--persist takes it out there too" in capsys.readouterr().err
    assert ctl(config, "remove", "-p", "-l", "1", "5") == 0
    assert json.loads(capsys.readouterr().out) == {
        "product": "xensource-windows", "build": 5, "removed": True, "xenstore": False, "files": [str(path)],
        "reloaded": False, "left_in": [],
    }  # fmt: skip
    assert ctl(config, "remove", "-p", "1", "5") == 4
    assert "was not blacklisted" in capsys.readouterr().err


def test_what_stays_blacklisted_is_said(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl(config, "remove", "-p", "1", "86451") == 4
    assert "is yours to edit" in capsys.readouterr().err
    assert ctl(config, "remove", "-p", "experimental", "8.0.1") == 4
    assert "blacklists the range" in capsys.readouterr().err


def test_a_reason_is_one_line(config: Path) -> None:
    assert ctl(config, "add", "-p", "1", "5", "--reason", "a\nb") == 2


def test_a_xenstore_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "unplugd.toml"
    config.write_text(f'xenstore = {{ backend = "socket", socket = "{tmp_path}/none" }}\n')
    for command in (["list"], ["check", "linux", "1"], ["add", "linux", "2"], ["remove", "linux", "2"]):
        assert ctl(config, *command) == 5
        assert "does xenstored run" in capsys.readouterr().err


def test_an_entry_that_xenstore_cannot_express(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl(config, "add", "--guests", "web-*", "1", "5") == 2
    assert "xenstore cannot express" in capsys.readouterr().err
    assert ctl(config, "add", "-p", "--guests", "vm?", "--guests", "web-*", "--action", "withhold", "1", "5") == 0
    assert "withhold: Not known" in capsys.readouterr().out
    with serving(blacklisted(7, "vm7", build=5), blacklisted(8, "db-01", build=5)) as control:
        assert main(["blacklist", "list", "--config", str(config), "--socket", str(control.path)]) == 0
    assert [row.split()[:7] for row in capsys.readouterr().out.splitlines()[1:] if " 5 " in row] == [
        ["xensource-windows", "5", "configuration", "1", "withhold", "vm?,", "web-*"]]
    assert ctl(config, "check", "1", "5") == 1
    assert "for guests vm?, web-* (withhold)" in capsys.readouterr().out


def test_a_blacklist_that_is_only_observed_says_so(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text(config.read_text() + '[blacklist]\nmode = "observe"\naction = "withhold"\n')
    for command in (["list"], ["check", "1", "86451"], ["add", "-p", "1", "6"]):
        ctl(config, *command)
        assert 'blacklist.mode is "observe"' in capsys.readouterr().out
    ctl(config, "list", "-l")
    found = json.loads(capsys.readouterr().out)
    assert {row["action"] for row in found["entries"]} == {"withhold"}
