"""The kinds of records, each with its MESSAGE_ID, and the form of an entry of the log.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

ERROR, WARNING, NOTICE, INFO = "3", "4", "5", "6"
"""syslog priorities as values of the journal field PRIORITY (syslog(3))."""


class Entry(NamedTuple):
    """One record, of a guest or of unplugd itself, on its way to the sinks."""

    time: float
    """When it happened: CLOCK_REALTIME, seconds."""
    message: bytes
    """Raw bytes of one line without its end; untrusted if a guest wrote it. Every sink escapes it."""
    fields: tuple[tuple[str, str], ...]
    """Journal fields in addition to MESSAGE; names as in systemd.journal-fields(7), values are unplugd's own text."""


class Event(Enum):
    """The kinds of records: MESSAGE_ID, priority."""

    GUEST_LINE = ("37f2b761cab142c6bf0b323a713e22ba", INFO)
    LINES_DROPPED = ("5bb7684b9baa439283764a9246ba944f", WARNING)
    ANNOUNCED = ("b00b1a3148e74d9091cd5195e2192cae", INFO)
    BLACKLISTED = ("8a1c65d283b84871bd90f4d58828efc2", WARNING)
    REPORTED = ("34997ca891004145a496e61b3878cb0b", WARNING)
    IGNORED = ("d524adecbd73452282a8ef47ac4d8875", WARNING)
    UNPLUGGED = ("d5acc99193f644e1bc0b19f93fc95093", INFO)
    UNPLUG_DENIED = ("a50dc19af77344f4b2717b696a5f425a", WARNING)
    UNDEFINED_BITS = ("9361703257b74eed86ffcaf4471bc879", NOTICE)
    BUILD_WITHOUT_PRODUCT = ("307f4a349c814519adda3d1fe6d6943c", NOTICE)
    RESET = ("c6f6de55935641fdb1e43b5f3214afaa", INFO)
    THROTTLED = ("92e4751d749348b6826d7c2e546f4f69", WARNING)
    RESUMED = ("ee7a02e2290e49e19417d3283ac203a7", INFO)
    PROTOCOL_FAULT = ("d2f6bf14342f4495ae3858be3c4f7628", WARNING)
    CONNECTION_DENIED = ("dd7ed9e97168486ca00e8ec297100699", WARNING)
    CONNECTION_LIMIT = ("6ecf4b772cb5474888da3a198a4a0fb4", WARNING)
    INTRODUCED = ("f353785a281849fc905ce19cfdb3b97e", INFO)
    RELEASED = ("ea46ce18a64e4432a7af6c788c303fb4", INFO)
    RENAMED = ("0aa1099f86a04824b86c45bb4462d3d5", INFO)
    STORE_CONNECTED = ("d1d3db56de93454f82a95fbb2e8b634e", INFO)
    STORE_LOST = ("1a046b78f3034a058337205037d4fb6b", WARNING)
    STORE_REFUSED = ("1b4cb13ea2084aeebdc38c060a28a3b2", WARNING)
    MALFORMED_NODE = ("dcc2edb2ca0142ac8e6a96e9aa7eb25b", WARNING)
    VERDICT_FALLBACK = ("050e09efe3a242e6b97d5746cc9190d5", WARNING)
    SINK_FAILED = ("d65ede7dad144e56bed86bcdcf368ac4", ERROR)
    SINK_RECOVERED = ("934ed401f169407fb5bb00b7a64c1ac1", INFO)
    RECORDS_LOST = ("da0c2762684d492f8c4e3783758a7a9e", WARNING)
    STARTED = ("cca580c0273a4a3381311cef8070547a", INFO)
    STOPPED = ("8215f4ec39814b5d8c1a7087ff8e74ed", INFO)
    POLICY_CHANGED = ("15ba554bbf594c678d17ffb7202fb2f8", NOTICE)
    CONFIGURATION_WARNING = ("53c7d7fd7dcb4d6b8c50839f4a1a61dc", WARNING)
    RELOADED = ("07f1e034bc2841529c75f6ddba154e4d", INFO)
    RELOAD_REFUSED = ("e04740d14ebf4caeb3d73242c7517170", ERROR)
    INTERNAL = ("fda1f6e887b34371917a8142e29c4763", ERROR)

    def __init__(self, message_id: str, priority: str) -> None:
        self.message_id = message_id
        self.priority = priority
