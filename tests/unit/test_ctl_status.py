"""ctl/status.py: what /api/v1/status says, in words."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.lab.control import blacklisted, domain, serving, status
from tests.lab.hostview import StandInHost
from unplugd.ctl.cli import main
from unplugd.ctl.status import changed, ids, lasting
from unplugd.http.pages import Pages


def shape(value: Any) -> Any:
    return {key: shape(item) for key, item in value.items()} if isinstance(value, dict) else type(value)


def test_the_stand_in_says_what_the_service_says() -> None:
    page = Pages(StandInHost()).answer("GET", "/api/v1/status", "", everything=True)
    assert not isinstance(page.body, bytes)
    said, ours = json.loads(b"".join(page.body)), status()
    assert {**shape(said), "protocol_errors": None} == {**shape(ours), "protocol_errors": None}


def test_ready(capsys: pytest.CaptureFixture[str]) -> None:
    noisy = domain(9, "noisy", log={"throttled": True, "dropped_lines": {"rate-limit": 3, "sink": 1}})
    with serving(domain(), blacklisted(8), noisy) as control:
        assert main(["status", "--socket", str(control.path)]) == 0
        text = capsys.readouterr().out
        assert main(["status", "-l", "--socket", str(control.path)]) == 0
        found = json.loads(capsys.readouterr().out)
    assert text.startswith("unplugd 0.1.0 runs (process ")
    assert "no file, the defaults; read 20" in text
    assert "blacklisted guests: 8" in text
    assert "throttled guests: 9" in text
    assert "3 by the rate limit, 1 because" in text
    assert "note" not in text
    assert (found["running"], found["ready"], found["domains"], found["blacklisted"]) == (True, True, 3, [8])
    assert found["pid"] == os.getpid()


def test_not_ready(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(ready=False, waiting_for="xenstored\x1b[2J") as control:
        assert main(["status", "--socket", str(control.path)]) == 1
        assert "not ready: it waits for xenstored\\x1b[2J" in capsys.readouterr().out
        assert main(["status", "-l", "--socket", str(control.path)]) == 1
        assert json.loads(capsys.readouterr().out)["waiting_for"] == "xenstored\x1b[2J"


def test_what_is_out_of_the_ordinary_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    refused = {"time": 1795428624.4, "problem": "a.toml: log.rate: is 'x\x1b'"}
    said = {
        "denied_connections": 2, "protocol_errors": {"bad-type": 1, "bad-size": 0}, "problem": "journal: busy",
        "configuration": {"files": ["/nowhere"], "since": 0.0, "reloads": 3, "refused": refused},
    }  # fmt: skip
    with serving(**said) as control:
        assert main(["status", "--socket", str(control.path)]) == 0
    text = capsys.readouterr().out
    assert "2 connections denied" in text
    assert "1 connection closed for a fault" in text
    assert "guest logs wait: journal: busy" in text
    assert "the previous configuration stays in effect: a.toml: log.rate: is 'x\\x1b'" in text
    assert "changed since" not in text


def test_files_that_changed_since_they_were_read(tmp_path: Path) -> None:
    file, drop_ins = tmp_path / "unplugd.toml", tmp_path / "unplugd.toml.d"
    gone, new = drop_ins / "10.toml", drop_ins / "20.toml"
    file.touch()
    said = {"files": [str(file), str(gone)], "since": file.stat().st_mtime}
    assert changed(said) == [str(gone)]
    drop_ins.mkdir()
    gone.touch()
    os.utime(gone, (said["since"], said["since"]))  # type: ignore[arg-type] # a float
    assert changed(said) == []
    new.touch()
    os.utime(file, (2e9, 2e9))
    assert changed(said) == [str(new), str(file)]


def test_a_change_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "unplugd.toml"
    file.touch()
    configuration = {"files": [str(file)], "since": 5.0, "reloads": 0, "refused": None}
    with serving(configuration=configuration) as control:
        assert main(["status", "--socket", str(control.path)]) == 0
    assert f"{file} changed since then; to use it: systemctl reload unplugd" in capsys.readouterr().out


def test_a_service_that_is_older(capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as control:
        del control.pages["/api/v1/status"]
        assert main(["status", "--socket", str(control.path)]) == 3
    assert "systemctl restart unplugd" in capsys.readouterr().err


def test_not_running(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "-l", "--socket", str(tmp_path / "none")]) == 3
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"running", "ready", "problem", "control_socket"}
    assert found["running"] is False


def test_many_ids_are_cut() -> None:
    assert ids([]) == "none"
    assert ids(list(range(12))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ..."


def test_a_time_in_its_largest_unit() -> None:
    assert [lasting(seconds) for seconds in (-1, 1, 59, 60, 7200, 200000)] == [
        "0 seconds", "1 second", "59 seconds", "1 minute", "2 hours", "2 days"]  # fmt: skip
