"""unplugd.simulator.demo: how it fails. The show itself is tests/integration/test_demo.py's."""

from __future__ import annotations

import tomllib

import pytest

from unplugd.errors import HostError
from unplugd.simulator import demo
from unplugd.simulator.stage import ClaimFailed


@pytest.mark.parametrize(
    "error",
    [ClaimFailed("no socket"), HostError("unplugd", "here", "no socket"), OSError("no socket")],
)
def test_a_failure_is_told_and_ends_with_1(
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    tmp_path = tmp_path_factory.mktemp("t")  # a short path: sockets need it

    def perform(self: demo.Demo, *, stay: bool) -> None:
        raise error

    monkeypatch.setattr(demo.Demo, "perform", perform)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    assert demo.main([]) == 1
    assert "no socket\n" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert demo.main(["--keep"]) == 1
    [kept] = tmp_path.iterdir()
    configuration = tomllib.loads((kept / "unplugd.toml").read_text())
    assert len(configuration["xenstore"]["domain"]) == 5
