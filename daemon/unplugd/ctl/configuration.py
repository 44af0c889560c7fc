"""`unplugctl config`: check the configuration, show its files, and show the values in effect."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unplugd.config.files import read
from unplugd.config.load import Config, files, load
from unplugd.core.blacklist import BlacklistEntry, BlacklistRange
from unplugd.core.guestrules import GuestRule
from unplugd.core.protocol import DEVICES
from unplugd.ctl import show
from unplugd.ctl.control import Control
from unplugd.ctl.failure import OK, USAGE, Failure
from unplugd.errors import ConfigError

if TYPE_CHECKING:
    from argparse import Namespace


def _path(options: Namespace) -> Path | None:
    return Path(options.config) if options.config else None


def check(options: Namespace) -> int:
    """`unplugctl config check`."""
    path = _path(options)
    answer: dict[str, Any]
    try:
        config = load(path)
        found = [str(file) for file in files(path)]
        asked = _asked(options, config)
        answer = asked or {"valid": True, "files": found}
        if answer["valid"]:
            answer["warnings"] = list(config.warnings)
    except ConfigError as error:
        asked = None
        answer = {"valid": False, "file": error.file, "key": error.key, "problem": error.problem}
    if options.json:
        show.print_json(answer)
        return OK if answer["valid"] else USAGE
    if not answer["valid"]:
        said = ": ".join(filter(None, (answer["file"], answer["key"], answer["problem"])))
        raise Failure(USAGE, show.safe(said), "a running unplugd keeps what it read before; unplugd.toml(5) has every"
                                              " key")
    print("configuration is valid: " + (", ".join(map(show.safe, answer["files"])) or "no file, the defaults"))
    for warning in answer["warnings"]:
        print(show.paint(f"warning: {show.safe(warning)}", show.YELLOW))
    if asked is None:
        print("  checked with the rights of unplugctl: no unplugd that uses it answers")
    return OK


def _asked(options: Namespace, config: Config) -> dict[str, Any] | None:
    """The answer of a running unplugd about these files. It has fewer rights than root in a shell, so perhaps it cannot
    read them. None if no unplugd answers that uses these files."""
    control = Control(options.socket or str(config.runtime_dir / "control.sock"))
    try:
        said = control.json("/api/v1/configuration")
    except Failure:
        return None
    if said is None or said.pop("configured") != (os.path.abspath(options.config) if options.config else ""):
        return None
    return dict(said)


def show_configuration(options: Namespace) -> int:
    """`unplugctl config show`: the files, or with --effective the values in effect."""
    path = _path(options)
    try:
        if options.effective or options.json:
            config = load(path)
            if options.json:
                show.print_json({"files": [str(file) for file in files(path)], "effective": effective(config)})
            else:
                print(toml(effective(config)), end="")
            return OK
        for file, text in read([str(file) for file in files(path)]):
            print(show.paint(f"# {show.safe(file)}", show.BOLD))
            print("\n".join(show.safe(line) for line in text.splitlines()))
            print()
        if not files(path):
            print("# no file: the defaults hold;  unplugctl config show --effective")
    except ConfigError as error:
        raise Failure(USAGE, str(error), "unplugctl config check") from None
    return OK


def effective(config: Config) -> dict[str, Any]:
    """Every key with its value, as a document of the same form that the files have."""
    document: dict[str, Any] = {
        key: value._asdict() if hasattr(value, "_asdict") else value for key, value in config._asdict().items()
    }
    document["runtime_dir"] = str(config.runtime_dir)
    document["products"] = dict(config.products)
    xenstore, blacklist = document["xenstore"], document["blacklist"]
    xenstore["domain"] = [domain._asdict() for domain in xenstore.pop("domains")]
    blacklist["action"] = config.blacklist.action.name.lower()
    blacklist["entry"] = [{"product": one.product, "build": one.build, "reason": one.reason, **_meant(one)}
                          for one in blacklist.pop("entries")]
    blacklist["range"] = [{"product": one.product, "from": one.first, "to": one.last, "reason": one.reason,
                           **_meant(one)} for one in blacklist.pop("ranges")]
    document["guest"] = [_guest(rule) for rule in document.pop("guests")]
    del document["warnings"], document["policy"]["blacklisted_unplug"]      # blacklist.action has it
    document["policy"]["allow_unplug"] = _devices(config.policy.allow_unplug)
    uids = config.socket.device_model_uids
    document["socket"]["device_model_uids"] = "auto" if uids is None else list(uids)
    document["log"]["sinks"] = list(config.log.sinks)
    document["log"]["directory"] = str(config.log.directory)
    document["http"]["listen"] = _address(config.http.listen)
    return document


def _meant(one: BlacklistEntry | BlacklistRange) -> dict[str, Any]:
    """What an entry or range says beside builds and reason."""
    return {**({} if one.action is None else {"action": one.action.name.lower()}),
            **({} if one.guests is None else {"guests": list(one.guests.patterns)})}


def _guest(rule: GuestRule) -> dict[str, Any]:
    said = {key: value for key, value in rule._asdict().items() if value is not None}
    said["match"] = list(rule.match.patterns)
    if rule.allow_unplug is not None:
        said["allow_unplug"] = _devices(rule.allow_unplug)
    return said


def _devices(mask: int) -> list[str]:
    return [name for name, bit in DEVICES.items() if mask & bit]


def _address(listen: tuple[str, int] | None) -> str:
    if listen is None:
        return ""
    host, port = listen
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def toml(document: dict[str, Any]) -> str:
    """The document as TOML that unplugd reads as the same configuration."""
    guests: list[dict[str, Any]] = document["guest"]
    lines = [f"{key} = {_value(value)}" for key, value in document.items()
             if key != "guest" and not isinstance(value, dict)]
    for section, table in document.items():
        if not isinstance(table, dict):
            continue
        lists = {key: value for key, value in table.items()
                 if key in ("domain", "entry", "range") and section != "products"}
        lines += ["", f"[{section}]"]
        lines += [f"{_key(key)} = {_value(value)}" for key, value in table.items() if key not in lists]
        for key, tables in lists.items():
            for one in tables:
                lines += ["", f"[[{section}.{key}]]"]
                lines += [f"{name} = {_value(value)}" for name, value in one.items()]
    for one in guests:
        lines += ["", "[[guest]]", *(f"{name} = {_value(value)}" for name, value in one.items())]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return name if name.replace("_", "").isalnum() and name.isascii() else json.dumps(name, ensure_ascii=True)


def _value(value: Any) -> str:
    # JSON's numbers, strings, booleans and lists of them are TOML's (floats are finite here)
    return json.dumps(value, ensure_ascii=False)
