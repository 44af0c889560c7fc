"""What all tests share: the lab's fixtures, the event loop of the daemon, and hypothesis' profile."""

import asyncio.events
import os

from hypothesis import HealthCheck, settings
from hypothesis.database import DirectoryBasedExampleDatabase

from unplugd.sockets import loop as eventloop

# asyncio.run() runs what the daemon runs: with the compiled part where it was built, without it with UNPLUGD_PURE=1.
asyncio.events.new_event_loop = eventloop.new_event_loop

pytest_plugins: list[str] = [
    "tests.lab.daemon",
    "tests.lab.journald",
    "tests.lab.systemd",
    "tests.lab.prometheus",
]

# A slow and busy machine must not make a property false; CI says the same of the same commit every time.
settings.register_profile(
    "unplugd",
    database=None if (derandomize := "CI" in os.environ) else DirectoryBasedExampleDatabase(".cache/hypothesis"),
    deadline=None,
    derandomize=derandomize,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("unplugd")
