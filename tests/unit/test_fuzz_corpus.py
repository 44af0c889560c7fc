"""The fuzz target's corpus, tried in every run: what once was interesting stays right."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.stream import check, corpus, frames


@pytest.mark.parametrize("path", corpus(), ids=lambda path: path.name)
def test_the_invariant_holds_for(path: Path) -> None:
    data = path.read_bytes()
    check(data)
    # In single bytes too: as it is, with delay, and with everything forbidden.
    for mode in (0, 1, 14):
        check(bytes((mode, 0, 0)) + data[3:])


@settings(max_examples=100)
@given(st.binary(max_size=400))
def test_the_invariant_holds_for_anything(data: bytes) -> None:
    check(data)


def test_there_is_a_corpus_and_it_has_frames() -> None:
    assert sum(bool(list(frames(path.read_bytes()[3:]))) for path in corpus()) >= 15
