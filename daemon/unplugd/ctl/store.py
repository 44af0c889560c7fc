"""xenstore for `unplugctl blacklist`: a connection for the time of a command, whether unplugd runs or not."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from unplugd.core.blacklist import ROOT
from unplugd.ctl.failure import XENSTORE, Failure
from unplugd.errors import NoSuchNode, StoreError
from unplugd.xenstore.choice import open_store
from unplugd.xenstore.store import Store

if TYPE_CHECKING:
    from unplugd.config.load import XenstoreConfig

NOT_ROOT = "only root may use xenstored's socket: use sudo"

T = TypeVar("T")

PATIENCE = 5.0
"""Seconds that xenstored has to accept the connection."""

HINT = "is this dom0, and does xenstored run?  systemctl status xenstored xen"


def with_store(config: XenstoreConfig, work: Callable[[Store], Awaitable[T]]) -> T:
    """Do `work` with a connected store. Raises Failure."""
    return asyncio.run(_with_store(config, work))


async def _with_store(config: XenstoreConfig, work: Callable[[Store], Awaitable[T]]) -> T:
    store = open_store(config)
    connected: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def ready() -> None:
        if not connected.done():
            connected.set_result(None)

    def lost(reason: str) -> None:
        if not connected.done():
            denied = "Permission denied" in reason or os.geteuid() != 0
            connected.set_exception(Failure(XENSTORE, f"xenstore: {reason}", NOT_ROOT if denied else HINT))

    running = asyncio.ensure_future(store.run(ready, lost))
    try:
        await asyncio.wait_for(connected, PATIENCE)
        return await work(store)
    except TimeoutError:
        raise Failure(XENSTORE, f"xenstored has not answered within {PATIENCE:.0f} s", HINT) from None
    except StoreError as error:
        raise Failure(XENSTORE, f"xenstore: {error}", HINT) from None
    finally:
        await store.close()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def read_blacklist(store: Store) -> dict[tuple[str, str], str]:
    """All nodes of the blacklist: (product, build) as they are spelt there, to their value."""
    found: dict[tuple[str, str], str] = {}
    try:
        products = await store.directory(ROOT)
    except NoSuchNode:
        return found
    for product in products:
        try:
            builds = await store.directory(f"{ROOT}/{product}")
        except NoSuchNode:
            continue
        values = await asyncio.gather(*(_value(store, f"{ROOT}/{product}/{build}") for build in builds))
        found.update({(product, build): value for build, value in zip(builds, values, strict=True)
                      if value is not None})
    return found


async def _value(store: Store, path: str) -> str | None:
    try:
        return (await store.read(path)).decode("utf-8", "surrogateescape")
    except NoSuchNode:
        return None


async def read_node(store: Store, path: str) -> str | None:
    """The value of a node; None if there is no such node."""
    return await _value(store, path)


async def add_node(store: Store, path: str, reason: str) -> None:
    """Blacklist a build: the node, its parents, the reason as its value."""
    await store.write(path, reason.encode("utf-8", "surrogateescape")[:2048])


async def remove_node(store: Store, path: str) -> bool:
    """Remove a build; returns whether it existed. An empty product directory stays: others may have created it."""
    if await _value(store, path) is None:
        return False
    try:
        await store.remove(path)
    except NoSuchNode:
        return False
    return True
