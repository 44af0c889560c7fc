"""The configuration: what it says, and where a wrong value stands. Which keys there are is keys.py's.

`load()` reads `unplugd.toml` and the files of its drop-in directory in lexical order. Every value is checked in the
file that it stands in, so that an error names file, key and what is allowed. Later files replace single values; the
lists of tables (`blacklist.entry`, `blacklist.range`, `guest`, `xenstore.domain`) and `[products]` add up.

Source: contract section 5. Nothing here is applied: that is service.py's.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from unplugd import __version__
from unplugd.config.attach import AttachConfig
from unplugd.config.files import limited, paths, read, refusing
from unplugd.config.keys import KEYS, SECTIONS, TABLE_LISTS, Check, Wrong, integer
from unplugd.core.blacklist import LAST_BUILD, BlacklistEntry, BlacklistRange
from unplugd.core.guestrules import GuestRule
from unplugd.core.protocol import ALL_DEVICES, Action
from unplugd.core.registry import PUBLIC
from unplugd.errors import ConfigError

REPLACED: Mapping[str, Action] = {"allow": Action.REFUSE, "deny": Action.WITHHOLD}
"""What `policy.blacklisted_unplug` means in the words of `blacklist.action`."""



class EmbeddedDomain(NamedTuple):
    """A domain of the embedded store."""

    domid: int
    name: str = ""
    uuid: str = ""


class XenstoreConfig(NamedTuple):
    """`[xenstore]`"""

    backend: str = "auto"
    socket: str = ""
    domains: tuple[EmbeddedDomain, ...] = ()


class BlacklistConfig(NamedTuple):
    """`[blacklist]`; `action` is what counts, also where `policy.blacklisted_unplug` said it."""

    mode: str = "enforce"
    action: Action = Action.REFUSE
    lookup_timeout: float = 1.0
    on_error: str = "mirror"
    entries: tuple[BlacklistEntry, ...] = ()
    ranges: tuple[BlacklistRange, ...] = ()


class PolicyConfig(NamedTuple):
    """`[policy]`; `allow_unplug` as a mask of unplug bits. `blacklisted_unplug` is deprecated: see BlacklistConfig."""

    allow_unplug: int = ALL_DEVICES
    blacklisted_unplug: str = "allow"
    legacy_unplug: bool = False


class SocketConfig(NamedTuple):
    """`[socket]`; `device_model_uids` is None for "auto"."""

    device_model_uids: tuple[int, ...] | None = None


class LogConfig(NamedTuple):
    """`[log]`"""

    sinks: tuple[str, ...] = ("journal",)
    directory: Path = Path("/var/log/xen/unplugd")
    rate: float = 256
    burst: float = 131072
    on_limit: str = "drop"
    flush_after: float = 5.0
    identifier: str = "unplugd-guest"
    max_file_bytes: int = 1048576


class HttpConfig(NamedTuple):
    """`[http]`; `listen` is (host, port), or None for off."""

    listen: tuple[str, int] | None = ("127.0.0.1", 9877)


class Config(NamedTuple):
    """The whole configuration, checked."""

    runtime_dir: Path = Path("/run/unplugd")
    publish: bool = True
    protocol_version: int = 1
    xenstore: XenstoreConfig = XenstoreConfig()
    blacklist: BlacklistConfig = BlacklistConfig()
    products: Mapping[str, int] = MappingProxyType({})
    policy: PolicyConfig = PolicyConfig()
    guests: tuple[GuestRule, ...] = ()
    """`[[guest]]`"""
    socket: SocketConfig = SocketConfig()
    log: LogConfig = LogConfig()
    http: HttpConfig = HttpConfig()
    attach: AttachConfig = AttachConfig()
    """For unplugd-attach, which reads the same files; unplugd only checks it."""
    warnings: tuple[str, ...] = ()
    """What can be used, but should be said in another way: file, key and how."""


class _Reader:
    """Collects checked values file by file."""

    def __init__(self) -> None:
        self.values: dict[str, tuple[str, Any]] = {}
        self.tables: dict[str, list[tuple[str, str, dict[str, Any]]]] = {name: [] for name in TABLE_LISTS}
        self.products: dict[str, tuple[str, int]] = {}

    def document(self, where: str, document: Mapping[str, Any]) -> None:
        """Check what one file says; raises ConfigError."""
        for name, value in document.items():
            if name == "products":
                self._products(where, value)
            elif name in TABLE_LISTS:
                self._table_list(where, name, value)
            elif name in SECTIONS:
                self._section(where, name, value)
            else:
                self._value(where, name, value)

    def _section(self, where: str, section: str, table: Any) -> None:
        if not isinstance(table, dict):
            raise ConfigError(where, section, f"is a table, [{section}]")
        for name, value in table.items():
            key = f"{section}.{name}"
            if key in TABLE_LISTS:
                self._table_list(where, key, value)
            else:
                self._value(where, key, value)

    def _value(self, where: str, key: str, value: Any) -> None:
        check = KEYS.get(key)
        if check is None:
            raise ConfigError(where, key, "is not a key of unplugd; " + _known(key))
        self.values[key] = (where, _checked(where, key, check, value))

    def _table_list(self, where: str, key: str, value: Any) -> None:
        checks, needed = TABLE_LISTS[key]
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
            self.products[name] = (where, _checked(where, key, integer(1, 0xFFFF), number))

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
        blacklist = BlacklistConfig(**self._values("blacklist"), entries=self._entries(), ranges=self._ranges())
        policy = PolicyConfig(**self._values("policy"))
        if "blacklist.action" not in self.values:
            blacklist = blacklist._replace(action=REPLACED[policy.blacklisted_unplug])
        return Config(
            **self._values(""),
            xenstore=XenstoreConfig(**self._values("xenstore"), domains=self._domains()),
            blacklist=blacklist,
            products=products,
            policy=policy,
            guests=self._guests(log),
            socket=SocketConfig(**self._values("socket")),
            log=log,
            http=HttpConfig(**self._values("http")),
            attach=AttachConfig(**self._values("attach")),
            warnings=tuple(self._warnings()),
        )

    def _warnings(self) -> Iterator[str]:
        key = "policy.blacklisted_unplug"
        if key in self.values:
            where, value = self.values[key]
            if "blacklist.action" in self.values:
                yield f"{where}: {key}: does nothing beside blacklist.action; take it out"
            else:
                action = REPLACED[value].name.lower()
                yield f'{where}: {key}: is deprecated; write blacklist.action = "{action}" instead'

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

    def _guests(self, log: LogConfig) -> tuple[GuestRule, ...]:
        rules = []
        for where, place, table in self.tables["guest"]:
            rule = GuestRule(**table)
            rate = log.rate if rule.rate is None else rule.rate
            if (rule.on_limit or log.on_limit) == "delay" and rate < 1:
                key = "on_limit" if rule.rate is None else "rate"
                raise ConfigError(where, f"{place}.{key}",
                                  'a rate is at least 1 with on_limit = "delay", or guests would hang')
            rules.append(rule)
        return tuple(rules)

    def _entries(self) -> tuple[BlacklistEntry, ...]:
        return tuple(BlacklistEntry(**table) for _, _, table in self.tables["blacklist.entry"])

    def _ranges(self) -> tuple[BlacklistRange, ...]:
        ranges = []
        for where, place, table in self.tables["blacklist.range"]:
            one = BlacklistRange(table["product"], table.get("from", 0), table.get("to", LAST_BUILD),
                                 table.get("reason", ""), table.get("action"), table.get("guests"))
            if one.first > one.last:
                raise ConfigError(where, f"{place}.from", f"{one.first} is after `to`, {one.last}")
            ranges.append(one)
        return tuple(ranges)


def _checked(where: str, key: str, check: Check, value: Any) -> Any:
    try:
        return check(value)
    except Wrong as wrong:
        raise ConfigError(where, key, f"is {_shown(value)}, must be {wrong}") from None


def _shown(value: Any) -> str:
    try:
        text = str(value).lower() if isinstance(value, bool) else repr(value)
    except ValueError:      # Python writes no number of more than 4300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."


def _known(key: str) -> str:
    section = key.rpartition(".")[0]
    names = [name.rpartition(".")[2] for name in (*KEYS, *TABLE_LISTS) if name.rpartition(".")[0] == section]
    if section:
        return f"[{section}] has " + ", ".join(names)
    return "there are " + ", ".join(names) + " and the tables " + ", ".join(f"[{name}]" for name in SECTIONS)


def load(path: Path | None = None, candidate: Path | None = None) -> Config:
    """The configuration of `path` and `path.d/*.toml`; without a path, of /etc/unplugd and its conf.d.

    With a `candidate`, as if that file were among them: in the place of the one of the same name, else last.
    Raises ConfigError, and nothing else, whatever the files are. /etc/unplugd/unplugd.toml need not be there: then the
    defaults hold.
    """
    names = files(path)
    if candidate is not None:
        names = [candidate if file.name == candidate.name else file for file in names]
        if candidate not in names:
            names.append(candidate)
    return _load(names)


def _load(paths: Sequence[Path]) -> Config:
    texts = read([str(path) for path in paths])
    reader = _Reader()
    with limited(texts):
        for file, text in texts:
            with refusing(file, text):
                reader.document(file, tomllib.loads(text))
        with refusing(texts[-1][0] if texts else "the defaults"):
            return reader.finish()


def files(path: Path | None = None) -> list[Path]:
    """The files that load() reads, in order. Raises ConfigError where they cannot be listed."""
    return [Path(file) for file in paths(None if path is None else str(path))]


def answer() -> None:
    """The program of the process in which a running unplugd has its configuration read (reload.py)."""
    import pickle

    path = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    try:
        paths = files(path)
        found: tuple[object, ...] = __version__, _load(paths), [str(file) for file in paths]
    except ConfigError as error:
        found = __version__, error.file, error.key, error.problem
    pickle.dump(found, sys.stdout.buffer)
