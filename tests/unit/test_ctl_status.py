"""ctl/status.py: what /metrics and /-/ready say, in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.lab.control import blacklisted, domain, serving
from tests.lab.hostview import StandInDomain, StandInHost
from unplugd.ctl.cli import main
from unplugd.ctl.status import ids, samples
from unplugd.exposition import TEXT, Exposition

HOSTILE = 'x"\\\n} 5\nunplugd_xenstore_up 0\n'


def exposition(*domains: StandInDomain) -> str:
    return b"".join(Exposition(StandInHost(domains)).pieces(TEXT)).decode()


def test_samples_of_the_real_exposition() -> None:
    found = samples(exposition(StandInDomain(name=HOSTILE)))
    assert found["unplugd_build_info"] == [({"version": "0.1.0"}, 1.0)]
    assert found["unplugd_xenstore_up"] == [({}, 1.0)]
    assert sum(value for _, value in found["unplugd_ioreqs_total"]) == 0
    ((labels, _),) = found["unplugd_domain_info"]
    assert labels["domid"] == "7"


def test_ready(capsys: pytest.CaptureFixture[str]) -> None:
    noisy = domain(9, "noisy", log={"throttled": True, "dropped_lines": {"rate-limit": 3, "sink": 1}})
    with serving(domain(), blacklisted(8), noisy, metrics=exposition()) as control:
        assert main(["status", "--socket", str(control.path)]) == 0
        text = capsys.readouterr().out
        assert main(["status", "-l", "--socket", str(control.path)]) == 0
        found = json.loads(capsys.readouterr().out)
    assert text.startswith("unplugd 0.1.0 runs (process ")
    assert "blacklisted guests: 8" in text
    assert "throttled guests: 9" in text
    assert "3 by the rate limit, 1 because" in text
    assert set(found) == {
        "running", "ready", "waiting_for", "version", "pid", "control_socket", "xenstore_up", "xenstore_reconnects",
        "domains", "connections", "ioreqs", "blacklist_entries", "fallback_verdicts", "blacklisted", "throttled",
        "dropped_lines", "protocol_errors", "denied_connections",
    }  # fmt: skip
    assert (found["running"], found["ready"], found["domains"], found["blacklisted"]) == (True, True, 3, [8])


def test_not_ready(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(ready=False, metrics=exposition()) as control:
        assert main(["status", "--socket", str(control.path)]) == 1
        assert "not ready: it waits for xenstored" in capsys.readouterr().out
        assert main(["status", "-l", "--socket", str(control.path)]) == 1
        assert json.loads(capsys.readouterr().out)["waiting_for"] == "xenstored"


def test_what_is_out_of_the_ordinary_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = 'unplugd_denied_connections_total 2\nunplugd_protocol_errors_total{reason="type"} 1\n'
    with serving(metrics=metrics) as control:
        assert main(["status", "--socket", str(control.path)]) == 0
    text = capsys.readouterr().out
    assert "2 connection denieds" not in text
    assert "2 connections denied" in text
    assert "1 connection closed for a fault" in text


def test_not_running(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "-l", "--socket", str(tmp_path / "none")]) == 3
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"running", "ready", "problem", "control_socket"}
    assert found["running"] is False


def test_many_ids_are_cut() -> None:
    assert ids([]) == "none"
    assert ids(list(range(12))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ..."
