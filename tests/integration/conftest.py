"""Fixtures of the integration tests: real xenstoreds."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.lab.xenstored import KINDS, Kind, LabError, Xenstored, prepared, running


@pytest.fixture(params=KINDS)
def xenstored(request: pytest.FixtureRequest) -> Iterator[Xenstored]:
    """A new and empty xenstored: the C one, then oxenstored."""
    kind: Kind = request.param
    if os.geteuid() != 0:
        pytest.skip(
            "needs root: oxenstored's socket has a fixed path, which a mount namespace of its own gives it"
        )
    try:
        prepared()
    except LabError as error:
        pytest.skip(f"no xenstored here: {error}")
    with running(kind) as store:
        yield store
