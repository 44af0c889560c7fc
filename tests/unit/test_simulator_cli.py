"""unplugd.simulator.cli: each guest comes to the end that its driver would come to, and says so."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from tests.lab.fakeunplugd import FakeUnplugd
from unplugd.simulator.cli import Ending, Outcome, Seen, Transcript, main, parse, play
from unplugd.simulator.devicemodel import DeviceModel
from unplugd.simulator.drivers import DRIVERS, LINUX, Driver, In, Log, Out, Reset

CITRIX_86451 = frozenset({(1, 86451)})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "dom7.sock"


def played(guest: Driver, path: Path) -> Outcome:
    with DeviceModel(path) as device:
        return play(guest, device)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("linux", "allowed, unplugged disks and NICs"),
        ("xenbus", "allowed, unplugged disks and NICs"),
        ("gplpv", "allowed, unplugged disks and NICs"),
        ("freebsd", "asked for no verdict, unplugged disks and NICs"),
        ("openbsd", "asked for no verdict, unplugged disks and NICs"),
        ("suse-legacy", "asked for no verdict, unplugged disks and NICs"),
        ("vmdp", "asked for no verdict, unplugged disks and NICs"),
        ("chatty", "allowed, unplugged disks and NICs"),
    ],
)
def test_allowed_guests_unplug(path: Path, name: str, says: str) -> None:
    with FakeUnplugd(path, blacklist=CITRIX_86451):
        outcome = played(DRIVERS[name], path)
    assert outcome == Outcome(Ending.UNPLUGGED, 3, says)
    assert str(outcome) == says


def test_a_blacklisted_guest_stays_emulated_and_its_next_try_ends_at_the_first_read(path: Path) -> None:
    with FakeUnplugd(path, blacklist=CITRIX_86451) as server:
        for frames in (5, 6):
            outcome = played(DRIVERS["citrix"], path)
            assert outcome.verdict is Ending.BLACKLISTED
            assert str(outcome) == "blacklisted by host: stays with emulated devices"
            assert len(server.frames) == frames
        assert played(DRIVERS["citrix"].announcing(build=1).after_reset(), path).verdict is Ending.UNPLUGGED


def test_a_stubborn_guest_unplugs_whatever_the_verdict(path: Path) -> None:
    with FakeUnplugd(path, blacklist=CITRIX_86451):
        outcome = played(DRIVERS["stubborn"], path)
    assert outcome == Outcome(
        Ending.BLACKLISTED, 3, "blacklisted by host, unplugged disks and NICs all the same"
    )


def test_xenbus_logs_that_it_is_blacklisted_and_goes_on(path: Path) -> None:
    xenbus = DRIVERS["xenbus"].announcing(1, 86451)
    with FakeUnplugd(path, blacklist=CITRIX_86451):
        for announced in (True, False):     # the second time it reads 0xd249 at once, and announces nothing
            seen: list[Seen] = []
            with DeviceModel(path) as device:
                outcome = play(xenbus, device, seen.append)
            assert outcome == Outcome(
                Ending.BLACKLISTED, 3, "blacklisted by host, unplugged disks and NICs all the same")
            accesses = [one.access for one in seen if one.access is not None]
            lines = [access.payload for access in accesses if access.string]
            assert b"UNPLUG: PRE-AMBLE (DRIVERS BLACKLISTED)\n" in lines
            assert not [line for line in lines if b"NOT BLACKLISTED" in line]
            assert bool([access for access in accesses if access.size == 4]) is announced


@pytest.mark.parametrize("name", ["xenbus-first-boot", "xenbus-safe-mode", "linux-unnecessary"])
def test_drivers_that_announce_themselves_and_ask_for_nothing(path: Path, name: str) -> None:
    with FakeUnplugd(path):
        assert str(played(DRIVERS[name], path)) == "allowed, asked for no unplug: stays with emulated devices"


def test_version_0_skips_product_and_build(path: Path) -> None:
    with FakeUnplugd(path, version=0, blacklist=CITRIX_86451) as server:
        assert played(DRIVERS["citrix"], path).order == 3
        assert len(server.frames) == 3
        assert played(LINUX, path).verdict is Ending.UNKNOWN_VERSION


def test_a_host_that_unplugs_nothing(path: Path) -> None:
    class Refusing(FakeUnplugd):
        def answer(self, frame: bytes, payload: bytes) -> bytes:
            answer = super().answer(frame, payload)
            return answer[:8] + bytes(8) + answer[16:] if frame[:1] == b"\x10" and frame[30] == 1 else answer

    with Refusing(path):
        assert str(played(LINUX, path)) == "allowed, the host unplugged nothing: stays with emulated devices"


def test_a_host_without_the_protocol(path: Path) -> None:
    class Other(FakeUnplugd):
        def _read(self, addr: int, size: int) -> int:
            return (1 << 8 * size) - 1

    with Other(path):
        assert str(played(LINUX, path)) == "no unplug protocol: stays with emulated devices"


def test_an_observer_is_told_each_access(path: Path) -> None:
    seen: list[Seen] = []
    with FakeUnplugd(path), DeviceModel(path) as device:
        play(LINUX, device, seen.append)
    assert [(str(one.access), one.answer.data) for one in seen] == [
        ("inw 0x10", 0x49D2),
        ("inb 0x12", 1),
        ("outw 0x12 0x0003", 0),
        ("outl 0x10 0x00000001", 0),
        ("inw 0x10", 0x49D2),
        ("outw 0x10 0x0003", 3),
    ]


def test_a_long_log_line_is_split_between_frames(path: Path) -> None:
    line = b"x" * 5000 + b"\n"
    with FakeUnplugd(path) as server:
        played(Driver("-", "", (Log((line,)),)), path)
    assert server.log == line


def transcript(guest: Driver, path: Path, *, shown: int = 8) -> list[str]:
    lines: list[str] = []
    writer = Transcript(lines.append, shown=shown)
    with FakeUnplugd(path), DeviceModel(path) as device:
        play(guest, device, writer)
    writer.finish()
    return lines


def test_the_transcript_of_linux(path: Path) -> None:
    assert transcript(LINUX.after_reset(), path) == [
        "reset                           the platform device came out of reset",
        "inw 0x10 -> 0x49d2              unplug protocol present",
        "inb 0x12 -> 0x01                protocol version 1",
        "outw 0x12 0x0003                product 3",
        "outl 0x10 0x00000001            build 1",
        "inw 0x10 -> 0x49d2              not blacklisted",
        "outw 0x10 0x0003 -> order 0x3   asks to unplug disks and NICs: the host orders disks and NICs",
    ]


def test_the_transcript_gathers_log_bytes_into_lines(path: Path) -> None:
    guest = Driver(
        "-", "", (Log((b"one\n", b"\x1b[31m'\n"), string=False), Log((b"three\r\n",)), Log((b"end",)))
    )
    assert [line.split("  ")[-1].strip() for line in transcript(guest, path)] == [
        "logs 'one\\n'",
        'logs "\\x1b[31m\'\\n"',
        "logs 'three\\r\\n'",
        "logs 'end'",
    ]


def test_the_transcript_counts_what_it_does_not_show(path: Path) -> None:
    guest = Driver("-", "", (Log((b"12345\n",) * 10),))
    assert transcript(guest, path, shown=2)[2:] == [
        "...                             8 more log lines, 48 bytes"
    ]


def test_a_script_is_a_guest() -> None:
    script = "inw 0x10  # magic\n\nreset\noutl 0x10 86451\noutb 16 1\nlog a # b\n"
    assert parse(script.splitlines(keepends=True)).steps == (
        In(2, 0x10),
        Reset(),
        Out(4, 0x10, 86451),
        Out(1, 0x10, 1),
        Log((b"a # b\n",)),
    )


@pytest.mark.parametrize("line", ["inq 0x10", "outw 0x10", "inw ten", "inw 0x10 1"])
def test_a_broken_script_names_the_line(line: str) -> None:
    with pytest.raises(ValueError, match=f"line 2: '{line}'"):
        parse(["inw 0x10", line])


def test_the_command_line(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeUnplugd(path, blacklist=CITRIX_86451) as server:
        assert main([str(path), "linux", "--log", "hello"]) == 0
        out = capsys.readouterr().out
        assert "inw 0x10 -> 0x49d2              unplug protocol present\n" in out
        assert out.endswith("\nallowed, unplugged disks and NICs\n")
        assert server.log == b"hello\n"

        assert main([str(path), "citrix", "--quiet"]) == 3
        assert capsys.readouterr().out == "blacklisted by host: stays with emulated devices\n"

        options = ["--build", "0x10", "--reset", "--mask", "1", "--quiet", "--runtime-dir"]
        assert main(["7", "citrix", *options, str(path.parent)]) == 0
        assert capsys.readouterr().out == "allowed, unplugged disks\n"


def test_the_command_line_without_a_server(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(path), "linux"]) == 1
    assert capsys.readouterr().err == (
        f"simulator: {path}: no such socket: is unplugd running, and has the domain been introduced?\n"
    )


def test_the_command_line_with_a_script(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("inb 0x12\n"))
    with FakeUnplugd(path):
        assert main([str(path), "-"]) == 0
    assert capsys.readouterr().out.startswith("inb 0x12 -> 0x01\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("fly\n"))
    with pytest.raises(SystemExit) as caught:
        main([str(path), "-"])
    assert caught.value.code == 2


def test_help_says_what_the_exit_status_means(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert "exit status:" in out
    assert all(name in out for name in DRIVERS)
