"""xenstore's wire protocol: what goes out, and that what comes in is the same however it is cut."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unplugd.errors import NoSuchNode, StoreRefused, TransactionConflict
from unplugd.xenstore.wire import (
    DIRECTORY_PART,
    MAX_REPLY,
    Decoder,
    Message,
    Op,
    WireFault,
    names,
    node_path,
    permission_list,
    refusal,
    request,
    strings,
    watch_path,
)

messages = st.builds(
    Message,
    st.sampled_from([Op.READ, Op.DIRECTORY, Op.ERROR, Op.WATCH_EVENT, DIRECTORY_PART]),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=6000),
)


def raw(message: Message, tx: int = 0) -> bytes:
    return struct.pack("=IIII", message.op, message.request_id, tx, len(message.payload)) + message.payload


def test_a_request_is_xs_wire_h_s() -> None:
    assert request(Op.READ, 7, 3, strings(b"/a")) == struct.pack("=IIII", 2, 7, 3, 3) + b"/a\0"
    assert strings(b"/a", b"n0") == b"/a\0n0\0"
    assert DIRECTORY_PART == 22


@given(st.lists(messages, max_size=8), st.data())
def test_any_split_of_the_bytes_gives_the_same_messages(sent: list[Message], data: st.DataObject) -> None:
    stream = b"".join(map(raw, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    decoder = Decoder()
    got: list[Message] = []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += decoder.feed(stream[begin:end])
    assert got == sent


@given(st.lists(messages, max_size=3), st.binary(min_size=1))
def test_byte_by_byte_it_is_the_same_as_at_once(sent: list[Message], rest: bytes) -> None:
    stream = b"".join(map(raw, sent)) + rest[: len(rest) % 16]
    decoder = Decoder()
    assert [message for byte in stream for message in decoder.feed(bytes([byte]))] == sent


@given(st.binary())
def test_garbage_is_a_fault_or_nothing_and_never_another_error(garbage: bytes) -> None:
    try:
        for message in Decoder().feed(garbage):
            assert len(message.payload) <= len(garbage)
    except WireFault:
        pass


@pytest.mark.parametrize(
    ("kind", "length"),
    [(Op.READ, MAX_REPLY + 1), (Op.READ, 2**32 - 1), (20, 1), (21, 1), (23, 0), (2**32 - 1, 0)],
)
def test_an_absurd_header_is_a_fault(kind: int, length: int) -> None:
    with pytest.raises(WireFault):
        Decoder().feed(struct.pack("=IIII", kind, 1, 0, length))


def test_a_reply_longer_than_a_request_may_be_is_taken() -> None:
    # oxenstored sends a directory of any size in one reply.
    long = Message(Op.DIRECTORY, 1, b"x" * 70000)
    assert Decoder().feed(raw(long)) == [long]


def test_names() -> None:
    assert names(b"") == []
    assert names(b"a\0bc\0") == ["a", "bc"]


@pytest.mark.parametrize("path", ["/", "/a", "/local/domain/7", "/A-Z_a@z/0", "/" + "a" * 3071])
def test_paths_that_xenstore_takes(path: str) -> None:
    assert node_path(path) == path.encode()
    assert watch_path(path) == path.encode()


@given(st.text(max_size=20))
def test_what_is_taken_as_a_path_cannot_break_the_wire(text: str) -> None:
    try:
        raw_path = node_path(text)
    except NoSuchNode:
        pass
    else:
        assert raw_path == text.encode()
        assert raw_path.startswith(b"/")
        assert set(text) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-/_@")


@pytest.mark.parametrize("path", ["@introduceDomain", "@releaseDomain"])
def test_special_watches_are_watched_and_not_read(path: str) -> None:
    assert watch_path(path) == path.encode()
    with pytest.raises(NoSuchNode):
        node_path(path)


@pytest.mark.parametrize(
    "path", ["@other", "@releaseDomain\0", "@releaseDomain\n", "@", "@releaseDomain/7", "a"]
)
def test_what_cannot_be_watched(path: str) -> None:
    with pytest.raises(NoSuchNode):
        watch_path(path)


def test_permissions() -> None:
    assert permission_list(["n0", "r7", "w12", "b1"]) == [b"n0", b"r7", b"w12", b"b1"]
    for wrong in ([], [""], ["0n"], ["n0", "x1"], ["n0\n"], ["n٣"]):
        with pytest.raises(ValueError, match="not xenstore permissions"):
            permission_list(wrong)


def test_errors_are_named() -> None:
    assert isinstance(refusal("/a", b"ENOENT\0"), NoSuchNode)
    assert isinstance(refusal("/a", b"EINVAL\0"), NoSuchNode)
    assert isinstance(refusal("/a", b"EAGAIN\0"), TransactionConflict)
    for code in ("EACCES", "ENOSPC", "E2BIG", "EQUOTA", "EWHATEVER", ""):
        error = refusal("/a", code.encode() + b"\0")
        assert isinstance(error, StoreRefused)
        assert (error.path, error.code) == ("/a", code)
