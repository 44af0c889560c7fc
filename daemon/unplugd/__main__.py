"""The process `unplugd`, from its first instruction to its last: what makes it start and end quickly.

Guests wait while unplugd is restarted, and most of that time goes into loading modules and taking them down again. What
the command does is in cli.py, what the service does in service.py; nothing here changes either.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from typing import NoReturn

from unplugd.host import streams


def _load_asyncio() -> None:
    """Load asyncio without TLS, which unplugd never speaks: OpenSSL alone costs a tenth of the start and 3 MiB.

    asyncio is made for a Python without `ssl`. Who imports `ssl` later (prometheus_client does) gets it.
    """
    if "asyncio" in sys.modules or "ssl" in sys.modules:
        return
    sys.modules["ssl"] = None  # type: ignore[assignment]  # what import takes for "there is none"
    try:
        import asyncio  # noqa: F401  # for everybody after us
    finally:
        del sys.modules["ssl"]


def _expect_signals() -> None:
    """From here on, only the signals that are meant to end unplugd do so.

    SIGHUP is blocked until the service can reload (service.py). Programs that rotate logs often send SIGUSR1 or
    SIGUSR2.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def main() -> NoReturn:
    """Run the command and end the process with its status."""
    # Nothing of what is loaded becomes garbage; looking for some among it is a tenth of the start. service.py goes on
    # with the collector once guests are served, without these objects.
    gc.disable()
    streams.open_closed()
    _expect_signals()
    _load_asyncio()
    from unplugd.cli import main as command

    status = command()
    # What is kept is where it belongs, and the kernel takes the rest back at once. Python would take each module down
    # by itself, which takes as long as a guest should wait in all.
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # nobody reads it any more
            status = status or 1
    os._exit(status)


if __name__ == "__main__":
    main()
