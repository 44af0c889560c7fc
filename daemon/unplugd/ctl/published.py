"""The guests as xenstore shows them while unplugd does not answer: the nodes that unplugd published for toolstacks.

`list` and `show` use this as a fallback. The values are the last ones that unplugd wrote. xenstore has no logs,
connections or steps; these are None here.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from unplugd.config.load import load
from unplugd.core.blacklist import node
from unplugd.core.protocol import DEVICES, VERDICTS
from unplugd.ctl.control import START_HINT
from unplugd.ctl.failure import NOT_RUNNING, Failure
from unplugd.ctl.store import read_node, with_store
from unplugd.errors import ConfigError, NoSuchNode

if TYPE_CHECKING:
    from argparse import Namespace

    from unplugd.xenstore.store import Store

DOMAINS = "/local/domain"
LEAVES = ("name", "vm", "unplug/product", "unplug/product-name", "unplug/build", "unplug/blacklisted",
          "unplug/unplugged", "unplug/verdict")


def domains(options: Namespace, failure: Failure) -> list[dict[str, Any]]:
    """The domains in the form of the API, by domid, with the values that xenstore has.

    `failure` is the reason why unplugd did not answer; it is raised if xenstore cannot help either.
    """
    # a user without permission for unplugd has none for xenstored
    if failure.status != NOT_RUNNING or failure.hint != START_HINT:
        raise failure
    from pathlib import Path

    try:
        config = load(Path(options.config) if options.config else None)
        if config.xenstore.backend == "embedded" or not config.publish:
            raise failure
        return with_store(config.xenstore, read)
    except (ConfigError, Failure):
        raise failure from None


async def read(store: Store) -> list[dict[str, Any]]:
    """All introduced domains but dom0."""
    try:
        listed = await store.directory(DOMAINS)
    except NoSuchNode:
        return []
    domids = sorted(int(domid) for domid in listed if domid.isascii() and domid.isdigit() and domid != "0")
    found = await asyncio.gather(*(_domain(store, domid) for domid in domids))
    return [domain for domain in found if domain is not None]


async def _domain(store: Store, domid: int) -> dict[str, Any] | None:
    if not await store.is_introduced(domid):
        return None
    values = await asyncio.gather(*(read_node(store, f"{DOMAINS}/{domid}/{leaf}") for leaf in LEAVES))
    name, vm, product, product_name, build, blacklisted, unplugged, verdict = values
    mask, number = _number(unplugged) or 0, _number(build)
    described: dict[str, Any] = {
        "domid": domid, "name": name or f"dom{domid}", "uuid": (vm or "").rpartition("/")[2],
        "product": _number(product), "product_name": product_name, "build": number,
        "blacklisted": blacklisted == "1", "blacklist_reason": "",
        "verdict": verdict if verdict in VERDICTS else None,
        "rule": None, "guest_rule": None,
        "unplugged": [device for device, bit in DEVICES.items() if mask & bit], "unplugged_mask": mask,
        "connections": None, "log": None, "history": None,
    }
    if blacklisted == "1" and product_name and number is not None:
        path = node(product_name, number)
        described["blacklist_reason"] = (path and await read_node(store, path)) or ""
    return described


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None
