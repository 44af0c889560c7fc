"""unplugd.demo: how it tells and checks its claims. The show itself is tests/integration/test_demo.py's."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from unplugd import demo
from unplugd.errors import HostError


def test_a_claim_that_holds_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    stage = demo.Stage(colour=False)
    stage.headline("now")
    stage.row("seen")
    stage.claim(True, "it holds")
    assert capsys.readouterr().out == "\nnow\n  seen\n  ok it holds\n"
    assert stage.claims == 1


def test_a_claim_that_does_not_hold_says_what_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    stage = demo.Stage(colour=True)
    with pytest.raises(demo.ClaimFailed, match="it holds; found: 7"):
        stage.claim(False, "it holds", 7)
    assert capsys.readouterr().out == "  \x1b[31mFAILED\x1b[0m it holds\n"
    assert stage.claims == 0


@pytest.mark.parametrize(
    "error",
    [demo.ClaimFailed("no socket"), HostError("unplugd", "here", "no socket"), OSError("no socket")],
)
def test_a_failure_is_told_and_ends_with_1(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
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


def test_cells() -> None:
    cells = [demo._cell(value) for value in (None, [], True, False, ["nics", "x"], 0, "a")]
    assert cells == ["-", "-", "yes", "no", "nics, x", "0", "a"]
