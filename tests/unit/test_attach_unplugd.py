from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from unplugd.attach.plan import Ask, Reply
from unplugd.attach.unplugd import Unplugd, absent, encode
from unplugd.core.ioreq import FRAME_SIZE, decode, response


@dataclass
class FakeUnplugd:
    """The domain's socket. Answers reads with their port, writes with an order of 3; `hold` answers nothing."""

    hold: bool = False
    down: bool = False
    noise: bytes = b""
    """Sent in place of an answer, once."""
    seen: list[bytes] = field(default_factory=list)
    ends: list[socket.socket] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def connect(self) -> socket.socket:
        if self.down:
            raise ConnectionRefusedError
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        self.ends.append(theirs)
        self.tasks.append(asyncio.create_task(self._serve(theirs)))
        return ours

    async def _serve(self, end: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        received = b""
        with contextlib.suppress(OSError):
            while data := await loop.sock_recv(end, 65536):
                received += data
                while len(received) >= FRAME_SIZE:
                    request = decode(received[:FRAME_SIZE])
                    size = FRAME_SIZE + request.payload_size
                    if len(received) < size:
                        break
                    self.seen.append(received[:size])
                    received = received[size:]
                    if self.hold:
                        continue
                    if self.noise:
                        await loop.sock_sendall(end, self.noise)
                        self.noise = b""
                        continue
                    payload = bytes([request.addr]) * (request.count * request.size)
                    await loop.sock_sendall(end, response(request, request.addr if request.read else 3,
                                                          payload if request.string and request.read else b""))
        end.close()

    def drop(self) -> None:
        """Close every connection."""
        for end in self.ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Answers:
    def __init__(self, unplugd: Unplugd) -> None:
        self.unplugd = unplugd
        self.replies: dict[int, Reply] = {}
        self._number = 0

    def ask(self, ask: Ask) -> int:
        number = self._number
        self._number += 1
        self.unplugd.ask(ask, lambda reply: self.replies.__setitem__(number, reply))
        return number

    async def all(self) -> list[Reply]:
        while len(self.replies) < self._number:
            await asyncio.sleep(0.005)
        return [self.replies[number] for number in range(self._number)]


def run(
    fake: FakeUnplugd, work: Callable[[Answers], Awaitable[None]], *, give_up_after: float | None = 20.0
) -> list[str]:
    said: list[str] = []

    async def main() -> None:
        unplugd = Unplugd(fake.connect, give_up_after=give_up_after, report=said.append)
        connection = asyncio.create_task(unplugd.run())
        async with asyncio.timeout(30):
            await work(Answers(unplugd))
        connection.cancel()
        fake.drop()
        await asyncio.gather(*fake.tasks)
        for _ in range(5):
            await asyncio.sleep(0)

    asyncio.run(main())
    return said


def test_frames() -> None:
    frame, expected = encode(Ask(0x12, 1, count=3, payload=b"abc"))
    assert decode(frame[:32]).string
    assert frame[32:] == b"abc"
    assert expected == 0
    assert encode(Ask(0x12, 2, read=True, count=3, payload=b""))[1] == 6
    assert encode(Ask(0x10, 2, read=True))[1] == 0


def test_absent_is_what_no_device_answers() -> None:
    assert absent(Ask(0x10, 2, read=True)) == Reply(0xFFFF, absent=True)
    assert absent(Ask(0x10, 2, data=3)) == Reply(0, absent=True)
    assert absent(Ask(0x12, 2, read=True, count=2, payload=b"")) == Reply(0xFFFF, b"\xff" * 4, absent=True)


def test_answers_come_in_order() -> None:
    fake = FakeUnplugd()

    async def work(answers: Answers) -> None:
        answers.ask(Ask(0x10, 2, read=True))
        answers.ask(Ask(0x12, 2, read=True, count=3, payload=b""))
        answers.ask(Ask(0x10, 2, data=3))
        answers.ask(Ask(0x12, 1, count=2, payload=b"hi"))
        assert await answers.all() == [Reply(0x10), Reply(0x12, b"\x12" * 6), Reply(3), Reply(3)]

    assert run(fake, work) == []


def test_what_has_no_answer_is_sent_again() -> None:
    fake = FakeUnplugd(hold=True)

    async def work(answers: Answers) -> None:
        answers.ask(Ask(0x10, 2, read=True))
        answers.ask(Ask(0x12, 1, count=2, payload=b"hi"))
        while len(fake.seen) < 2:
            await asyncio.sleep(0.005)
        fake.hold = False
        fake.drop()
        assert await answers.all() == [Reply(0x10), Reply(3)]

    run(fake, work)
    assert fake.seen[:2] == fake.seen[2:]


def test_while_unplugd_is_away_accesses_wait_and_then_find_nothing() -> None:
    fake = FakeUnplugd(down=True)

    async def work(answers: Answers) -> None:
        answers.ask(Ask(0x10, 2, read=True))
        assert await answers.all() == [Reply(0xFFFF, absent=True)]
        answers.ask(Ask(0x10, 2, data=3))  # no second wait
        assert (await answers.all())[1] == Reply(0, absent=True)
        fake.down = False
        while True:  # and when it is back, it is asked again
            answers.ask(Ask(0x10, 2, read=True))
            if (await answers.all())[-1] == Reply(0x10):
                return

    said = run(fake, work, give_up_after=0.05)
    assert len(said) == 2
    assert said[-1] == "unplugd is back"


def test_wait_means_wait() -> None:
    fake = FakeUnplugd(down=True)

    async def work(answers: Answers) -> None:
        answers.ask(Ask(0x10, 2, read=True))
        await asyncio.sleep(0.3)
        assert not answers.replies
        fake.down = False
        assert await answers.all() == [Reply(0x10)]

    assert run(fake, work, give_up_after=None) == []


def test_nonsense_ends_the_connection_not_the_access() -> None:
    fake = FakeUnplugd(noise=bytes(32))

    async def work(answers: Answers) -> None:
        answers.ask(Ask(0x10, 2, read=True))
        assert await answers.all() == [Reply(0x10)]

    said = run(fake, work)
    assert len(said) == 1
    assert len(fake.ends) == 2


def test_an_answer_says_that_unplugd_is_there() -> None:
    fake = FakeUnplugd(hold=True)
    heard: list[int] = []

    async def work(answers: Answers) -> None:
        answers.unplugd.answers = lambda: heard.append(len(fake.ends))
        answers.ask(Ask(0x10, 2, read=True))
        while not fake.seen:
            await asyncio.sleep(0.005)
        assert heard == []
        fake.hold = False
        fake.drop()
        await answers.all()
        assert heard == [2]
        for _ in range(2):
            answers.ask(Ask(0x12, 2, read=True))
            await answers.all()
        assert heard == [2, 2, 2]
        fake.drop()
        answers.ask(Ask(0x10, 2, read=True))
        await answers.all()
        assert heard == [2, 2, 2, 3]

    run(fake, work)
