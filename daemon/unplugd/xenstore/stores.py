"""The connections to xenstore that the daemon has: one to follow and publish, one for verdicts, some for a start.

What is asked on them is domains/follow.py's, blacklist/verdicts.py's and domains/publish.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence

from unplugd.config.load import EmbeddedDomain, XenstoreConfig
from unplugd.xenstore.store import Store

READERS = 8
"""Connections by which the domains are read at start."""


class Stores:
    """Made when xenstore is first needed: its client is loaded with it."""

    def __init__(self, config: XenstoreConfig, *, quick: bool) -> None:
        """`quick`: there may be many domains to be read, and nobody serves them yet."""
        from unplugd.xenstore.choice import open_store
        from unplugd.xenstore.embedded import EmbeddedStore

        self.main: Store = open_store(config)
        self.lookups = self.main
        """For verdicts alone: publishing and scanning do not stand in their way."""
        self.readers: Sequence[Store] = ()
        self._follow: Callable[[Sequence[EmbeddedDomain]], None] | None = None
        if isinstance(self.main, EmbeddedStore):
            self._follow = self.main.follow
        else:
            self.lookups = open_store(config)
            if quick:
                self.readers = [open_store(config) for _ in range(READERS)]

    def follow_configuration(self, domains: Sequence[EmbeddedDomain]) -> None:
        """Configuration has other domains: the store has them, where it is the one in this process."""
        if self._follow is not None:
            self._follow(domains)

    def run(self, connected: Callable[[], None], lost: Callable[[str], None]) -> list[Coroutine[None, None, None]]:
        """What has to run for as long as the daemon does: verdicts' connection first, guests wait for it."""
        extra = [] if self.lookups is self.main else [_run(self.lookups)]
        return [*extra, self.main.run(connected, lost)]

    def run_readers(self) -> list[Coroutine[None, None, None]]:
        """The same of the readers, until the domains are read."""
        return [_run(reader) for reader in self.readers]

    async def close(self) -> None:
        """End the connections."""
        await self.main.close()
        if self.lookups is not self.main:
            await self.lookups.close()


async def _run(store: Store) -> None:
    """Keep one connected of whose comings and goings the main one's tell enough."""
    await store.run(lambda: None, lambda reason: None)
