"""Fixtures of the integration tests: real xenstoreds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.xenstored import KINDS, Kind, Xenstored, needed, running


@pytest.fixture(params=KINDS)
def xenstored(request: pytest.FixtureRequest) -> Iterator[Xenstored]:
    """A new and empty xenstored: the C one, then oxenstored."""
    kind: Kind = request.param
    needed()
    with running(kind) as store:
        yield store
