"""Reads that many share: few requests, and nobody gets an answer from before he asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from tests.lab.host import until
from unplugd.blacklist.lookups import Answer, SharedReads
from unplugd.errors import NoSuchNode, StoreUnavailable
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


class Asker:
    """Somebody who asks for a node, and has so much patience."""

    def __init__(self, reads: SharedReads, path: str = PATH, patience: float = 1000.0) -> None:
        self.answers: list[Answer] = []
        reads.read(path, asyncio.get_running_loop().time() + patience, self.answers.append)


async def turn() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def test_many_askers_few_requests_and_no_old_answers() -> None:
    async def story(store: Slow, reads: SharedReads) -> None:
        first = Asker(reads)
        others = [Asker(reads) for _ in range(999)]
        elsewhere = Asker(reads, PATH + "0")
        assert [path for path, _ in store.asked] == [PATH, PATH + "0"]
        store.asked[0][1].set_result(b"old")
        await turn()
        assert first.answers == [b"old"]
        assert not any(other.answers for other in others), "that was read before they asked"
        assert len(store.asked) == 3
        late = Asker(reads)
        store.asked[2][1].set_result(b"new")
        await turn()
        assert all(other.answers == [b"new"] for other in others)
        assert (late.answers, elsewhere.answers, len(store.asked)) == ([], [], 4)
        store.asked[3][1].set_result(b"newest")
        await turn()
        assert late.answers == [b"newest"]
        Asker(reads)
        assert len(store.asked) == 5

    run(story)


def test_errors_are_answers() -> None:
    async def story(store: Slow, reads: SharedReads) -> None:
        absent, unknown = Asker(reads), Asker(reads)
        store.asked[0][1].set_exception(NoSuchNode(PATH))
        await turn()
        assert isinstance(absent.answers[0], NoSuchNode)
        store.asked[1][1].set_exception(StoreUnavailable("lost"))
        await turn()
        assert isinstance(unknown.answers[0], StoreUnavailable)

    run(story)


def test_who_gave_up_holds_nobody_up() -> None:
    async def story(store: Slow, reads: SharedReads) -> None:
        first, second = Asker(reads, patience=0.01), Asker(reads)
        await until(lambda: first.answers)
        assert [str(answer) for answer in first.answers] == ["no answer in time"]
        third = Asker(reads)
        assert len(store.asked) == 2
        store.asked[0][1].set_result(b"late")
        await turn()
        assert (first.answers[1:], second.answers) == ([], [])
        fourth = Asker(reads, patience=0.01)
        await until(lambda: fourth.answers)
        store.asked[1][1].set_result(b"value")
        await turn()
        assert (second.answers, third.answers) == ([b"value"], [b"value"])
        assert len(store.asked) == 2, "nobody wants another"

    run(story)


def test_a_fault_in_the_answer_leaves_the_deadline() -> None:
    async def story(store: Slow, reads: SharedReads) -> None:
        said: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: said.append(context["exception"]))
        asker = Asker(reads, patience=0.02)
        store.asked[0][1].set_exception(MemoryError())
        await until(lambda: asker.answers)
        assert [str(answer) for answer in asker.answers] == ["no answer in time"]
        assert [type(one) for one in said] == [MemoryError]
        Asker(reads)
        assert len(store.asked) == 2

    run(story)


def test_each_has_his_own_deadline() -> None:
    async def story(store: Slow, reads: SharedReads) -> None:
        patient = Asker(reads)
        hasty = [Asker(reads, patience=patience) for patience in (0.06, 0.02, 0.04)]
        order: list[int] = []
        while len(order) < 3:
            order += [number for number, one in enumerate(hasty) if one.answers and number not in order]
            await asyncio.sleep(0.001)
        assert order == [1, 2, 0]
        store.asked[0][1].set_result(b"value")
        await turn()
        assert patient.answers == [b"value"]
        assert len(store.asked) == 1

    run(story)
