"""Opens the store that the configuration selects, and finds the socket or device of a real xenstored."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from unplugd.xenstore.client import Client, Endpoint
from unplugd.xenstore.embedded import EmbeddedStore
from unplugd.xenstore.store import Store

if TYPE_CHECKING:
    from collections.abc import Mapping

    from unplugd.config.load import XenstoreConfig

DEVICES = ("/dev/xen/xenbus", "/proc/xen/xenbus")


def socket_paths(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Possible paths of xenstored's socket, as in libxenstore (xen.git, tools/libs/store/xs.c)."""
    if path := environment.get("XENSTORED_PATH"):
        return [path]
    if directory := environment.get("XENSTORED_RUNDIR"):
        return [f"{directory}/socket"]
    return ["/run/xenstored/socket", "/var/run/xenstored/socket"]


def open_store(config: XenstoreConfig) -> Store:
    """The store that the configuration selects; it opens nothing before its `run`."""
    if config.backend == "embedded":
        return EmbeddedStore(config.domains)
    endpoints: list[Endpoint] = []
    if config.backend in ("auto", "socket"):
        endpoints += [Endpoint(path) for path in ([config.socket] if config.socket else socket_paths())]
    if config.backend in ("auto", "xenbus"):
        endpoints += [Endpoint(path, is_device=True) for path in DEVICES]
    return Client(endpoints)
