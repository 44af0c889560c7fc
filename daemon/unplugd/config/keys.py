"""The keys of the configuration, and what the value of each may be (contract section 5).

A check takes a value as TOML has it and returns it as load.py keeps it, or raises Wrong with what is allowed.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unplugd.core.blacklist import LAST_BUILD
from unplugd.core.guestrules import Patterns
from unplugd.core.protocol import ACTIONS, DEVICES, Action

SINKS = ("journal", "file", "stderr")
_IDENTIFIER_LIMIT = 64
_LAST_DOMID = 0x7FEF
_SOCKET_PATH = 107
"""Bytes of a unix socket's path (unix(7): sun_path without its NUL)."""
_RUNTIME_PATH = _SOCKET_PATH - len("/dom32751.sock")
_UUID = re.compile(r"[A-Za-z0-9_-]{0,64}")
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")


class Wrong(Exception):
    """What is allowed, in words, where a value isn't."""


Check = Callable[[Any], Any]
"""Takes a value as TOML has it, returns it as configuration keeps it, raises Wrong."""


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Wrong("true or false")
    return value


def integer(least: int, most: int) -> Check:
    """A whole number between these."""
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise Wrong(f"a whole number from {least} to {most}")
        return value

    return check


def _number(least: float, most: float, unit: str) -> Check:
    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise Wrong(f"a number from {least:g} to {most:g} ({unit})")
        return float(value)

    return check


def _text(value: Any) -> str:
    if not isinstance(value, str) or any(ord(character) < 0x20 or ord(character) == 0x7F for character in value):
        raise Wrong("a string without control characters")
    return value


def _identifier(value: Any) -> str:
    text = str(value).replace("{domid}", "").replace("{name}", "")
    if not isinstance(value, str) or not value or not value.isprintable() or len(value) > _IDENTIFIER_LIMIT \
            or set(text) & {"{", "}"} or value == "unplugd":
        raise Wrong(f"1 to {_IDENTIFIER_LIMIT} printable characters other than \"unplugd\"; {{domid}} and {{name}} are"
                    " replaced")
    return value


def _one_of(*words: str) -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in words:
            raise Wrong("one of " + ", ".join(f'"{word}"' for word in words))
        return value

    return check


def _action(value: Any) -> Action:
    return ACTIONS[_one_of(*ACTIONS)(value)]


def _patterns(value: Any) -> Patterns:
    if not isinstance(value, list) or not value or not all(
            isinstance(item, str) and item and item.isprintable() for item in value):
        raise Wrong("a list of patterns of guests' names, or whole uuids; at least one")
    return Patterns(*value)


def _some_of(*words: str) -> Check:
    def check(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(word, str) and word in words for word in value):
            raise Wrong("a list of " + ", ".join(f'"{word}"' for word in words))
        return tuple(dict.fromkeys(value))

    return check


def _path(value: Any, longest: int) -> str:
    text = _text(value)
    try:
        size = len(os.fsencode(text))
    except UnicodeEncodeError:
        raise Wrong("a path in characters that this process's locale has") from None
    if not text.startswith("/") or size > longest:
        raise Wrong(f"an absolute path of at most {longest} bytes")
    return text


def _directory(value: Any) -> Path:
    return Path(_path(value, 1000))     # PATH_MAX is 4096, and pathlib makes parents by recursion


def _runtime_directory(value: Any) -> Path:
    try:
        return Path(_path(value, _RUNTIME_PATH))
    except Wrong as wrong:
        raise Wrong(f"{wrong}, for socket paths have {_SOCKET_PATH}") from None


def _socket_path(value: Any) -> str:
    try:
        return _path(value, _SOCKET_PATH) if value != "" else ""
    except Wrong:
        raise Wrong(f"an absolute path, or empty for the default; at most {_SOCKET_PATH} bytes") from None


def _user(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable() or set(value) & {"/", ":", " "}:
        raise Wrong("the name of a user, or empty for the default")
    return value


def _uids(value: Any) -> tuple[int, ...] | None:
    if value == "auto":
        return None
    uid = integer(0, 0xFFFFFFFE)
    try:
        if isinstance(value, list) and value:
            return tuple(uid(item) for item in value)
    except Wrong:
        pass
    raise Wrong('"auto", or a list of uids')


def _listen(value: Any) -> tuple[str, int] | None:
    text = _text(value)
    if not text:
        return None
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not (colon and (_is_ipv6(host) if bracketed else host == "*" or _is_name(host))
            and port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 0xFFFF):
        raise Wrong('"address:port" (an IPv6 address in brackets, "*" for all addresses), or empty for off')
    return host, int(port)


def _is_ipv6(host: str) -> bool:
    address, percent, zone = host.partition("%")
    try:
        socket.inet_pton(socket.AF_INET6, address)
    except (OSError, UnicodeError):
        return False
    return zone.isalnum() and zone.isascii() if percent else True


def _is_name(host: str) -> bool:
    """A host's name, or an IPv4 address: labels of at most 63 characters (RFC 1123), 253 in all."""
    return len(host) <= 253 and all(_LABEL.fullmatch(label) for label in host.removesuffix(".").split("."))


def _domain_name(value: Any) -> str:
    text = _text(value)
    if len(text.encode()) > 1024:
        raise Wrong("a string of at most 1024 bytes without control characters")
    return text


def _domain_uuid(value: Any) -> str:
    if not isinstance(value, str) or not _UUID.fullmatch(value):
        raise Wrong("at most 64 letters, digits, - and _, as a uuid has")
    return value


def _devices(value: Any) -> int:
    mask = 0
    for name in _some_of(*DEVICES)(value):
        mask |= DEVICES[name]
    return mask


KEYS: Mapping[str, Check] = {  # in the order of contract section 5
    "runtime_dir": _runtime_directory,
    "publish": _boolean,
    "protocol_version": integer(0, 1),
    "xenstore.backend": _one_of("auto", "socket", "xenbus", "embedded"),
    "xenstore.socket": _socket_path,
    "blacklist.mode": _one_of("enforce", "observe"),
    "blacklist.action": _action,
    "blacklist.lookup_timeout": _number(0.001, 60, "seconds"),
    "blacklist.on_error": _one_of("mirror", "allow", "deny"),
    "policy.allow_unplug": _devices,
    "policy.blacklisted_unplug": _one_of("allow", "deny"),
    "policy.legacy_unplug": _boolean,
    "socket.device_model_uids": _uids,
    "log.sinks": _some_of(*SINKS),
    "log.directory": _directory,
    "log.rate": _number(0, 1e12, "bytes a second"),
    "log.burst": _number(0, 1e12, "bytes"),
    "log.on_limit": _one_of("drop", "delay"),
    "log.flush_after": _number(0.01, 86400, "seconds"),
    "log.identifier": _identifier,
    "log.max_file_bytes": integer(4096, 1 << 50),
    "http.listen": _listen,
    "attach.when_unreachable": _one_of("absent", "wait"),
    "attach.unreachable_after": _number(0.1, 86400, "seconds"),
    "attach.forward": _boolean,
    "attach.user": _user,
    "attach.monitor": _socket_path,
}

TABLE_LISTS: Mapping[str, tuple[Mapping[str, Check], tuple[str, ...]]] = {
    "xenstore.domain": ({"domid": integer(1, _LAST_DOMID), "name": _domain_name, "uuid": _domain_uuid}, ("domid",)),
    "blacklist.entry": (
        {"product": _text, "build": integer(0, LAST_BUILD), "reason": _text, "action": _action, "guests": _patterns},
        ("product", "build"),
    ),
    "blacklist.range": (
        {"product": _text, "from": integer(0, LAST_BUILD), "to": integer(0, LAST_BUILD), "reason": _text,
         "action": _action, "guests": _patterns},
        ("product",),
    ),
    "guest": (
        {"match": _patterns, "blacklist": _one_of("enforce", "observe", "exempt"), "allow_unplug": _devices,
         "rate": KEYS["log.rate"], "burst": KEYS["log.burst"], "on_limit": KEYS["log.on_limit"]},
        ("match",),
    ),
}
"""Lists of tables: their keys, and which of these are needed."""

SECTIONS = ("xenstore", "blacklist", "products", "policy", "socket", "log", "http", "attach")
