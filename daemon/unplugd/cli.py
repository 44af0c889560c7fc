"""The command `unplugd`: arguments, exit status, and what is printed before there is a log."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unplugd import __version__
from unplugd.config.load import Config, files, load
from unplugd.errors import ConfigError, HostError

if TYPE_CHECKING:
    import argparse

EPILOG = """\
Without --config, /etc/unplugd/unplugd.toml and /etc/unplugd/conf.d/*.toml are read; with it, FILE and FILE.d/*.toml.
SIGHUP reloads the configuration, SIGTERM stops the service; SIGUSR1 and SIGUSR2 are ignored.

Exit status: 0 stopped as asked, or the configuration is valid; 1 a fault of unplugd's own; 2 wrong arguments, a
configuration that cannot be used, or a host that does not give what the service needs (a directory, a port).
"""


def parser() -> argparse.ArgumentParser:
    """The arguments of `unplugd`."""
    import argparse  # guests wait for a restart: what a unit passes is understood without this

    result = argparse.ArgumentParser(
        prog="unplugd",
        description="Serves the HVM emulated device unplug protocol to Xen guests: unplug, driver blacklist, logs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--config", metavar="FILE", type=Path, help="read this configuration file")
    result.add_argument("--check", action="store_true", help="check the configuration and exit")
    result.add_argument("--version", action="version", version=f"unplugd {__version__}")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `unplugd`; returns the exit status."""
    match sys.argv[1:] if arguments is None else arguments:
        case []:
            file, check = None, False
        case ["--config", str(name)] if not name.startswith("-"):
            file, check = Path(name), False
        case others:
            options = parser().parse_args(others)
            file, check = options.config, options.check
    try:
        config = load(file)
        if check:
            return _say_valid(config, file)
        # what --check does not need is not loaded for it
        from unplugd.service import Service
        from unplugd.sockets.loop import new_event_loop

        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            return runner.run(Service(config, file).run())
    except (ConfigError, HostError) as error:
        print(f"unplugd: {error}", file=sys.stderr)
        return 2


def _say_valid(config: Config, file: Path | None) -> int:
    try:
        print("configuration is valid: " + (", ".join(map(str, files(file))) or "no file, the defaults"), flush=True)
        for warning in config.warnings:
            print(f"unplugd: warning: {warning}", file=sys.stderr)
    except OSError as error:
        print(f"unplugd: standard output: {error.strerror}", file=sys.stderr)
        return 1
    return 0
