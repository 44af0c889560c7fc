"""ctl/journal.py: what becomes of the journal's entries and of guests' files. The real journal: integration."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab.control import UUID, domain, serving
from unplugd.ctl import journal
from unplugd.ctl.cli import main
from unplugd.sinks.files import file_name, format_line
from unplugd.sinks.records import Event

HOSTILE = b"\x1b]0;pwned\x07 \x1b[2J"


def raw(**fields: object) -> bytes:
    return json.dumps({"__REALTIME_TIMESTAMP": "1700000000123456", **fields}).encode()


def test_an_entry_has_stable_keys() -> None:
    entry = journal._entry(raw(
        MESSAGE="hello", MESSAGE_ID=Event.GUEST_LINE.message_id, PRIORITY="6", XEN_DOMID="7", XEN_DOMAIN_UUID="u",
        XEN_DOMAIN_NAME="web-01", UNPLUG_PRODUCT="3", UNPLUG_PRODUCT_NAME="linux", UNPLUG_BUILD="1",
    ))  # fmt: skip
    assert entry == {
        "time": 1700000000.123456, "event": "guest-line", "message": "hello", "priority": "6", "domid": 7, "uuid": "u",
        "name": "web-01", "product": 3, "product_name": "linux", "build": 1,
    }  # fmt: skip


def test_strange_entries() -> None:
    assert journal._entry(b"no json") is None
    assert journal._entry(b"{}") is None
    assert journal._entry(b'["x"]') is None
    entry = journal._entry(raw(MESSAGE=list(HOSTILE + b"\xff"), XEN_DOMID="x", MESSAGE_ID=["twice", "no"]))
    assert entry is not None
    assert entry["message"].encode("utf-8", "surrogateescape") == HOSTILE + b"\xff"
    assert (entry["domid"], entry["build"], entry["event"]) == (None, None, "other")
    assert journal._entry(raw(MESSAGE=None)) is not None


def test_every_kind_has_a_name() -> None:
    assert len(set(journal.KINDS.values())) == len(Event) == len(journal.KINDS)


def test_what_is_looked_for() -> None:
    assert journal._matches("web-01", domain()) == [f"XEN_DOMAIN_UUID={UUID.format(7)}"]
    assert journal._matches("web-01", domain(uuid="")) == ["XEN_DOMID=7"]
    assert journal._matches("7", None) == ["XEN_DOMID=7"]
    assert journal._matches(UUID.format(7).upper(), None) == [f"XEN_DOMAIN_UUID={UUID.format(7)}"]
    names = ["gone", "gone--incoming", "gone--migratedaway"]
    assert journal._matches("gone", None) == [f"XEN_DOMAIN_NAME={name}" for name in names]
    assert journal._matches("gone--migratedaway", None)[0] == "XEN_DOMAIN_NAME=gone--migratedaway"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    logs = tmp_path / "guests"
    logs.mkdir()
    (logs / "guest-web-01.log.1").write_bytes(format_line(1.7e9, b"oldest"))
    (logs / "guest-web-01.log").write_bytes(
        b"".join(format_line(1.7e9 + at, text) for at, text in enumerate((b"one", b"two \\ three", HOSTILE))))
    config = tmp_path / "unplugd.toml"
    config.write_text(f'[log]\nsinks = ["file"]\ndirectory = "{logs}"\n')
    return config


def test_lines_of_a_guests_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(domain()) as control:
        common = ["--config", str(file), "--socket", str(control.path)]
        assert main(["log", "7", *common]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split("  ", 1)[1] for line in lines] == [
            "oldest", "one", "two \\\\ three", "\\x1b]0;pwned\\x07 \\x1b[2J"]  # fmt: skip
        assert main(["log", "web-01", "-n", "2", "-l", *common]) == 0
        entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [entry["time"] for entry in entries] == [1.7e9 + 1, 1.7e9 + 2]
        assert set(entries[0]) == {"time", "event", "message"}


def test_a_raw_file_is_escaped_too(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever may write the directory could have left anything there."""
    (file.parent / "guests" / "guest-web-01.log").write_bytes(HOSTILE + b" x\n\xff\n\n")
    assert main(["log", "web-01", "--config", str(file), "--socket", "none"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_of_two_domains_with_one_name_each_has_its_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file.parent / "guests" / "guest-web-01-8.log").write_bytes(format_line(1.7e9, b"the other"))
    with serving(domain(7), domain(8)) as control:
        common = ["--config", str(file), "--socket", str(control.path)]
        assert main(["log", "8", *common]) == 0
        assert "the other" in capsys.readouterr().out
        assert main(["log", "7", *common]) == 0
        assert "two" in capsys.readouterr().out


def test_a_file_is_followed_over_its_rotation(file: Path) -> None:
    path = file.parent / "guests" / "guest-web-01.log"
    command = [sys.executable, "-m", "unplugd.ctl", "log", "web-01", "-f", "-n", "1", "--config", str(file),
               "--socket", "none"]  # fmt: skip
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert process.stdout is not None
    output = process.stdout
    heard = b""

    def wait_for(text: bytes) -> None:
        nonlocal heard
        end = time.monotonic() + 30
        while text not in heard:
            assert time.monotonic() < end, heard
            if select.select([output], [], [], 0.2)[0]:
                heard += os.read(output.fileno(), 65536)

    try:
        wait_for(b"pwned")
        with path.open("ab") as log:
            log.write(format_line(1.7e9, b"before half")[:-5])
            log.flush()
            time.sleep(0.5)
            log.write(b" and the rest\n")
        wait_for(b"and the rest\n")
        path.rename(path.with_name(path.name + ".1"))
        path.write_bytes(format_line(1.7e9, b"after"))
        wait_for(b"after\n")
        assert b"one" not in heard
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        output.close()


def test_a_guest_without_a_log(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["log", "nobody", "--config", str(file), "--socket", "none"]) == 4
    assert "no guest nobody runs here, and " in capsys.readouterr().err
    with serving(domain(7, "silent")) as control:
        assert main(["log", "7", "--config", str(file), "--socket", str(control.path)]) == 4
        assert "silent has logged nothing" in capsys.readouterr().err


@pytest.mark.parametrize("left", ["web--migratedaway.log", "web--incoming.log", "web.log", "web.log.1"])
@pytest.mark.parametrize("asked", ["web", "web--migratedaway", "7"])
def test_a_guest_that_migrated_has_its_file(
    file: Path, capsys: pytest.CaptureFixture[str], left: str, asked: str
) -> None:
    (file.parent / "guests" / f"guest-{left}").write_bytes(format_line(1.7e9, b"before"))
    with serving(domain(7, "web")) as control:
        socket = "none" if asked != "7" else str(control.path)
        assert main(["log", asked, "--config", str(file), "--socket", socket]) == 0
    assert "before" in capsys.readouterr().out


def test_a_name_that_was_cut_is_found_without_its_domid(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file.parent / "guests" / file_name("x" * 300, 12)).write_bytes(format_line(1.7e9, b"before"))
    assert main(["log", "x" * 300, "--config", str(file), "--socket", "none"]) == 0
    assert "before" in capsys.readouterr().out


def test_sinks_that_cannot_be_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "unplugd.toml"
    config.write_text('[log]\nsinks = ["stderr"]\n')
    for command in (["log", "7"], ["events"]):
        assert main([*command, "--config", str(config), "--socket", "none"]) == 7
        assert "journalctl -u unplugd" in capsys.readouterr().err


def test_a_kind_of_event_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["events", "-k", "throttled", "-k", "no\x1bne", "--socket", "none"]) == 2
    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert "sink-failed" in error


def test_the_page_has_every_kind() -> None:
    page = (Path(__file__).parents[2] / "docs" / "unplugctl.md").read_text("utf-8")
    section = page.partition("## Kinds of events")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([a-z-]+)`", section)) - {"-k"}
    assert named == set(journal.KINDS.values()) - {"guest-line", "lines-dropped"}


def test_without_journalctl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["events", "--socket", "none"]) == 7
    assert "journalctl is not installed" in capsys.readouterr().err
