"""Fuzzing the compiled fast path (daemon/fastpath) under AddressSanitizer and UBSan.

The invariant: it answers what the Python that it stands in for answers, and touches no memory but its own.

    python -m tests.fuzz.fastpath [SECONDS]

Inputs are the corpus of tests/fuzz/stream.py and what that target has found, mutated. Needs gcc with its sanitizers and
Python's headers; the sanitized library is made anew each time and used by this process alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.machinery
import importlib.util
import os
import random
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from tests.fuzz.stream import CORPUS, Outcome, corpus, mutate, split

FOUND = Path(".cache/fuzz")
LIBRARY = "UNPLUGD_SANITIZED"
"""In the environment: the sanitized library, in the process that uses it."""
FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1", "-std=gnu11", "-fPIC", "-shared")


def missing() -> str:
    """What this machine lacks; "" for nothing."""
    if shutil.which("gcc") is None:
        return "gcc is not installed"
    if not Path(_sanitizer()).is_absolute():
        return "gcc has no AddressSanitizer"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "Python.h is not installed"
    return ""


def _sanitizer() -> str:
    return subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()


def _again_sanitized(arguments: list[str]) -> int:
    """Build the library and run this again with it."""
    sources = sorted((Path(__file__).parents[2] / "daemon/fastpath").glob("*.c"))
    with tempfile.TemporaryDirectory() as directory:
        library = Path(directory) / "_fastpath.so"
        include = sysconfig.get_path("include")
        subprocess.run(["gcc", *FLAGS, "-I", include, *map(str, sources), "-o", str(library)], check=True)
        environment = os.environ | {
            "LD_PRELOAD": _sanitizer(),
            "ASAN_OPTIONS": "detect_leaks=0",
            "PYTHONMALLOC": "malloc",  # so that objects of Python are guarded too
            LIBRARY: str(library),
        }
        command = [sys.executable, "-m", "tests.fuzz.fastpath", *arguments]
        return subprocess.run(command, env=environment, check=False).returncode


def _load() -> None:
    """Have the sanitized library be unplugd.sockets._fastpath."""
    loader = importlib.machinery.ExtensionFileLoader("unplugd.sockets._fastpath", os.environ[LIBRARY])
    spec = importlib.util.spec_from_file_location("unplugd.sockets._fastpath", os.environ[LIBRARY], loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    import unplugd.sockets

    sys.modules["unplugd.sockets._fastpath"] = module
    unplugd.sockets._fastpath = module


async def _fuzz(seconds: float) -> int:
    from tests.lab.host import Host, host, until
    from unplugd.config.load import Config, LogConfig, PolicyConfig
    from unplugd.core.guest import Verdict
    from unplugd.core.stream import NeedVerdict
    from unplugd.domains.domain import Domain
    from unplugd.sockets.access import ConnectionPolicy
    from unplugd.sockets.listener import Listener

    loop = asyncio.get_running_loop()
    failed: list[dict[str, object]] = []
    loop.set_exception_handler(lambda _, context: failed.append(context))

    async def judge(_domain: Domain, need: NeedVerdict, _deadline: float) -> Verdict:
        return Verdict(blacklisted=bool(need.build & 1))

    async def check(one: Host, domid: int, data: bytes, seed: int) -> None:
        expected = Outcome(0, [data]).out
        domain = one.domain(domid)
        listener = Listener(domain, one.directory, ConnectionPolicy([os.geteuid()]), judge)
        listener.start(None, {})
        ours = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        await loop.sock_connect(ours, str(listener.path))

        async def send() -> None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for piece in split(data, seed):
                    await loop.sock_sendall(ours, piece)
                    if seed & 1:
                        await asyncio.sleep(0)

        async def receive() -> bytes:
            got = b""
            while len(got) < len(expected):
                more = await loop.sock_recv(ours, 1 << 16)
                if not more:
                    break
                got += more
            return got

        with ours:
            async with asyncio.timeout(30):
                _, got = await asyncio.gather(send(), receive())
        assert got == expected, (len(got), len(expected))
        await until(lambda: domain.connections == 0)
        listener.close()
        domain.release()
        one.settings.delivery.close(domain.outbox)
        one.journald.read()
        one.journald.entries.clear()
        assert failed == []

    inputs = [path.read_bytes() for path in [*corpus(), *FOUND.glob("*")] if path.is_file()]
    chance = random.Random()
    config = Config(policy=PolicyConfig(legacy_unplug=True), log=LogConfig(rate=1000, burst=2000))
    tried = 0
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as directory:
        async with host(Path(directory), config) as one:
            while time.monotonic() < end:
                data = inputs[tried] if tried < len(inputs) else mutate(chance, chance.choice(inputs))
                (Path(directory) / "last").write_bytes(data)
                try:
                    await check(one, 1 + tried % 30_000, data[3:], chance.randrange(256))
                except BaseException:
                    (CORPUS.parent / "fastpath-failed").write_bytes(data)
                    raise
                tried += 1
    return tried


def main() -> int:
    """Fuzz for so many seconds."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.fastpath", description=__doc__)
    parser.add_argument("seconds", nargs="?", type=int, default=60)
    options = parser.parse_args()
    if LIBRARY not in os.environ:
        if reason := missing():
            print(f"the compiled fast path is not fuzzed: {reason}")
            return 0
        return _again_sanitized(sys.argv[1:])
    _load()
    from unplugd.sockets import loop as eventloop

    with asyncio.Runner(loop_factory=eventloop.new_event_loop) as runner:
        assert eventloop.Loop is not None
        tried = runner.run(_fuzz(options.seconds))
    print(f"{tried} inputs tried with the sanitized fast path")
    return 0


if __name__ == "__main__":
    sys.exit(main())
