"""unplugd.simulator.stage: what is shown, and what becomes of a claim."""

from __future__ import annotations

import pytest

from unplugd.simulator.stage import ClaimFailed, Stage


def test_a_claim_that_holds_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    stage = Stage(colour=False)
    stage.headline("now")
    stage.row("seen")
    stage.claim(True, "it holds")
    assert capsys.readouterr().out == "\nnow\n  seen\n  ok it holds\n"
    assert stage.claims == 1


def test_a_claim_that_does_not_hold_says_what_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    stage = Stage(colour=True)
    with pytest.raises(ClaimFailed, match="it holds; found: 7"):
        stage.claim(False, "it holds", 7)
    assert capsys.readouterr().out == "  \x1b[31mFAILED\x1b[0m it holds\n"
    assert stage.claims == 0


def test_a_table_has_columns(capsys: pytest.CaptureFixture[str]) -> None:
    Stage(colour=False).table(
        [("name", "bad", "gone"), ("a", True, ["nics", "x"]), (1, False, []), (None, 0, "")]
    )
    assert capsys.readouterr().out == "".join(
        f"  {line}\n" for line in ("name  bad  gone", "a     yes  nics, x", "1     no   -", "-     0")
    )
