"""The configuration: which keys there are, what they may be, and where a wrong one stands.

`load()` reads `unplugd.toml` and the files of its drop-in directory in lexical order. Every value is checked in the
file that it stands in, so that an error names file, key and what is allowed. Later files replace single values; the
lists of tables (`blacklist.entry`, `blacklist.range`, `xenstore.domain`) and `[products]` add up.

Source: contract section 5. Nothing here is applied: that is service.py's.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unplugd.attach.settings import UNREACHABLE, AttachConfig
from unplugd.core.blacklist import LAST_BUILD, BlacklistEntry, BlacklistRange
from unplugd.core.protocol import ALL_DEVICES, DEVICES
from unplugd.core.registry import PUBLIC
from unplugd.errors import ConfigError

DEFAULT_FILE = Path("/etc/unplugd/unplugd.toml")
DEFAULT_DROP_INS = Path("/etc/unplugd/conf.d")

SINKS = ("journal", "file", "stderr")
_LAST_DOMID = 0x7FEF
_SOCKET_PATH_LIMIT = 107 - len("/dom32751.sock")


@dataclass(frozen=True, slots=True)
class EmbeddedDomain:
    """A domain of the embedded store."""

    domid: int
    name: str = ""
    uuid: str = ""


@dataclass(frozen=True, slots=True)
class XenstoreConfig:
    """`[xenstore]`"""

    backend: str = "auto"
    socket: str = ""
    domains: tuple[EmbeddedDomain, ...] = ()


@dataclass(frozen=True, slots=True)
class BlacklistConfig:
    """`[blacklist]`"""

    lookup_timeout: float = 1.0
    on_error: str = "mirror"
    entries: tuple[BlacklistEntry, ...] = ()
    ranges: tuple[BlacklistRange, ...] = ()


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """`[policy]`; `allow_unplug` as a mask of unplug bits."""

    allow_unplug: int = ALL_DEVICES
    blacklisted_unplug: str = "allow"
    legacy_unplug: bool = False


@dataclass(frozen=True, slots=True)
class SocketConfig:
    """`[socket]`; `device_model_uids` is None for "auto"."""

    device_model_uids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class LogConfig:
    """`[log]`"""

    sinks: tuple[str, ...] = ("journal",)
    directory: Path = Path("/var/log/xen/unplugd")
    rate: float = 256
    burst: float = 131072
    on_limit: str = "drop"
    flush_after: float = 5.0
    max_file_bytes: int = 1048576


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """`[http]`; `listen` is (host, port), or None for off."""

    listen: tuple[str, int] | None = ("127.0.0.1", 9877)


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration, checked."""

    runtime_dir: Path = Path("/run/unplugd")
    publish: bool = True
    protocol_version: int = 1
    xenstore: XenstoreConfig = field(default_factory=XenstoreConfig)
    blacklist: BlacklistConfig = field(default_factory=BlacklistConfig)
    products: Mapping[str, int] = field(default_factory=dict)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    socket: SocketConfig = field(default_factory=SocketConfig)
    log: LogConfig = field(default_factory=LogConfig)
    http: HttpConfig = field(default_factory=HttpConfig)
    attach: AttachConfig = field(default_factory=AttachConfig)
    """For unplugd-attach, which reads the same files; unplugd only checks it."""


class _Wrong(Exception):
    """What is allowed, in words, where a value isn't."""


Check = Callable[[Any], Any]


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Wrong("true or false")
    return value


def _integer(least: int, most: int) -> Check:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise _Wrong(f"a whole number from {least} to {most}")
        return value

    return check


def _number(least: float, most: float, unit: str) -> Check:
    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise _Wrong(f"a number from {least:g} to {most:g} ({unit})")
        return float(value)

    return check


def _text(value: Any) -> str:
    if not isinstance(value, str) or any(ord(character) < 0x20 or ord(character) == 0x7F for character in value):
        raise _Wrong("a string without control characters")
    return value


def _one_of(*words: str) -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in words:
            raise _Wrong("one of " + ", ".join(f'"{word}"' for word in words))
        return value

    return check


def _some_of(*words: str) -> Check:
    def check(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(word, str) and word in words for word in value):
            raise _Wrong("a list of " + ", ".join(f'"{word}"' for word in words))
        return tuple(dict.fromkeys(value))

    return check


def _directory(value: Any) -> Path:
    text = _text(value)
    if not text.startswith("/"):
        raise _Wrong("an absolute path")
    return Path(text)


def _runtime_directory(value: Any) -> Path:
    path = _directory(value)
    if len(str(path).encode()) > _SOCKET_PATH_LIMIT:
        raise _Wrong(f"an absolute path of at most {_SOCKET_PATH_LIMIT} bytes, for socket paths have 107")
    return path


def _socket_path(value: Any) -> str:
    text = _text(value)
    if text and not text.startswith("/"):
        raise _Wrong("an absolute path, or empty for the default")
    return text


def _user(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable() or set(value) & {"/", ":", " "}:
        raise _Wrong("the name of a user, or empty for the default")
    return value


def _uids(value: Any) -> tuple[int, ...] | None:
    if value == "auto":
        return None
    uid = _integer(0, 0xFFFFFFFE)
    try:
        if isinstance(value, list) and value:
            return tuple(uid(item) for item in value)
    except _Wrong:
        pass
    raise _Wrong('"auto", or a list of uids')


def _listen(value: Any) -> tuple[str, int] | None:
    text = _text(value)
    if not text:
        return None
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host if ":" not in host else ""
    if not (colon and host and port.isascii() and port.isdigit() and int(port) <= 0xFFFF):
        raise _Wrong('"address:port" (an IPv6 address in brackets), or empty for off')
    return host, int(port)


def _devices(value: Any) -> int:
    mask = 0
    for name in _some_of(*DEVICES)(value):
        mask |= DEVICES[name]
    return mask


_KEYS: Mapping[str, Check] = {
    "runtime_dir": _runtime_directory,
    "publish": _boolean,
    "protocol_version": _integer(0, 1),
    "xenstore.backend": _one_of("auto", "socket", "xenbus", "embedded"),
    "xenstore.socket": _socket_path,
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
    "log.max_file_bytes": _integer(4096, 1 << 50),
    "http.listen": _listen,
    "attach.when_unreachable": _one_of(*UNREACHABLE),
    "attach.unreachable_after": _number(0.1, 86400, "seconds"),
    "attach.user": _user,
    "attach.monitor": _socket_path,
}

_TABLE_LISTS: Mapping[str, tuple[Mapping[str, Check], tuple[str, ...]]] = {
    "xenstore.domain": ({"domid": _integer(1, _LAST_DOMID), "name": _text, "uuid": _text}, ("domid",)),
    "blacklist.entry": (
        {"product": _text, "build": _integer(0, LAST_BUILD), "reason": _text},
        ("product", "build"),
    ),
    "blacklist.range": (
        {"product": _text, "from": _integer(0, LAST_BUILD), "to": _integer(0, LAST_BUILD), "reason": _text},
        ("product",),
    ),
}

_SECTIONS = ("xenstore", "blacklist", "products", "policy", "socket", "log", "http", "attach")


class _Reader:
    """Collects checked values file by file."""

    def __init__(self) -> None:
        self.values: dict[str, tuple[str, Any]] = {}
        self.tables: dict[str, list[tuple[str, str, dict[str, Any]]]] = {name: [] for name in _TABLE_LISTS}
        self.products: dict[str, tuple[str, int]] = {}

    def file(self, path: Path) -> None:
        """Read one file; raises ConfigError."""
        where = str(path)
        try:
            with path.open("rb") as stream:
                document = tomllib.load(stream)
        except OSError as error:
            raise ConfigError(where, "", f"cannot be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(where, "", f"is not TOML: {error}") from error
        for name, value in document.items():
            if name == "products":
                self._products(where, value)
            elif name in _SECTIONS:
                self._section(where, name, value)
            else:
                self._value(where, name, value)

    def _section(self, where: str, section: str, table: Any) -> None:
        if not isinstance(table, dict):
            raise ConfigError(where, section, f"is a table, [{section}]")
        for name, value in table.items():
            key = f"{section}.{name}"
            if key in _TABLE_LISTS:
                self._table_list(where, key, value)
            else:
                self._value(where, key, value)

    def _value(self, where: str, key: str, value: Any) -> None:
        check = _KEYS.get(key)
        if check is None:
            raise ConfigError(where, key, "is not a key of unplugd; " + _known(key))
        self.values[key] = (where, _checked(where, key, check, value))

    def _table_list(self, where: str, key: str, value: Any) -> None:
        checks, needed = _TABLE_LISTS[key]
        if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
            raise ConfigError(where, key, f"is a list of tables, [[{key}]]")
        for number, table in enumerate(value, 1):
            place = f"{key} #{number}"
            checked = {}
            for name, item in table.items():
                if name not in checks:
                    raise ConfigError(where, f"{place}.{name}", "is not a key of it; it has " + ", ".join(checks))
                checked[name] = _checked(where, f"{place}.{name}", checks[name], item)
            for name in needed:
                if name not in checked:
                    raise ConfigError(where, f"{place}.{name}", "is missing")
            self.tables[key].append((where, place, checked))

    def _products(self, where: str, table: Any) -> None:
        if not isinstance(table, dict):
            raise ConfigError(where, "products", "is a table of names and numbers, [products]")
        for name, number in table.items():
            key = f'products."{name}"'
            if not name or len(name) > 255 or not name.isascii() or not name.isprintable() or set(name) & {"/", " "}:
                raise ConfigError(where, key, "a product name is printable ASCII without spaces and slashes")
            if name in PUBLIC:
                raise ConfigError(where, key, f"is {PUBLIC[name]} in Xen's registry and cannot be another number")
            self.products[name] = (where, _checked(where, key, _integer(1, 0xFFFF), number))

    def finish(self) -> Config:
        """Everything that needs more than one value; raises ConfigError."""
        products = self._finish_products()
        known = {**PUBLIC, **products}
        for key in ("blacklist.entry", "blacklist.range"):
            for where, place, table in self.tables[key]:
                if table["product"] not in known:
                    raise ConfigError(where, f"{place}.product",
                                      f'"{table["product"]}" is not a product; there are ' + ", ".join(known))
        log = LogConfig(**self._values("log"))
        if log.on_limit == "delay" and log.rate < 1:
            where = self.values["log.rate"][0]
            raise ConfigError(where, "log.rate", 'is at least 1 with log.on_limit = "delay", or guests would hang')
        return Config(
            **self._values(""),
            xenstore=XenstoreConfig(**self._values("xenstore"), domains=self._domains()),
            blacklist=BlacklistConfig(**self._values("blacklist"), entries=self._entries(), ranges=self._ranges()),
            products=products,
            policy=PolicyConfig(**self._values("policy")),
            socket=SocketConfig(**self._values("socket")),
            log=log,
            http=HttpConfig(**self._values("http")),
            attach=AttachConfig(**self._values("attach")),
        )

    def _values(self, section: str) -> dict[str, Any]:
        return {
            key.rpartition(".")[2]: value
            for key, (_, value) in self.values.items()
            if key.rpartition(".")[0] == section
        }

    def _finish_products(self) -> dict[str, int]:
        taken = {number: name for name, number in PUBLIC.items()}
        for name, (where, number) in self.products.items():
            if number in taken:
                raise ConfigError(where, f'products."{name}"', f"{number:#x} is {taken[number]} already")
            taken[number] = name
        return {name: number for name, (_, number) in self.products.items()}

    def _domains(self) -> tuple[EmbeddedDomain, ...]:
        domains: dict[int, EmbeddedDomain] = {}
        for where, place, table in self.tables["xenstore.domain"]:
            if table["domid"] in domains:
                raise ConfigError(where, f"{place}.domid", f"{table['domid']} stands here twice")
            domains[table["domid"]] = EmbeddedDomain(**table)
        return tuple(domains.values())

    def _entries(self) -> tuple[BlacklistEntry, ...]:
        return tuple(BlacklistEntry(**table) for _, _, table in self.tables["blacklist.entry"])

    def _ranges(self) -> tuple[BlacklistRange, ...]:
        ranges = []
        for where, place, table in self.tables["blacklist.range"]:
            one = BlacklistRange(table["product"], table.get("from", 0), table.get("to", LAST_BUILD),
                                 table.get("reason", ""))
            if one.first > one.last:
                raise ConfigError(where, f"{place}.from", f"{one.first} is after `to`, {one.last}")
            ranges.append(one)
        return tuple(ranges)


def _checked(where: str, key: str, check: Check, value: Any) -> Any:
    try:
        return check(value)
    except _Wrong as wrong:
        raise ConfigError(where, key, f"is {_shown(value)}, must be {wrong}") from None


def _shown(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _known(key: str) -> str:
    section = key.rpartition(".")[0]
    names = [name.rpartition(".")[2] for name in (*_KEYS, *_TABLE_LISTS) if name.rpartition(".")[0] == section]
    if section:
        return f"[{section}] has " + ", ".join(names)
    return "there are " + ", ".join(names) + " and the tables " + ", ".join(f"[{name}]" for name in _SECTIONS)


def load(path: Path | None = None) -> Config:
    """The configuration of `path` and `path.d/*.toml`; without a path, of /etc/unplugd and its conf.d.

    Raises ConfigError. /etc/unplugd/unplugd.toml need not be there: then the defaults hold.
    """
    reader = _Reader()
    for file in files(path):
        reader.file(file)
    return reader.finish()


def files(path: Path | None = None) -> list[Path]:
    """The files that load() reads, in order."""
    if path is None:
        main, drop_ins = DEFAULT_FILE, DEFAULT_DROP_INS
        first = [main] if main.exists() else []
    else:
        main, drop_ins = path, path.with_name(path.name + ".d")
        first = [main]
    try:
        rest = sorted(drop_ins.glob("*.toml"), key=lambda file: file.name)
    except OSError as error:
        raise ConfigError(str(drop_ins), "", f"cannot be read: {error.strerror}") from error
    return first + rest
