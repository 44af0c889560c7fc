"""One connection: replies find their requests, deadlines hold, and what makes no sense ends it."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unplugd.errors import NoSuchNode, StoreRefused, StoreUnavailable
from unplugd.xenstore import connection as module
from unplugd.xenstore.connection import StoreConnection
from unplugd.xenstore.wire import Op

PATIENCE = 30.0


class FakePipe:
    """A transport that keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.calls = 0
        self.connection: StoreConnection | None = None

    def write(self, data: bytes, /) -> None:
        self.calls += 1
        self.sent.append(data)

    def writelines(self, messages: Sequence[bytes], /) -> None:
        self.calls += 1
        self.sent += messages

    def abort(self) -> None:
        assert self.connection
        asyncio.get_running_loop().call_soon(self.connection.connection_lost, None)

    def ids(self) -> list[int]:
        return [struct.unpack_from("=IIII", message)[1] for message in self.sent]


def reply(op: int, request_id: int, payload: bytes) -> bytes:
    return struct.pack("=IIII", op, request_id, 0, len(payload)) + payload


def run(scenario: Callable[[StoreConnection, FakePipe], Awaitable[None]]) -> list[tuple[str, str]]:
    """Run a scenario on a connection; the events that it saw."""
    events: list[tuple[str, str]] = []

    async def main() -> None:
        connection = StoreConnection(lambda path, token: events.append((path, token)))
        pipe = FakePipe()
        pipe.connection = connection
        connection.connection_made(pipe)
        async with asyncio.timeout(PATIENCE):
            await scenario(connection, pipe)

    asyncio.run(main())
    return events


def read(connection: StoreConnection, deadline: float = PATIENCE) -> asyncio.Future[bytes]:
    return connection.request(Op.READ, "/a", b"/a\0", bytes, deadline=deadline)


def test_a_lone_request_goes_out_at_once_and_more_share_a_write() -> None:
    async def scenario(connection: StoreConnection, pipe: FakePipe) -> None:
        requests = [read(connection) for _ in range(10)]
        assert (pipe.calls, len(pipe.sent)) == (1, 1)
        await asyncio.sleep(0)
        assert (pipe.calls, len(pipe.sent)) == (2, 10)
        for request_id in reversed(pipe.ids()):
            connection.data_received(reply(Op.READ, request_id, b"%d" % request_id))
        assert [await request for request in requests] == [b"%d" % n for n in pipe.ids()]

    run(scenario)


def test_errors_are_the_request_s() -> None:
    async def scenario(connection: StoreConnection, pipe: FakePipe) -> None:
        for code, error in ((b"ENOENT", NoSuchNode), (b"EQUOTA", StoreRefused)):
            request = read(connection)
            connection.data_received(reply(Op.ERROR, pipe.ids()[-1], code + b"\0"))
            with pytest.raises(error):
                await request

    run(scenario)


def test_a_deadline_ends_the_wait_and_the_late_reply_is_nobody_s() -> None:
    async def scenario(connection: StoreConnection, pipe: FakePipe) -> None:
        late: list[bytes] = []
        request = connection.request(Op.READ, "/a", b"/a\0", bytes, deadline=0.05, late=late.append)
        patient = read(connection)
        with pytest.raises(StoreUnavailable, match="/a"):
            await request
        assert not patient.done()
        await asyncio.sleep(0)
        first, second = pipe.ids()
        connection.data_received(reply(Op.READ, first, b"late") + reply(Op.READ, second, b"in time"))
        assert await patient == b"in time"
        assert late == [b"late"]
        assert connection.dropped == ""

    run(scenario)


def test_a_shorter_deadline_is_not_kept_waiting_by_a_longer_one() -> None:
    async def scenario(connection: StoreConnection, pipe: FakePipe) -> None:
        patient = read(connection, deadline=1000)
        with pytest.raises(StoreUnavailable):
            await read(connection, deadline=0.01)
        assert not patient.done()
        connection.drop("over")
        with pytest.raises(StoreUnavailable, match="over"):
            await patient

    run(scenario)


def test_who_gave_up_waiting_disturbs_nobody() -> None:
    async def scenario(connection: StoreConnection, pipe: FakePipe) -> None:
        late: list[bytes] = []
        request = connection.request(Op.READ, "/a", b"/a\0", bytes, late=late.append)
        request.cancel()
        connection.data_received(reply(Op.READ, pipe.ids()[0], b"x"))
        assert late == [b"x"]
        assert connection.dropped == ""

    run(scenario)


def test_silence_with_requests_outstanding_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE", 0.1)

    async def scenario(connection: StoreConnection, pipe: FakePipe) -> None:
        await asyncio.sleep(0.2)
        assert connection.dropped == ""  # nothing was asked: nothing need be said
        request = connection.request(Op.WATCH, "/a", b"/a\x001\0", bytes)
        reason = await connection.lost
        assert "has not answered for" in reason
        with pytest.raises(StoreUnavailable):
            await request

    run(scenario)


def test_there_is_a_bound_to_what_is_outstanding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_OUTSTANDING", 3)

    async def scenario(connection: StoreConnection, pipe: FakePipe) -> None:
        requests = [read(connection) for _ in range(3)]
        with pytest.raises(StoreUnavailable, match="3 requests"):
            await read(connection)
        await asyncio.sleep(0)
        for request_id in pipe.ids():
            connection.data_received(reply(Op.READ, request_id, b""))
        await asyncio.gather(*requests)
        again = read(connection)
        connection.data_received(reply(Op.READ, pipe.ids()[-1], b"again"))
        assert await again == b"again"

    run(scenario)


def test_numbers_go_round_and_leave_out_those_that_wait() -> None:
    async def scenario(connection: StoreConnection, pipe: FakePipe) -> None:
        waiting = read(connection)
        connection._last_id = 0xFFFFFFFE
        for _ in range(2):
            request = read(connection)
            await asyncio.sleep(0)
            connection.data_received(reply(Op.READ, pipe.ids()[-1], b""))
            await request
        assert pipe.ids() == [1, 0xFFFFFFFF, 2]
        waiting.cancel()

    run(scenario)


def test_too_long_a_request_is_never_sent() -> None:
    async def scenario(connection: StoreConnection, pipe: FakePipe) -> None:
        with pytest.raises(StoreRefused):
            await connection.request(Op.WRITE, "/a", b"/a\0" + b"x" * 4094, bytes)
        assert pipe.sent == []

    run(scenario)


def test_events_are_told() -> None:
    async def scenario(connection: StoreConnection, pipe: FakePipe) -> None:
        connection.data_received(
            reply(Op.WATCH_EVENT, 0, b"/a/b\x001\0") + reply(Op.WATCH_EVENT, 0, b"@x\x002\x003\0")
        )

    assert run(scenario) == [("/a/b", "1"), ("@x", "2")]


@pytest.mark.parametrize(
    "nonsense",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        reply(Op.READ, 99, b"an answer to nothing"),
        reply(Op.DIRECTORY, 1, b"an answer of another type"),
        reply(Op.WATCH_EVENT, 0, b"an event without a token"),
        reply(Op.WATCH_EVENT, 0, b"\xff\x001\0"),
        struct.pack("=IIII", Op.READ, 1, 0, 2**31),
    ],
)
def test_nonsense_ends_the_connection(nonsense: bytes) -> None:
    async def scenario(connection: StoreConnection, pipe: FakePipe) -> None:
        request = read(connection)
        connection.data_received(nonsense)
        assert "broke its protocol" in await connection.lost
        with pytest.raises(StoreUnavailable):
            await request
        with pytest.raises(StoreUnavailable):
            await read(connection)

    run(scenario)


def test_an_answer_that_cannot_be_understood_ends_the_connection() -> None:
    async def scenario(connection: StoreConnection, pipe: FakePipe) -> None:
        request = connection.request(Op.TRANSACTION_START, "", b"\0", int)
        connection.data_received(reply(Op.TRANSACTION_START, 1, b"seven\0"))
        with pytest.raises(StoreUnavailable):
            await request
        assert "broke its protocol" in await connection.lost

    run(scenario)


@given(st.lists(st.binary(max_size=40), max_size=5))
def test_whatever_comes_in_nothing_is_left_waiting_for_ever(pieces: list[bytes]) -> None:
    async def scenario(connection: StoreConnection, pipe: FakePipe) -> None:
        requests = [read(connection) for _ in range(3)]
        for piece in pieces:
            if not connection.dropped:
                connection.data_received(piece)
        connection.connection_lost(None)
        await connection.lost
        for result in await asyncio.gather(*requests, return_exceptions=True):
            assert isinstance(result, bytes | StoreUnavailable | NoSuchNode | StoreRefused)

    run(scenario)
