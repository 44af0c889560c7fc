"""The driver simulator: a guest's PV driver against a real socket of unplugd.

    python3 -m unplugd.simulator /run/unplugd/dom7.sock linux

For authors of drivers and toolstacks, for the demo and for tests. It runs a driver of drivers.py through devicemodel.py
and prints the driver's conclusions. Nothing of the daemon belongs here.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from unplugd.simulator.devicemodel import (
    MAX_PAYLOAD,
    Answer,
    DeviceModel,
    DeviceModelError,
    PortAccess,
    hexadecimal,
)
from unplugd.simulator.drivers import (
    DRIVERS,
    LOG,
    SLOT,
    Driver,
    In,
    Log,
    Out,
    Reset,
    Step,
    Then,
    device_names,
)

__all__ = ["DeviceModel", "DeviceModelError", "Ending", "Outcome", "Seen", "main", "parse", "play"]


@dataclass(frozen=True, slots=True)
class Seen:
    """The argument of an observer: an access (None: a reset), its answer and the driver's conclusion."""

    access: PortAccess | None
    answer: Answer
    says: str


class Ending(Enum):
    """How a driver's attempt ended."""

    UNPLUGGED = "unplugged"
    EMULATED = "nothing unplugged"
    BLACKLISTED = "blacklisted by host"
    NO_PROTOCOL = "no unplug protocol"
    UNKNOWN_VERSION = "unknown protocol version"


_STOPS = {
    Then.STOP_BLACKLISTED: Ending.BLACKLISTED,
    Then.STOP_NO_PROTOCOL: Ending.NO_PROTOCOL,
    Then.STOP_UNKNOWN_VERSION: Ending.UNKNOWN_VERSION,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a driver: how it ended, the union of the unplug orders, and a sentence."""

    verdict: Ending
    order: int
    says: str

    def __str__(self) -> str:
        return self.says


def play(guest: Driver, device: DeviceModel, observe: Callable[[Seen], None] | None = None) -> Outcome:
    """Run a guest's driver to its end; `observe` is called with each access. Raises DeviceModelError."""
    tell = observe or (lambda seen: None)
    announced = asked = disobeying = skipping = False
    order = 0
    for step in guest.steps:
        if skipping and not (isinstance(step, Out) and step.is_unplug):
            if not (disobeying and isinstance(step, Log)):
                continue
        else:
            skipping = False
        match step:
            case Reset():
                device.reset()
                tell(Seen(None, Answer(0), "the platform device came out of reset"))
            case In():
                access = PortAccess(step.port, step.size, read=True)
                answer = device.access(access)
                conclusion = step.conclude(answer.data)
                tell(Seen(access, answer, conclusion.says))
                if stop := _STOPS.get(conclusion.then):
                    return Outcome(stop, order, f"{stop.value}: stays with emulated devices")
                skipping = conclusion.then in (Then.SKIP_TO_UNPLUG, Then.SKIP_TO_UNPLUG_DISOBEYING)
                disobeying |= conclusion.then in (Then.GO_ON_DISOBEYING, Then.SKIP_TO_UNPLUG_DISOBEYING)
            case Out():
                access = PortAccess(step.port, step.size, read=False, data=step.value)
                answer = device.access(access)
                order |= answer.data
                asked |= step.is_unplug
                announced |= step.is_build
                ordered = f": the host orders {device_names(answer.data)}" if step.is_unplug else ""
                tell(Seen(access, answer, step.says + ordered))
            case Log():
                lines = step.refused if disobeying and step.refused else step.lines
                for access in _log_accesses(replace(step, lines=lines)):
                    tell(Seen(access, device.access(access), ""))
    return _conclude(order, asked=asked, announced=announced, blacklisted=disobeying)


def _conclude(order: int, *, asked: bool, announced: bool, blacklisted: bool) -> Outcome:
    """The outcome of a driver that reached its last step."""
    judged = "blacklisted by host" if blacklisted else "allowed" if announced else "asked for no verdict"
    if order:
        verdict = Ending.BLACKLISTED if blacklisted else Ending.UNPLUGGED
        how = " all the same" if blacklisted else ""
        return Outcome(verdict, order, f"{judged}, unplugged {device_names(order)}{how}")
    verdict = Ending.BLACKLISTED if blacklisted else Ending.EMULATED
    what = "the host unplugged nothing" if asked else "asked for no unplug"
    return Outcome(verdict, 0, f"{judged}, {what}: stays with emulated devices")


def _log_accesses(step: Log) -> Iterator[PortAccess]:
    for line in step.lines:
        if not step.string:
            yield from (PortAccess(step.port, 1, read=False, data=byte) for byte in line)
            continue
        for at in range(0, len(line), MAX_PAYLOAD):
            part = line[at : at + MAX_PAYLOAD]
            yield PortAccess(step.port, 1, read=False, count=len(part), string=True, payload=part)


class Transcript:
    """An observer that writes one line per access, and one per log line.

    The first `shown` log lines are written; further ones are only counted.
    """

    def __init__(self, write: Callable[[str], None], *, shown: int = 8) -> None:
        self._write = write
        self._shown = shown
        self._line = bytearray()
        self._accesses = 0
        self._lines = 0
        self._hidden_bytes = 0

    def __call__(self, seen: Seen) -> None:
        access = seen.access
        if access is not None and not access.read and access.size == 1 and access.port == LOG:
            self._log(access)
            return
        self.finish()
        if access is None:
            self._row("reset", seen.says)
        elif access.read:
            self._row(f"{access} -> {hexadecimal(seen.answer.data, access.size)}", seen.says)
        else:
            order = f" -> order {seen.answer.data:#x}" if seen.answer.data else ""
            self._row(f"{access}{order}", seen.says)

    def finish(self) -> None:
        """Write an unfinished log line, and the number of lines that were not shown."""
        self._end_line()
        if self._lines > self._shown:
            hidden = self._lines - self._shown
            self._row("...", f"{hidden} more log lines, {self._hidden_bytes} bytes")
        self._lines = self._hidden_bytes = 0

    def _log(self, access: PortAccess) -> None:
        self._line += access.payload if access.string else bytes([access.data & 0xFF])
        self._accesses += 1
        if self._line.endswith(b"\n") or len(access.payload) == SLOT:
            self._end_line(string=access.string)

    def _end_line(self, *, string: bool = False) -> None:
        if not self._line:
            return
        self._lines += 1
        if self._lines <= self._shown:
            times = f"{self._accesses} x " if self._accesses > 1 else ""
            verb = f"rep outsb {LOG:#x} {len(self._line)} bytes" if string else f"outb {LOG:#x}"
            self._row(times + verb, f"logs {ascii(bytes(self._line))[1:]}")
        else:
            self._hidden_bytes += len(self._line)
        self._line.clear()
        self._accesses = 0

    def _row(self, left: str, right: str) -> None:
        self._write(f"{left:<30}  {right}".rstrip())


def parse(script: Iterable[str]) -> Driver:
    """A guest from text, one step per line: `inw 0x10`, `outl 0x10 86451`, `log TEXT`, `reset`.

    `#` begins a comment. Raises ValueError with the number of the line.
    """
    steps: list[Step] = []
    sizes = {"b": 1, "w": 2, "l": 4}
    for number, raw in enumerate(script, 1):
        words = raw.split("#", 1)[0].split()
        try:
            match words:
                case []:
                    pass
                case ["reset"]:
                    steps.append(Reset())
                case ["log", *_]:
                    text = raw.strip()[len("log") :].strip()
                    steps.append(Log((os.fsencode(text) + b"\n",)))
                case [("inb" | "inw" | "inl") as verb, port]:
                    steps.append(In(sizes[verb[-1]], int(port, 0)))
                case [("outb" | "outw" | "outl") as verb, port, value]:
                    steps.append(Out(sizes[verb[-1]], int(port, 0), int(value, 0)))
                case _:
                    raise ValueError("not a step")
        except ValueError as error:
            raise ValueError(f"line {number}: {raw.strip()!r}: {error}") from error
    return Driver("-", "accesses from standard input", tuple(steps))


_EPILOG = """\
guests:
{guests}
  -                    accesses from standard input, one per line:
                       inw 0x10 | outw 0x12 0xffff | outl 0x10 86451 | log TEXT | reset   (# begins a comment)

exit status:
  0  devices were unplugged, or the accesses from standard input were all made
  1  unplugd cannot be reached, closed the connection, or did not answer in time
  2  the command line is wrong
  3  the driver is blacklisted by this host
  4  nothing was unplugged: the host ordered none, or does not speak the protocol (or its version)

examples:
  python3 -m unplugd.simulator 7 linux
  python3 -m unplugd.simulator 7 xenbus --product 4660 --build 0x090100 --reset
  echo 'inw 0x10' | python3 -m unplugd.simulator /run/unplugd/dom7.sock -
"""

_RUN = Path("/run/unplugd")
_EXIT = {
    Ending.UNPLUGGED: 0,
    Ending.EMULATED: 4,
    Ending.BLACKLISTED: 3,
    Ending.NO_PROTOCOL: 4,
    Ending.UNKNOWN_VERSION: 4,
}


def _number(text: str) -> int:
    return int(text, 0)


_number.__name__ = "number"  # what argparse calls it in its messages


def _parser() -> argparse.ArgumentParser:
    guests = "\n".join(f"  {guest.name:<20} {guest.title}" for guest in DRIVERS.values())
    parser = argparse.ArgumentParser(
        prog="python3 -m unplugd.simulator",
        description="Simulate a guest's PV driver: send its accesses to unplugd, as the domain's device model does.",
        epilog=_EPILOG.format(guests=guests),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("socket", metavar="SOCKET", help="path of the domain's socket, or a domid")
    add("guest", metavar="GUEST", choices=[*DRIVERS, "-"], help="which driver (below), or -")
    add("--product", type=_number, metavar="N", help="announce this product number instead")
    add("--build", type=_number, metavar="N", help="announce this build number instead")
    add("--mask", type=_number, metavar="N", help="ask for this unplug mask instead")
    add("--log", action="append", metavar="TEXT", help="log this line instead (may be repeated)")
    add("--reset", action="store_true", help="reset the platform device first")
    add("--timeout", type=float, default=10.0, metavar="S", help="seconds an answer may take (10)")
    add("--quiet", action="store_true", help="print only what the driver concludes")
    add("--runtime-dir", type=Path, default=_RUN, metavar="DIR", help=f"where a domid's socket is ({_RUN})")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.guest == "-":
        try:
            guest = parse(sys.stdin)
        except ValueError as error:
            parser.error(str(error))
    else:
        guest = DRIVERS[options.guest]
    guest = guest.announcing(options.product, options.build)
    if options.mask is not None:
        guest = guest.unplugging(options.mask)
    if options.log is not None:
        guest = guest.logging(*(os.fsencode(line) + b"\n" for line in options.log))
    if options.reset:
        guest = guest.after_reset()
    path = options.runtime_dir / f"dom{options.socket}.sock" if options.socket.isdecimal() else options.socket
    transcript = Transcript((lambda line: None) if options.quiet else print)
    try:
        with DeviceModel(path, timeout=options.timeout) as device:
            outcome = play(guest, device, transcript)
        transcript.finish()
        print(outcome, flush=True)
    except DeviceModelError as error:
        transcript.finish()
        sys.stdout.flush()
        print(f"simulator: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader has closed the pipe (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return 0 if options.guest == "-" else _EXIT[outcome.verdict]
