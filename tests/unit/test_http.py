"""The HTTP server on real sockets: framing, limits, deadlines and hostile clients."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import socket
import stat
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.lab.hostview import StandInDomain, StandInHost, many
from unplugd.errors import HostError
from unplugd.http import client as http
from unplugd.http import turns as http_turns
from unplugd.http.client import CONNECTIONS, HEAD_LINES, REQUEST_LIMIT, ConnectionState
from unplugd.http.exposition import OPENMETRICS, TEXT
from unplugd.http.landing import TYPE as HTML
from unplugd.http.pages import PLAIN, Page, Pages
from unplugd.http.server import HttpServer
from unplugd.http.sockets import listen_control

PATIENCE = 20.0


class Client:
    """A raw client; every wait has a deadline."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, text: bytes) -> None:
        self.writer.write(text)

    async def answer(self, *, head: bool = False) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (lower case) and body of the next answer."""
        async with asyncio.timeout(PATIENCE):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            version, status, _ = lines[0].split(" ", 2)
            assert version == "HTTP/1.1"
            headers = {}
            for line in lines[1:-2]:
                name, value = line.split(": ", 1)
                assert name.lower() not in headers
                headers[name.lower()] = value
            if head:
                return int(status), headers, b""
            if headers.get("transfer-encoding") == "chunked":
                assert "content-length" not in headers
                body = b""
                while size := int(await self.reader.readline(), 16):
                    body += await self.reader.readexactly(size)
                    assert await self.reader.readline() == b"\r\n"
                assert await self.reader.readline() == b"\r\n"
            elif "content-length" in headers:
                body = await self.reader.readexactly(int(headers["content-length"]))
            else:
                body = await self.reader.read(-1)
            return int(status), headers, body

    async def get(self, path: str, *lines: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        self.send("\r\n".join([f"{method} {path} HTTP/1.1", "Host: dom0", *lines, "", ""]).encode())
        return await self.answer(head=method == "HEAD")

    async def rest(self) -> bytes:
        """All that still comes until the server closes; a reset counts as its end."""
        received = b""
        async with asyncio.timeout(PATIENCE):
            try:
                while data := await self.reader.read(65536):
                    received += data
            except ConnectionError:
                pass
        return received

    def close(self) -> None:
        self.writer.close()


class Served:
    """A server, its host, and a way in."""

    def __init__(self, host: StandInHost, server: HttpServer, port: int) -> None:
        self.host = host
        self.server = server
        self.port = port
        self.clients: list[Client] = []

    async def connect(self, path: Path | None = None, **options: int) -> Client:
        async with asyncio.timeout(PATIENCE):
            if path is not None:
                client = Client(*await asyncio.open_unix_connection(str(path)))
            else:
                client = Client(*await asyncio.open_connection("127.0.0.1", self.port, **options))
        self.clients.append(client)
        return client

    async def control(self, path: Path) -> None:
        """Serves everything at `path`, too."""
        await self.server.start_control(listen_control(path), path)

    @property
    def connections(self) -> list[http.HttpConnection]:
        _, listener = self.server._listeners[0]
        return list(listener.connections)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await asyncio.sleep(0.01)


@asynccontextmanager
async def serve(host: StandInHost | None = None) -> AsyncIterator[Served]:
    host = host or StandInHost([StandInDomain()])
    server = HttpServer(host)
    served = Served(host, server, (await server.start_tcp("127.0.0.1", 0))[1])
    try:
        yield served
    finally:
        for client in served.clients:
            client.close()
        await server.close()


def run(test: Callable[[Served], Coroutine[None, None, None]], host: StandInHost | None = None) -> None:
    """Runs a test against a server; an exception that only reached the loop's handler fails it."""
    stray: list[dict[str, object]] = []

    async def go() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: stray.append(context))
        async with serve(host) as served:
            await test(served)

    asyncio.run(go())
    assert stray == []


# --- answers ----------------------------------------------------------------------------------------


def test_the_open_pages_over_tcp() -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        for path, content_type in (
            ("/metrics", TEXT), ("/-/healthy", PLAIN), ("/-/ready", PLAIN), ("/", HTML),
            ("/metrics?a=b", TEXT), ("http://dom0:9877/-/healthy", PLAIN),
        ):  # fmt: skip
            status, headers, body = await client.get(path)
            assert (status, headers["content-type"]) == (200, content_type)
            assert headers["cache-control"] == "no-store"
            assert headers["x-content-type-options"] == "nosniff"
            assert body
        status, headers, body = await client.get("/metrics", "Accept: application/openmetrics-text")
        assert headers["content-type"] == OPENMETRICS
        assert headers["vary"] == "Accept, Accept-Encoding"
        assert body.endswith(b"# EOF\n")
        for path in ("/api/v1/domains", "/api/v1/domains/7", "/nothing", "http://[/", "http://dom0"):
            status, _, _ = await client.get(path)
            assert status == (200 if path == "http://dom0" else 404)

    run(test)


def test_the_control_socket_serves_all_and_to_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"

    async def test(served: Served) -> None:
        await served.control(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        client = await served.connect(path)
        assert (await client.get("/metrics"))[0] == 200
        assert json.loads((await client.get("/api/v1/domains"))[2])["domains"][0]["name"] == "web-01"
        assert json.loads((await client.get("/api/v1/domains/7"))[2])["domid"] == 7
        status, headers, body = await client.get("/api/v1/domains/8")
        assert (status, headers["content-type"]) == (404, "application/json")
        assert json.loads(body)["error"]

    run(test)
    assert not path.exists()


def test_head_has_the_headers_of_get_and_no_body() -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        for path in ("/-/healthy", "/", "/nothing", "/metrics"):
            status, headers, _ = await client.get(path)
            head_status, head_headers, _ = await client.get(path, method="HEAD")
            assert (head_status, set(head_headers)) == (status, set(headers))
            if path != "/metrics":      # what it says may have another length by now
                assert head_headers["content-length"] == headers["content-length"]
        assert (await client.get("/-/healthy"))[2] == b"unplugd is running.\n"

    run(test)


def test_other_methods_are_refused_and_said_which_are_not() -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        for method in ("DELETE", "OPTIONS", "PATCH", "BREW"):
            status, headers, _ = await client.get("/metrics", method=method)
            assert (status, headers["allow"]) == (405, "GET, HEAD")
        client.send(b"CONNECT dom0:1 HTTP/1.1\r\nHost: dom0\r\n\r\n")
        assert (await client.answer())[0] == 404

    run(test)


def test_a_thousand_domains_come_in_chunks_and_whole() -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        for _ in range(2):
            _, headers, body = await client.get("/metrics")
            assert headers["transfer-encoding"] == "chunked"
            assert body.count(b"\nunplugd_domain_info{") == 1000
        client.send(b"GET /metrics HTTP/1.0\r\n\r\n")
        _, headers, body = await client.answer()
        assert "transfer-encoding" not in headers
        assert body.count(b"\nunplugd_domain_info{") == 1000

    run(test, many(1000))


def test_pipelined_requests_are_answered_in_order() -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        paths = ["/-/healthy", "/nothing", "/metrics", "/-/ready"] * 60
        client.send(b"".join(f"GET {path} HTTP/1.1\r\nHost: dom0\r\n\r\n".encode() for path in paths))
        for path in paths:
            status, _, body = await client.answer()
            assert status == (404 if path == "/nothing" else 200)
            assert (b"# TYPE" in body) is (path == "/metrics")
        assert (await client.get("/-/healthy"))[0] == 200

    run(test)


def test_a_request_may_come_byte_by_byte_and_end_with_the_client_s_half() -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        for byte in b"GET /-/healthy HTTP/1.1\r\nHost: dom0\r\n\r\n":
            client.send(bytes([byte]))
            await client.writer.drain()
            await asyncio.sleep(0)
        assert (await client.answer())[0] == 200
        client.send(b"GET /-/healthy HTTP/1.1\r\nHost: dom0\r\n\r\n")
        client.writer.write_eof()
        assert (await client.answer())[0] == 200
        assert await client.rest() == b""

    run(test)


def test_connection_close_is_obeyed() -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        _, headers, _ = await client.get("/-/healthy", "Connection: close")
        assert headers["connection"] == "close"
        assert await client.rest() == b""

    run(test)


def test_a_request_with_a_body_is_answered_and_then_closed() -> None:
    async def test(served: Served) -> None:
        expecting = b"Content-Length: 200000\r\nExpect: 100-continue"
        for framing in (b"Content-Length: 300000", b"Transfer-Encoding: chunked", expecting):
            client = await served.connect()
            client.send(b"POST /metrics HTTP/1.1\r\nHost: dom0\r\n" + framing + b"\r\n\r\n" + b"x" * 200000)
            status, headers, _ = await client.answer()
            assert (status, headers["connection"]) == (405, "close")
            assert await client.rest() == b""

    run(test)


def test_a_page_that_cannot_be_made_is_a_500_and_the_log_says_why(tmp_path: Path) -> None:
    class Broken(StandInHost):
        def describe(self, domid: int) -> dict[str, object]:
            raise ValueError("broken on purpose")

    said: list[dict[str, object]] = []

    async def go() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: said.append(context))
        async with serve(Broken([StandInDomain()])) as served:
            await served.control(tmp_path / "control.sock")
            for path in ("/api/v1/domains", "/api/v1/domains/7"):
                client = await served.connect(tmp_path / "control.sock")
                status, headers, _ = await client.get(path)
                assert (status, headers["connection"]) == (500, "close")
                assert await client.rest() == b""
            assert (await (await served.connect()).get("/-/healthy"))[0] == 200

    asyncio.run(go())
    assert [str(context["exception"]) for context in said] == ["broken on purpose"] * 2


# --- hostile and slow clients -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"\x00\x01\x02\r\n\r\n", 400),
        (b"GET\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        *((b"GET / HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n0\r\n\r\n", 400) for lines in (
            b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            b"Transfer-Encoding: chunked\r\ncontent-length: 5\r\n",
            b"Content-Length: 5\r\nContent-Length: 5\r\n",
            b"X: folded\r\n Content-Length: 5\r\n",
            b"X: folded\r\n\tmore\r\n",
            b"X: a\nContent-Length: 5\r\n",
            b"X: a\rb\r\n",
        )),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 501),
        (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * REQUEST_LIMIT * 3 + b"\r\n\r\n", 431),
        (b"GET /" + b"x" * REQUEST_LIMIT * 10, 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a:\r\n" * HEAD_LINES + b"\r\n", 431),
        (b"GET / HTTP/1.1\nHost: a\n" + b"a:\n" * HEAD_LINES + b"\n", 431),
        (b"x" * 1000000, 431),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),  # TLS
    ],
)
def test_what_is_no_request_is_refused(request_head: bytes, status: int) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        client.send(request_head)
        got, headers, _ = await client.answer()
        assert (got, headers["connection"]) == (status, "close")
        assert await client.rest() == b""
        assert (await (await served.connect()).get("/-/healthy"))[0] == 200

    run(test)


def test_any_host_is_served_what_is_public_and_nothing_else() -> None:
    """As other exporters: docs/security.md says what that means for a browser in dom0."""

    async def test(served: Served) -> None:
        client = await served.connect()
        for path, status in (("/metrics", 200), ("/api/v1/domains", 404), ("/api/v1/status", 404)):
            client.send(f"GET {path} HTTP/1.1\r\nHost: evil.example\r\n\r\n".encode())
            assert (await client.answer())[0] == status

    run(test)


def test_a_small_descriptor_limit_leaves_few_for_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unplugd.http.client.resource.getrlimit", lambda which: (128, 128))

    async def test(served: Served) -> None:
        for _ in range(20):
            await served.connect()
        await served.until(lambda: len(served.connections) == 128 // http.SHARE)
        assert (await (await served.connect()).get("/-/healthy"))[0] == 200
        assert len(served.connections) == 128 // http.SHARE

    run(test)


def test_the_loop_turns_while_a_long_page_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_turns, "serve_guests", lambda: False)  # nobody asks for it
    turns = 0

    def slowly() -> Iterator[bytes]:
        for piece in range(100):
            begin = time.monotonic()
            while time.monotonic() < begin + http_turns.TURN / 4:
                pass
            yield b"%d\n" % piece

    def count() -> None:
        nonlocal turns
        turns += 1
        asyncio.get_running_loop().call_soon(count)

    async def test(served: Served) -> None:
        client = await served.connect()
        assert (await client.get("/-/healthy"))[0] == 200
        monkeypatch.setattr(Pages, "answer", lambda *_, **__: Page(200, PLAIN, slowly()))
        count()
        before = turns
        client.send(b"GET /slow HTTP/1.1\r\nHost: dom0\r\n\r\n")
        await client.answer()
        assert turns - before >= 20

    run(test)


_PARTS = st.sampled_from([
    b"GET ", b"HEAD ", b"POST ", b"/metrics", b"/", b"/-/ready", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b"Host: a\r\n",
    b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"Upgrade: h2c\r\n",
    b"\r\n", b"0\r\n\r\n",
    b"Accept: application/openmetrics-text\r\n", b"Expect: 100-continue\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
])  # fmt: skip


@settings(max_examples=60)
@given(st.lists(st.lists(st.binary(max_size=30) | _PARTS, max_size=12), min_size=1, max_size=8))
@example([[b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n"]])
def test_no_bytes_bring_the_server_down(clients: list[list[bytes]]) -> None:
    async def test(served: Served) -> None:
        for writes in clients:
            client = await served.connect()
            for data in writes:
                client.send(data)
                await asyncio.sleep(0)
            client.writer.write_eof()
            received = await client.rest()
            assert received == b"" or received.startswith(b"HTTP/1.1 ")
            assert not re.search(rb"HTTP/1\.1 500", received)
        assert (await (await served.connect()).get("/-/healthy"))[0] == 200

    run(test)


def test_one_client_more_takes_the_place_of_the_longest_idle() -> None:
    async def test(served: Served) -> None:
        clients = [await served.connect() for _ in range(CONNECTIONS)]
        for client in clients:
            assert (await client.get("/-/healthy"))[0] == 200
        assert (await clients[0].get("/-/healthy"))[0] == 200     # now the second has waited longest
        late = await served.connect()
        assert (await late.get("/-/healthy"))[0] == 200
        assert await clients[1].rest() == b""
        assert len(served.connections) == CONNECTIONS
        assert (await clients[0].get("/-/healthy"))[0] == 200
        assert (await clients[2].get("/-/healthy"))[0] == 200

    run(test)


def test_when_all_are_being_answered_one_more_is_refused() -> None:
    async def test(served: Served) -> None:
        clients = []
        for _ in range(CONNECTIONS):
            client = await served.connect(limit=1024)      # reads nothing of its own accord beyond this
            client.send(b"GET /metrics HTTP/1.1\r\nHost: dom0\r\n\r\n" * 50)
            clients.append(client)
        await served.until(lambda: [c.state for c in served.connections] == [ConnectionState.ANSWERING] * CONNECTIONS)
        late = await served.connect()
        assert (await late.answer())[0] == 503
        assert await late.rest() == b""
        clients[0].writer.transport.abort()
        await served.until(lambda: len(served.connections) == CONNECTIONS - 1)
        assert (await (await served.connect()).get("/-/healthy"))[0] == 200

    run(test, many(1000))


def test_a_client_that_does_not_read_costs_little_and_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(http.DEADLINES, ConnectionState.ANSWERING, 1.0)

    async def test(served: Served) -> None:
        client = await served.connect(limit=1024)
        client.send(b"GET /metrics HTTP/1.1\r\nHost: dom0\r\n\r\n" * 50)
        await served.until(lambda: bool(served.connections) and served.connections[0]._writable is not None)
        buffered = served.connections[0]._transport.get_write_buffer_size()
        assert buffered < http.WRITE_LIMIT + 100_000
        await served.until(lambda: not served.connections)

    run(test, many(1000))


@pytest.mark.parametrize(
    ("accepted", "coded"),
    [
        ("gzip", True), ("gzip, deflate, br", True), ("identity;q=0.5, GZIP;q=0.1", True), ("*", True),
        ("x-gzip", True), ("gzip;q=1.0", True), ("gzip; q=0", False), ("gzip;q=0.000, *", False), ("*;q=0", False),
        ("identity", False), ("", False), ("gzippy", False), ("," * 5000 + "gzip", False),
    ],
)  # fmt: skip
def test_answers_are_compressed_where_the_client_takes_that(accepted: str, coded: bool) -> None:
    async def test(served: Served) -> None:
        client = await served.connect()
        for page in ("/metrics", "/-/healthy"):
            status, headers, body = await client.get(page, f"Accept-Encoding: {accepted}")
            assert status == 200
            assert ("content-encoding" in headers) is coded
            assert "Accept-Encoding" in headers["vary"]
            text = gzip.decompress(body) if coded else body
            assert text.startswith(b"# HELP" if page == "/metrics" else b"unplugd is running")
            head = await client.get(page, f"Accept-Encoding: {accepted}", method="HEAD")
            assert head[1].get("content-encoding") == headers.get("content-encoding")

    run(test)


def test_a_compressed_answer_may_be_long() -> None:
    async def test(served: Served) -> None:
        _, _, plain = await (await served.connect()).get("/metrics")
        _, _, coded = await (await served.connect()).get("/metrics", "Accept-Encoding: gzip")
        text = gzip.decompress(coded)
        assert len(text.splitlines()) == len(plain.splitlines()) > 10_000
        assert len(coded) < len(plain) / 5

    run(test, many(1000))


def test_a_client_that_goes_in_the_middle_of_a_scrape_does_no_harm() -> None:
    async def test(served: Served) -> None:
        for _ in range(5):
            client = await served.connect(limit=1024)
            client.send(b"GET /metrics HTTP/1.1\r\nHost: dom0\r\n\r\n")
            await client.reader.readexactly(1)
            client.writer.transport.abort()
        await served.until(lambda: not served.connections)
        assert (await (await served.connect()).get("/metrics"))[0] == 200

    run(test, many(1000))


def test_half_a_request_is_answered_with_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(http.DEADLINES, ConnectionState.READING, 0.3)

    async def test(served: Served) -> None:
        client = await served.connect()
        client.send(b"GET /metrics HTTP/1.1\r\n")
        status, headers, _ = await client.answer()
        assert (status, headers["connection"]) == (408, "close")
        assert await client.rest() == b""

    run(test)


@pytest.mark.parametrize("state", [ConnectionState.FRESH, ConnectionState.IDLE])
def test_a_client_that_says_nothing_is_dropped(state: ConnectionState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(http.DEADLINES, state, 0.3)

    async def test(served: Served) -> None:
        client = await served.connect()
        if state is ConnectionState.IDLE:
            assert (await client.get("/-/healthy"))[0] == 200
        assert await client.rest() == b""
        await served.until(lambda: not served.connections)

    run(test)


def test_a_client_that_goes_on_sending_after_a_refusal_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "LINGER_LIMIT", 100_000)

    async def test(served: Served) -> None:
        client = await served.connect()
        client.send(b"x" * 20_000)
        assert (await client.answer())[0] == 431
        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    client.send(b"x" * 20_000)
                    await client.writer.drain()
        except ConnectionError:
            pass
        await served.until(lambda: not served.connections)

    run(test)


# --- listeners --------------------------------------------------------------------------------------


def test_an_address_in_use_is_named() -> None:
    async def test(served: Served) -> None:
        with pytest.raises(HostError) as caught:
            await HttpServer(served.host).start_tcp("127.0.0.1", served.port)
        assert caught.value.where == f"127.0.0.1:{served.port}"
        assert caught.value.why == "Address already in use"

    run(test)


@pytest.mark.parametrize("address", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_that_is_not_ours_is_named(address: str) -> None:
    async def go() -> None:
        with pytest.raises(HostError, match=address):
            await HttpServer(StandInHost()).start_tcp(address, 0)

    asyncio.run(go())


def test_ipv6() -> None:
    async def go() -> None:
        server = HttpServer(StandInHost())
        try:
            address, port = await server.start_tcp("::1", 0)
        except HostError as error:
            pytest.skip(str(error))
        client = Client(*await asyncio.open_connection(address, port))
        assert (await client.get("/-/healthy"))[0] == 200
        client.close()
        await server.close()

    asyncio.run(go())


def test_passed_sockets_serve_the_open_pages(tmp_path: Path) -> None:
    async def go() -> None:
        tcp = socket.create_server(("127.0.0.1", 0))
        unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        unix.bind(str(tmp_path / "http.sock"))
        unix.listen()
        server = HttpServer(StandInHost([StandInDomain()]))
        port = tcp.getsockname()[1]
        await server.start_sockets([tcp, unix])
        for opening in (asyncio.open_connection("127.0.0.1", port), asyncio.open_unix_connection(unix.getsockname())):
            client = Client(*await opening)
            assert (await client.get("/metrics"))[0] == 200
            assert (await client.get("/api/v1/domains"))[0] == 404
            client.close()
        await server.close()

    asyncio.run(go())


def test_a_dead_process_s_control_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))

    async def test(served: Served) -> None:
        await served.control(path)
        assert (await (await served.connect(path)).get("/-/healthy"))[0] == 200

    run(test)


def test_a_file_in_the_place_of_the_control_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    path.write_text("mine")

    async def test(served: Served) -> None:
        with pytest.raises(HostError, match="not a socket"):
            await served.control(path)
        with pytest.raises(HostError, match=re.escape(os.strerror(2))):
            await served.control(tmp_path / "absent" / "control.sock")

    run(test)
    assert path.read_text() == "mine"


def test_another_process_s_control_socket_is_not_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"

    async def test(served: Served) -> None:
        await served.control(path)
        path.unlink()
        path.write_text("of the next one")

    run(test)
    assert path.exists()


def test_closing_ends_answers_that_are_under_way() -> None:
    async def test(served: Served) -> None:
        client = await served.connect(limit=1024)
        client.send(b"GET /metrics HTTP/1.1\r\nHost: dom0\r\n\r\n" * 50)
        await served.until(lambda: bool(served.connections) and served.connections[0]._writable is not None)
        await served.server.close()
        await client.rest()
        with pytest.raises(ConnectionError):
            await served.connect()

    run(test, many(1000))
