"""What is recorded about a domain: entries with its fields, for the sinks (contract section 3).

What happened is core/events.py's, what its driver is domain.py's; here it gets the journal fields that say whose it is.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from unplugd.core.bucket import RecordLimit
from unplugd.core.events import (
    Announced,
    Blacklisted,
    BuildWithoutProduct,
    Ignored,
    Reported,
    Resumed,
    Throttled,
    UndefinedBits,
    UnplugDenied,
    Unplugged,
    VerdictFallback,
    WasReset,
)
from unplugd.core.events import Event as CoreEvent
from unplugd.core.registry import Registry
from unplugd.sinks.delivery import Delivery
from unplugd.sinks.outbox import Outbox
from unplugd.sinks.records import Entry, Event

COMPLAINTS = 20
"""Records that one domain's device model can cause at once by faults; one more every COMPLAINT_INTERVAL."""
COMPLAINT_INTERVAL = 10.0

Fields = tuple[tuple[str, str], ...]

_KINDS: Mapping[type[CoreEvent], Event] = {
    Announced: Event.ANNOUNCED,
    Blacklisted: Event.BLACKLISTED,
    Reported: Event.REPORTED,
    Ignored: Event.IGNORED,
    VerdictFallback: Event.VERDICT_FALLBACK,
    Unplugged: Event.UNPLUGGED,
    UnplugDenied: Event.UNPLUG_DENIED,
    UndefinedBits: Event.UNDEFINED_BITS,
    BuildWithoutProduct: Event.BUILD_WITHOUT_PRODUCT,
    WasReset: Event.RESET,
    Throttled: Event.THROTTLED,
    Resumed: Event.RESUMED,
}


class DomainRecords:
    """The records about one domain; identify() before anything else."""

    def __init__(self, domid: int, delivery: Delivery) -> None:
        self._domid = domid
        self._delivery = delivery
        self._name = self._identifier = ""
        self._identity: Fields = ()
        # the fields of the guest's lines are the same from line to line: made once, until something changes
        self._line_key: object = None
        self._line_fields: Fields = ()
        self._complaints = RecordLimit(COMPLAINTS, 1 / COMPLAINT_INTERVAL, time.monotonic())

    def identify(self, name: str, uuid: str, registry: Registry, identifier: str) -> None:
        """Who the domain is, and by what names products are called. `identifier` is `log.identifier`."""
        self._name = name
        # the name comes last: what it contains is not replaced
        self._identifier = identifier.replace("{domid}", str(self._domid)).replace("{name}", name)
        self._registry = registry
        self._identity = (
            ("XEN_DOMID", str(self._domid)), ("XEN_DOMAIN_UUID", uuid), ("XEN_DOMAIN_NAME", name),
        )
        self._line_key = None

    @property
    def prefix(self) -> str:
        """How unplugd's own records about the domain begin."""
        return f"{self._name} (domain {self._domid}): "

    def guest_line(self, outbox: Outbox, kind: Event, text: bytes, product: int | None, build: int | None) -> None:
        """What goes into the guest's log: a line, or what is said in place of dropped ones."""
        key = kind, product, build
        if key != self._line_key:
            self._line_key = key
            self._line_fields = (
                ("PRIORITY", kind.priority), ("SYSLOG_IDENTIFIER", self._identifier), ("MESSAGE_ID", kind.message_id),
                *self._identity, *self._driver(product, build),
            )
        self._delivery.put(outbox, Entry(time.time(), text, self._line_fields))

    def own(self, kind: Event, message: str, product: int | None = None, build: int | None = None) -> None:
        """A record of unplugd's about the domain, and its driver where that is known."""
        text = (self.prefix + message).encode("utf-8", "surrogateescape")
        self._delivery.record(Entry(time.time(), text, (
            ("PRIORITY", kind.priority), ("SYSLOG_IDENTIFIER", "unplugd"), ("MESSAGE_ID", kind.message_id),
            *self._identity, *self._driver(product, build),
        )))

    def happened(self, event: CoreEvent, product: int | None, build: int | None) -> None:
        """The record of what the guest caused, but for its lines."""
        self.own(_KINDS[type(event)], str(event), product, build)

    def complain(self, kind: Event, message: str) -> None:
        """A record that the domain's device model or a local user can cause: a few at once, then one now and then."""
        if admitted := self._complaints.admit(message, time.monotonic()):
            self.own(kind, admitted)

    def _driver(self, product: int | None, build: int | None) -> Fields:
        if product is None:
            return ()
        fields = [("UNPLUG_PRODUCT", str(product))]
        name = self._registry.name(product)
        if name is not None:
            fields.append(("UNPLUG_PRODUCT_NAME", name))
        if build is not None:
            fields.append(("UNPLUG_BUILD", str(build)))
        return tuple(fields)
