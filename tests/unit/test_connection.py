"""A device model's connection over a real socket: order, back-pressure, waits, faults, ends (contract section 1)."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tests.lab.client import Client, served
from tests.lab.frames import RESET, answers, frame
from tests.lab.host import Host, host, until
from tests.unit.test_poller import LOOPS
from unplugd.config.load import BlacklistConfig, Config, LogConfig, PolicyConfig
from unplugd.core.guest import Verdict
from unplugd.core.stream import NeedVerdict
from unplugd.domains.domain import Domain
from unplugd.sinks.records import Event
from unplugd.sockets.access import ConnectionPolicy

MAGIC = frame(0x10, 2, read=True)
PRODUCT = frame(0x12, 2, data=3)
BUILD = frame(0x10, 4, data=1)


class Judge:
    """Verdicts when the test gives them."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, float]] = []
        self.verdicts: asyncio.Queue[Verdict] = asyncio.Queue()

    def __call__(self, _domain: Domain, need: NeedVerdict, deadline: float) -> asyncio.Future[Verdict]:
        self.asked.append((need.build, deadline))
        return asyncio.ensure_future(self.verdicts.get())


def run(tmp_path: Path, test: Callable[[Host], Coroutine[Any, Any, None]], config: Config | None = None) -> None:
    """Run a test on each loop; no callback of the loop may fail."""

    async def main(directory: Path) -> None:
        failed: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: failed.append(context))
        directory.mkdir()
        async with host(directory, config) as one:
            await test(one)
        await asyncio.sleep(0.01)
        assert failed == []

    for name, loop in LOOPS.items():
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(main(tmp_path / name))


def test_a_linux_guest_over_the_socket(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        domain = one.domain()
        async with served(one, domain) as listener:
            with await Client.connect(listener.path) as client:
                assert (await client.ask(MAGIC)).data == 0x49D2
                assert (await client.ask(frame(0x12, 1, read=True))).data == 1
                await client.ask(PRODUCT)
                await client.ask(BUILD)
                assert (await client.ask(MAGIC)).data == 0x49D2
                assert (await client.ask(frame(0x10, 2, data=3))).data == 3
                assert domain.connections == 1
                assert domain.unplugged == 3
            await until(lambda: domain.connections == 0)
            assert domain.unplugged == 3, "a closed connection does not reset"
            assert one.counters.ioreqs["magic"] == 2
            assert sum(one.counters.duration_counts) >= 1

    run(tmp_path, main)


def test_a_response_comes_after_state_and_log_are_kept(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        domain = one.domain()
        async with served(one, domain) as listener:
            with await Client.connect(listener.path) as client:
                text = b"kept before it is answered\n partial"
                await client.ask(frame(0x12, 1, count=len(text), string=True) + text)
                again = one.domain()  # what a process would find now
                assert again.guest.log.partial == b" partial"
                assert one.journald.lines == ["kept before it is answered"]

    run(tmp_path, main)


def test_thousands_of_pipelined_frames_in_any_pieces(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        async with served(one, one.domain()) as listener:
            with await Client.connect(listener.path) as client:
                sent = b"".join(frame(0x10, 2, read=True, eport=number) for number in range(4000))

                async def send() -> None:
                    for at in range(0, len(sent), 999):
                        await client.send(sent[at : at + 999])

                sending = asyncio.get_running_loop().create_task(send())
                got = answers(await client.receive(len(sent)))
                await sending
                assert [answer.eport for answer in got] == list(range(4000))
                assert one.counters.ioreqs["magic"] == 4000

    run(tmp_path, main)


def test_a_client_that_does_not_read_is_not_read(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        async with served(one, one.domain()) as listener:
            with await Client.connect(listener.path) as client, await Client.connect(listener.path) as other:
                read = frame(0x10, 2, read=True, string=True, count=2048)
                sent, since = 0, time.monotonic()
                while time.monotonic() < since + 0.5:
                    try:
                        assert client.socket.send(read) == 32
                    except BlockingIOError:
                        await asyncio.sleep(0.01)
                        continue
                    sent, since = sent + 1, time.monotonic()
                    assert sent < 1 << 16, "a gigabyte of answers is waiting somewhere"
                assert (await other.ask(MAGIC)).data == 0x49D2, "others go on"
                got = await client.receive(sent * (32 + 4096))
                assert len(answers(got)) == sent

    run(tmp_path, main)


def test_a_verdict_holds_up_its_own_connection_only(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        judge = Judge()
        async with served(one, one.domain(), judge) as listener:
            with await Client.connect(listener.path) as client, await Client.connect(listener.path) as other:
                await client.send(PRODUCT + BUILD + MAGIC)
                await until(lambda: judge.asked)
                assert (await other.ask(MAGIC)).data == 0x49D2
                judge.verdicts.put_nowait(Verdict(blacklisted=True))
                got = answers(await client.receive(96))
                assert [answer.data for answer in got] == [0, 0, 0xD249]
                assert (await other.ask(MAGIC)).data == 0xD249, "they share the domain's state"

    run(tmp_path, main)


def test_the_builds_of_one_frame_share_their_deadline(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        judge = Judge()
        async with served(one, one.domain(), judge) as listener:
            with await Client.connect(listener.path) as client:
                await client.send(PRODUCT + frame(0x10, 4, count=3, string=True) + b"\1\0\0\0\2\0\0\0\3\0\0\0" + BUILD)
                begin = time.monotonic()
                for _ in range(4):
                    await asyncio.sleep(0.02)
                    judge.verdicts.put_nowait(Verdict(blacklisted=False))
                assert len(answers(await client.receive(96))) == 3
                deadlines = [deadline for _, deadline in judge.asked]
                assert [build for build, _ in judge.asked] == [1, 2, 3, 1]
                assert deadlines[0] == deadlines[1] == deadlines[2] < deadlines[3]
                assert abs(deadlines[0] - begin - 7.5) < 5

    run(tmp_path, main, Config(blacklist=BlacklistConfig(lookup_timeout=7.5)))


def test_delay_holds_responses_up_and_other_guests_never_wait(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        domain, free = one.domain(), one.domain(8, "db-01", "")
        async with served(one, domain) as listener, served(one, free) as unhurried:
            with await Client.connect(listener.path) as client, await Client.connect(unhurried.path) as other:
                line = b"x" * 599 + b"\n"
                request = frame(0x12, 1, count=600, string=True) + line
                await client.ask(request)
                begin = time.monotonic()
                await client.send(request)
                assert (await other.ask(MAGIC)).data == 0x49D2
                assert len(await client.receive(32)) == 32
                assert time.monotonic() - begin >= 0.15
                await until(lambda: len(one.journald.lines) == 2)
                assert domain.dropped_lines["rate-limit"] == 0

    run(tmp_path, main, Config(log=LogConfig(rate=1000, burst=1000, on_limit="delay")))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (frame(0x10, 2, state=2), "bad-state"),
        (frame(0x10, 2, kind=1), "bad-type"),
        (frame(0x10, 2, count=0), "bad-count"),
        (frame(0x10, 2, count=2), "bad-count"),
        (frame(0x10, 3), "bad-size"),
        (frame(0x12, 1, count=4097, string=True), "payload-too-long"),
        (frame(0x10100, 1), "bad-address"),
    ],
)
def test_a_fault_of_the_client_closes_after_a_record_and_a_metric(tmp_path: Path, bad: bytes, reason: str) -> None:
    async def main(one: Host) -> None:
        domain = one.domain()
        async with served(one, domain) as listener:
            with await Client.connect(listener.path) as client, await Client.connect(listener.path) as other:
                await client.send(MAGIC + bad + MAGIC)
                assert len(await client.receive(64)) == 32, "what came before is answered"
                assert one.counters.protocol_errors == {**dict.fromkeys(one.counters.protocol_errors, 0), reason: 1}
                assert reason in one.journald.of(Event.PROTOCOL_FAULT)[0]
                assert (await other.ask(MAGIC)).data == 0x49D2
                await until(lambda: domain.connections == 1)

    run(tmp_path, main)


def test_a_client_that_sends_no_more_is_still_answered(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        judge = Judge()
        async with served(one, one.domain(), judge) as listener:
            with await Client.connect(listener.path) as client:
                await client.send(PRODUCT + BUILD + MAGIC)
                client.socket.shutdown(socket.SHUT_WR)
                await until(lambda: judge.asked)
                await asyncio.sleep(0.02)
                judge.verdicts.put_nowait(Verdict(blacklisted=False))
                assert len(answers(await client.receive(97))) == 3
            with await Client.connect(listener.path) as client:
                await client.send(MAGIC + MAGIC[:10])
                client.socket.shutdown(socket.SHUT_WR)
                assert len(await client.receive(97)) == 32

    run(tmp_path, main)


def test_a_client_that_goes_while_its_verdict_is_awaited(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        judge = Judge()
        domain = one.domain()
        async with served(one, domain, judge) as listener:
            with await Client.connect(listener.path) as client:
                await client.send(PRODUCT + BUILD)
                await until(lambda: judge.asked)
            with await Client.connect(listener.path) as again:  # and sends again what was not answered
                await again.send(BUILD)
                await until(lambda: len(judge.asked) == 2)
                judge.verdicts.put_nowait(Verdict(blacklisted=False))
                judge.verdicts.put_nowait(Verdict(blacklisted=False))
                assert len(await again.receive(32)) == 32
                assert domain.build == 1

    run(tmp_path, main)


@pytest.mark.parametrize("waits_for", ["verdict", "tokens", "reader"])
def test_a_release_in_the_middle_of_everything(tmp_path: Path, waits_for: str) -> None:
    async def main(one: Host) -> None:
        judge = Judge()
        domain = one.domain()
        async with served(one, domain, judge) as listener:
            with await Client.connect(listener.path) as client:
                log = frame(0x12, 1, count=300, string=True) + b"x" * 299 + b"\n"
                match waits_for:
                    case "verdict":
                        await client.send(PRODUCT + BUILD + log)
                        await until(lambda: judge.asked)
                    case "tokens":
                        await client.send(log * 3)
                        await until(lambda: domain.guest.log.bucket.balance < 0)
                    case "reader":
                        read = frame(0x10, 2, read=True, string=True, count=2048)
                        await client.send(read * 500 + PRODUCT)
                        await asyncio.sleep(0.1)
                listener.close()
                domain.release()
                judge.verdicts.put_nowait(Verdict(blacklisted=True))
                await asyncio.sleep(0.4)
                await client.receive(1 << 22)  # whatever was answered, then the end
                await until(lambda: domain.connections == 0)

    run(tmp_path, main, Config(log=LogConfig(rate=1000, burst=300, on_limit="delay")))


def test_a_client_that_never_reads_is_cut_off_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unplugd.sockets.connection.CLOSE_TIMEOUT", 0.1)

    async def main(one: Host) -> None:
        domain = one.domain()
        async with served(one, domain) as listener:
            with await Client.connect(listener.path) as client:
                read = frame(0x10, 2, read=True, string=True, count=2048)
                await client.send(read * 500)
                await asyncio.sleep(0.1)
                listener.close()
                await until(lambda: domain.connections == 0)

    run(tmp_path, main)


def test_a_reset_over_the_socket(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        domain = one.domain()
        async with served(one, domain) as listener:
            with await Client.connect(listener.path) as client:
                await client.ask(PRODUCT)
                await client.send(RESET)
                assert await client.receive(32) == RESET
                assert domain.product is None

    run(tmp_path, main)


def test_a_reload_counts_from_the_next_frame_on(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        domain = one.domain()
        async with served(one, domain) as listener:
            with await Client.connect(listener.path) as client:
                legacy = frame(0x10004, 4, data=1)
                assert (await client.ask(legacy)).data == 0
                one.settings.configure(Config(policy=PolicyConfig(legacy_unplug=True)))
                domain.configure()
                listener.configure(ConnectionPolicy(None), None)
                assert (await client.ask(legacy)).data == 3

    run(tmp_path, main)


def line(text: str) -> bytes:
    return frame(0x12, 1, count=len(text) + 1, string=True) + text.encode() + b"\n"


def test_a_line_that_journald_does_not_take_is_kept_in_order(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        domain = one.domain()
        async with served(one, domain) as listener:
            with await Client.connect(listener.path) as client:
                await client.ask(line("first"))
                one.journald.read()
                one.journald.stop()
                for text in ("second", "third"):
                    await client.ask(line(text))
                one.journald.start()
                await client.ask(line("fourth"))
                await until(lambda: one.journald.lines == ["first", "second", "third", "fourth"])
                assert domain.log_lines == 4

    run(tmp_path, main)


def test_lines_have_the_name_and_the_driver_that_the_domain_has_now(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        domain = one.domain()
        async with served(one, domain) as listener:
            with await Client.connect(listener.path) as client:
                await client.ask(line("first"))
                domain.rename("db-01")
                await client.ask(line("second"))
                await client.send(PRODUCT + BUILD + line("third") + RESET + line("fourth"))
                await client.receive(5 * 32)
                seen = [
                    (entry["MESSAGE"], entry["XEN_DOMAIN_NAME"], entry.get("UNPLUG_BUILD"))
                    for entry in one.journald.read() if entry["SYSLOG_IDENTIFIER"] == "unplugd-guest"
                ]  # fmt: skip
                assert seen == [
                    ("first", "web-01", None), ("second", "db-01", None), ("third", "db-01", "1"),
                    ("fourth", "db-01", None),
                ]  # fmt: skip

    run(tmp_path, main)


def test_the_limit_ends(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        domain = one.domain()
        async with served(one, domain) as listener:
            with await Client.connect(listener.path) as client:
                for _ in range(4):
                    await client.ask(line("x" * 100))
                assert domain.throttled
                for number in range(2000):
                    await client.ask(line(f"{number:0100}"))
                    if len(one.journald.lines) > 3:
                        break
                    await asyncio.sleep(0.01)
                assert one.journald.lines[-1] == f"{number:0100}"
                assert domain.log_lines + domain.dropped_lines["rate-limit"] == 5 + number

    run(tmp_path, main, Config(log=LogConfig(rate=400, burst=300)))


def test_a_fault_of_unplugds_own_ends_the_connection_without_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", said.append)

    async def main(one: Host) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: said.append(context))
        said.clear()
        domain = one.domain()
        async with served(one, domain) as listener:
            for request in (line("kept"), PRODUCT + MAGIC):
                with await Client.connect(listener.path) as client, await Client.connect(listener.path) as other:
                    assert (await client.ask(MAGIC)).data == 0x49D2

                    def broken(*_arguments: object, **_named: object) -> None:
                        raise ValueError("a bug")

                    with monkeypatch.context() as patch:
                        patch.setattr(domain, "_record", broken)
                        patch.setattr(domain, "settle", broken)
                        await client.send(request)
                        assert await client.ended(), "nothing is acknowledged"
                    assert (await other.ask(MAGIC)).data == 0x49D2
                await until(lambda: domain.connections == 0)
            assert len(said) == 2
            with await Client.connect(listener.path) as client:
                await client.ask(line("next"))
            assert one.journald.lines == ["kept", "next"]

    run(tmp_path, main)


def test_a_judge_that_fails_ends_the_connection(tmp_path: Path) -> None:
    said: list[object] = []

    async def main(one: Host) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: said.append(context))
        said.clear()

        def judge(_domain: Domain, need: NeedVerdict, _deadline: float) -> asyncio.Future[Verdict]:
            if need.build == 1:
                raise MemoryError
            verdict: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
            verdict.set_exception(ValueError("a bug"))
            return verdict

        async with served(one, one.domain(), judge) as listener:
            for build in (1, 2):
                with await Client.connect(listener.path) as client:
                    await client.ask(PRODUCT)
                    await client.send(frame(0x10, 4, data=build))
                    assert await client.ended()
            assert len(said) == 2

    run(tmp_path, main)


def test_a_verdict_from_before_a_reset_counts_no_more(tmp_path: Path) -> None:
    async def main(one: Host) -> None:
        judge = Judge()
        domain = one.domain()
        async with served(one, domain, judge) as listener:
            with await Client.connect(listener.path) as client, await Client.connect(listener.path) as other:
                await client.send(PRODUCT + BUILD)
                await until(lambda: judge.asked)
                await other.send(RESET)
                await other.receive(32)
                judge.verdicts.put_nowait(Verdict(blacklisted=True))
                assert len(await client.receive(64)) == 64
                assert (domain.product, domain.build, domain.blacklisted) == (None, None, False)

    run(tmp_path, main)
