"""A domain as others see it: by the API, whose fields docs/api.md explains, and in xenstore (contract section 2)."""

from __future__ import annotations

import time

from unplugd.core.protocol import DEVICES
from unplugd.domains.domain import Domain


def describe(domain: Domain) -> dict[str, object]:
    """The domain as the API shows it in the list of all (docs/api.md)."""
    log = domain.guest.log
    return {
        "domid": domain.domid,
        "name": domain.name,
        "uuid": domain.uuid,
        "product": domain.product,
        "product_name": domain.settings.registry.name(domain.product),
        "build": domain.build,
        "blacklisted": domain.blacklisted,
        "blacklist_reason": domain.guest.reason,
        "verdict": domain.verdict,
        "rule": domain.guest.rule or None,
        "guest_rule": str(domain.rule) if domain.rule is not None else None,
        "unplugged": [name for name, bit in DEVICES.items() if domain.unplugged & bit],
        "unplugged_mask": domain.unplugged,
        "connections": domain.connections,
        "log": {
            "lines": domain.log_lines,
            "bytes": domain.log_bytes,
            "dropped_lines": domain.dropped_lines,
            "dropped_bytes": domain.dropped_bytes,
            "throttled": log.throttled,
            "limited": not log.limits.unlimited,
            "rate": log.limits.rate,
            "burst": log.limits.burst,
            "balance": int(log.bucket.balance),
        },
    }


def describe_history(domain: Domain) -> list[dict[str, object]]:
    """The last steps of the guest's driver, as the API shows them for one domain."""
    return domain.guest.history.describe(time.time() - time.monotonic())


def published(domain: Domain) -> dict[str, str] | None:
    """The nodes under /local/domain/<domid>/unplug and their values; None where there is nothing to say."""
    platform = domain.guest.platform
    if platform.build is None and not platform.unplugged:
        return None
    nodes = {}
    if platform.build is not None and platform.product is not None:
        nodes["product"] = str(platform.product)
        name = domain.settings.registry.name(platform.product)
        if name is not None:
            nodes["product-name"] = name
        nodes["build"] = str(platform.build)
    nodes["blacklisted"] = str(int(platform.blacklisted))
    nodes["unplugged"] = str(platform.unplugged)
    if platform.verdict is not None:
        nodes["verdict"] = platform.verdict
    return nodes
