"""Reads that many share: few requests, and nobody gets an answer from before he asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from unplugd.errors import NoSuchNode, StoreUnavailable
from unplugd.sharedreads import SharedReads
from unplugd.xenstore.embedded import EmbeddedStore

PATH = "/mh/driver-blacklist/linux/1"


class Slow(EmbeddedStore):
    """Answers reads when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, asyncio.Future[bytes]]] = []

    def read(self, path: str, *, tx: int = 0, deadline: float | None = None) -> asyncio.Future[bytes]:
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.asked.append((path, future))
        return future


def run(test: Callable[[Slow, SharedReads], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        store = Slow()
        await test(store, SharedReads(store))

    asyncio.run(main())


async def turn() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def test_many_askers_few_requests_and_no_old_answers() -> None:
    async def story(store: Slow, reads: SharedReads) -> None:
        first = reads.read(PATH)
        others = [reads.read(PATH) for _ in range(999)]
        elsewhere = reads.read(PATH + "0")
        assert [path for path, _ in store.asked] == [PATH, PATH + "0"]
        store.asked[0][1].set_result(b"old")
        await turn()
        assert first.result() == b"old"
        assert not any(other.done() for other in others), "that was read before they asked"
        assert len(store.asked) == 3
        late = reads.read(PATH)
        store.asked[2][1].set_result(b"new")
        await turn()
        assert {other.result() for other in others} == {b"new"}
        assert (late.done(), elsewhere.done(), len(store.asked)) == (False, False, 4)
        store.asked[3][1].set_result(b"newest")
        await turn()
        assert late.result() == b"newest"
        again = reads.read(PATH)
        assert len(store.asked) == 5
        again.cancel()

    run(story)


def test_errors_are_answers() -> None:
    async def story(store: Slow, reads: SharedReads) -> None:
        absent, unknown = reads.read(PATH), reads.read(PATH)
        store.asked[0][1].set_exception(NoSuchNode(PATH))
        await turn()
        assert isinstance(absent.result(), NoSuchNode)
        store.asked[1][1].set_exception(StoreUnavailable("lost"))
        await turn()
        assert isinstance(unknown.result(), StoreUnavailable)

    run(story)


def test_who_gave_up_holds_nobody_up() -> None:
    async def story(store: Slow, reads: SharedReads) -> None:
        first, second = reads.read(PATH), reads.read(PATH)
        first.cancel()
        third = reads.read(PATH)
        assert len(store.asked) == 2
        store.asked[0][1].set_result(b"late")
        await turn()
        assert not second.done()
        fourth = reads.read(PATH)
        store.asked[1][1].set_result(b"value")
        await turn()
        assert (second.result(), third.result(), fourth.done()) == (b"value", b"value", False)
        fourth.cancel()
        store.asked[2][1].set_result(b"nobody wants it")
        await turn()
        assert len(store.asked) == 3

    run(story)
