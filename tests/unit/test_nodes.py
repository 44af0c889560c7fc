"""What xenstore says about a domain."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from tests.lab.host import UUID
from unplugd.domains.nodes import DomainNodes, nodes_of, paths
from unplugd.errors import NoSuchNode, StoreUnavailable


def read(values: Sequence[bytes | Exception]) -> DomainNodes:
    """What these answers to paths() say."""

    async def main() -> DomainNodes:
        futures: list[asyncio.Future[bytes]] = []
        for value in values:
            futures.append(asyncio.get_running_loop().create_future())
            if isinstance(value, Exception):
                futures[-1].set_exception(value)
            else:
                futures[-1].set_result(value)
        return await nodes_of(futures)

    return asyncio.run(main())


GONE = NoSuchNode("gone")


def test_nobody_but_dom0_can_write_what_is_read() -> None:
    assert paths(7) == [
        "/local/domain/7/name", "/local/domain/7/vm", "/local/domain/7/log-throttling",
        "/local/domain/7/image/device-model-kill-uid",
    ]  # fmt: skip


@pytest.mark.parametrize(("values", "facts"), [
    ([GONE] * 4, DomainNodes()),
    ([b"web-01", f"/vm/{UUID}".encode(), GONE, GONE], DomainNodes("web-01", UUID)),
    ([b"n\xffme", GONE, b"0", b"4711"], DomainNodes("n\udcffme", "", unlimited=True, device_model_uid=4711)),
    ([b"", b"/vm/", b"1", b"0"], DomainNodes(device_model_uid=0)),
    ([b"a", b"/vm/no uuid", b"", b"-1"], DomainNodes("a")),
    ([b"a", b"/vm/" + b"a" * 65, b"00", b"4294967295"], DomainNodes("a")),
    ([b"a", b"/local/vm", b"0 ", b"\xd9\xa3"], DomainNodes("a")),
])  # fmt: skip
def test_what_values_mean(values: list[bytes | Exception], facts: DomainNodes) -> None:
    assert read(values) == facts


def test_one_value_without_an_answer_is_none_at_all() -> None:
    with pytest.raises(StoreUnavailable):
        read([b"a", StoreUnavailable("no answer in time"), GONE, StoreUnavailable("nobody looks at this one")])


@pytest.mark.parametrize("facts", [
    DomainNodes(), DomainNodes("web-01", UUID), DomainNodes("web-01", UUID, unlimited=True, device_model_uid=0),
    DomainNodes("n\u00e4me\udcff", "", device_model_uid=0xFFFFFFFE),
])  # fmt: skip
def test_facts_are_kept_as_they_are(facts: DomainNodes) -> None:
    assert DomainNodes.unpack(facts.pack()) == facts


@pytest.mark.parametrize("kept", [b"", b"\0" * 9, b"\0" * 9 + b"\3\xff\xff\xff"])
def test_facts_that_are_none(kept: bytes) -> None:
    assert DomainNodes.unpack(kept) is None
