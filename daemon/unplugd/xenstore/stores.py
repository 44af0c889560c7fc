"""The daemon's connections to xenstore: one to follow domains and publish, one for verdicts, some for the start.

domains/follow.py, blacklist/verdicts.py and domains/publish.py use them.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence

from unplugd.config.load import EmbeddedDomain, XenstoreConfig
from unplugd.xenstore.store import Store

READERS = 8
"""Number of connections that read the domains at start."""


class Stores:
    """Created when xenstore is first needed, because this loads the client."""

    def __init__(self, config: XenstoreConfig, *, quick: bool) -> None:
        """`quick`: there may be many domains to read, and they are not served yet."""
        from unplugd.xenstore.choice import open_store
        from unplugd.xenstore.embedded import EmbeddedStore

        self.main: Store = open_store(config)
        self.lookups = self.main
        """Only for verdicts, so that publishing and scanning do not delay them."""
        self.readers: Sequence[Store] = ()
        self._follow: Callable[[Sequence[EmbeddedDomain]], None] | None = None
        if isinstance(self.main, EmbeddedStore):
            self._follow = self.main.follow
        else:
            self.lookups = open_store(config)
            if quick:
                self.readers = [open_store(config) for _ in range(READERS)]

    def follow_configuration(self, domains: Sequence[EmbeddedDomain]) -> None:
        """The configured domains have changed: update the embedded store, if it is used."""
        if self._follow is not None:
            self._follow(domains)

    def run(self, connected: Callable[[], None], lost: Callable[[str], None]) -> list[Coroutine[None, None, None]]:
        """The coroutines that must run as long as the daemon. Verdicts come first, because guests wait for them."""
        extra = [] if self.lookups is self.main else [_run(self.lookups)]
        return [*extra, self.main.run(connected, lost)]

    def run_readers(self) -> list[Coroutine[None, None, None]]:
        """The coroutines of the readers, which run until the domains are read."""
        return [_run(reader) for reader in self.readers]

    async def close(self) -> None:
        """End the connections."""
        await self.main.close()
        if self.lookups is not self.main:
            await self.lookups.close()


async def _run(store: Store) -> None:
    """Keep a store connected, without callbacks: those of the main store are enough."""
    await store.run(lambda: None, lambda reason: None)
