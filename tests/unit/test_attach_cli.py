from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from unplugd.attach import cli
from unplugd.config.attach import AttachConfig
from unplugd.sinks.journal import Journal
from unplugd.sinks.records import Entry


def test_without_xen_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "unplugd.toml"
    file.write_text("")
    monkeypatch.setattr(cli, "PRIVCMD", tmp_path / "privcmd")
    assert cli.main(["--config", str(file)]) == 2
    assert capsys.readouterr().err == f"unplugd-attach: Xen: {tmp_path}/privcmd: is not there\n"


def test_in_a_guest_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "privcmd").touch()
    (tmp_path / "capabilities").write_text("\n")
    (tmp_path / "unplugd.toml").write_text("")
    monkeypatch.setattr(cli, "PRIVCMD", tmp_path / "privcmd")
    monkeypatch.setattr(cli, "CAPABILITIES", tmp_path / "capabilities")
    assert cli.main(["--config", str(tmp_path / "unplugd.toml")]) == 2
    assert "is not dom0" in capsys.readouterr().err


def test_a_wrong_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "unplugd.toml"
    file.write_text("wrong = 1\n")
    assert cli.main(["--config", str(file)]) == 2
    assert str(file) in capsys.readouterr().err


def test_monitors() -> None:
    assert AttachConfig().monitors(7) == ("/var/run/xen/qmp-libxenstat-7", "/var/run/xen/qmp-libxl-7")
    assert AttachConfig(monitor="/run/q-{domid}").monitors(7) == ("/run/q-7",)


class SlowJournal:
    """Takes entries when the test says so."""

    def __init__(self) -> None:
        self.taken: list[Entry] = []
        self.open = False
        self.callback: Callable[[], None] | None = None

    def send(self, entry: Entry) -> bool:
        if self.open:
            self.taken.append(entry)
        return self.open

    def when_writable(self, callback: Callable[[], None]) -> None:
        self.callback = callback


def test_records_wait_for_the_journal() -> None:
    journal = SlowJournal()
    records = cli.Records(cast(Journal, journal))
    for number in range(1100):
        records.report(7 if number % 2 else None, f"{number}")
    assert journal.callback is not None
    journal.open = True
    journal.callback()
    assert len(journal.taken) == 1000  # the oldest made room
    assert journal.taken[-1].message == b"domain 7: 1099"
    assert ("XEN_DOMID", "7") in journal.taken[-1].fields
    records.report(None, "and on")
    assert journal.taken[-1].message == b"and on"


def test_records_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    cli.Records(None).report(7, "here")
    assert capsys.readouterr().err == "unplugd-attach: domain 7: here\n"
