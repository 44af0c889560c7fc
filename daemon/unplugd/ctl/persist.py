"""The blacklist in configuration files: finds entries, and adds or removes one without other changes.

Files are edited as text, so comments and order stay. The result is parsed as TOML: it is written only if it equals the
old content plus or minus the entry. `unplugctl` writes to conf.d only; unplugd.toml belongs to the administrator.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from unplugd.config.files import DEFAULT_DROP_INS, document, read
from unplugd.config.load import files, load
from unplugd.core.protocol import ACTIONS, Action
from unplugd.ctl.failure import FAILED, USAGE, Failure
from unplugd.errors import ConfigError

FILE = "50-unplugctl.toml"
"""The file in conf.d that --persist adds to."""

_HEADER = """\
# Blacklist entries of `unplugctl blacklist add --persist`. It may be edited: comments and all other keys are kept.
"""
_BLOCK = re.compile(r"\s*\[\[\s*blacklist\s*\.\s*entry\s*\]\]")


class ConfiguredEntry(NamedTuple):
    """A `blacklist.entry` or `blacklist.range` and where it stands; of an entry, `first` is `last`."""

    file: Path
    product: str
    first: int
    last: int
    reason: str
    is_range: bool
    action: Action | None = None
    """None: `blacklist.action` counts."""
    guests: tuple[str, ...] | None = None
    """Patterns of the guests that it is for; None: all."""


def drop_ins(config: Path | None) -> Path:
    """The directory of drop-in files."""
    return Path(DEFAULT_DROP_INS) if config is None else config.with_name(config.name + ".d")


def configured(config: Path | None) -> list[ConfiguredEntry]:
    """All entries and ranges of the configuration, with their files. Raises Failure if it cannot be used."""
    try:
        load(config)
        documents = {path: document(str(path)) for path in files(config)}
    except ConfigError as error:
        raise Failure(USAGE, str(error), "unplugctl config check") from None
    found = []
    for path, said in documents.items():
        blacklist = said.get("blacklist", {})
        found += [ConfiguredEntry(path, one["product"], one["build"], one["build"], one.get("reason", ""), False,
                                  *_meant(one)) for one in blacklist.get("entry", [])]
        found += [ConfiguredEntry(path, one["product"], one.get("from", 0), one.get("to", 0xFFFFFFFF),
                                  one.get("reason", ""), True, *_meant(one)) for one in blacklist.get("range", [])]
    return found


def _meant(one: dict[str, Any]) -> tuple[Action | None, tuple[str, ...] | None]:
    """What an entry or range says beside builds and reason."""
    return ACTIONS[one["action"]] if "action" in one else None, tuple(one["guests"]) if "guests" in one else None


def add(config: Path | None, product: str, build: int, reason: str, action: str | None = None,
        guests: list[str] | None = None) -> Path | None:
    """Add an entry to our file; None where some file has the same already. Raises Failure."""
    directory = drop_ins(config)
    try:
        directory.mkdir(mode=0o755, exist_ok=True)
    except OSError as error:
        raise _cannot(directory, error) from None
    with _locked(directory):
        meant = ACTIONS[action] if action else None, tuple(guests) if guests else None
        if any(not one.is_range and (one.product, one.first, one.action, one.guests) == (product, build, *meant)
               for one in configured(config)):
            return None
        path = directory / FILE
        text = _text(path) if path.exists() else _HEADER
        entry: dict[str, Any] = {"product": product, "build": build}
        entry |= {key: value for key, value in (("reason", reason), ("action", action), ("guests", guests)) if value}
        block = "\n[[blacklist.entry]]\n" + "".join(f"{key} = {_quoted(value)}\n" for key, value in entry.items())
        new = text + ("" if not text or text.endswith("\n") else "\n") + block
        wanted = tomllib.loads(text)
        wanted.setdefault("blacklist", {}).setdefault("entry", []).append(entry)
        _replace(config, path, new, wanted)
    return path


def remove(config: Path | None, product: str, build: int) -> tuple[list[Path], list[Path]]:
    """Take an entry out of conf.d: the files that had it, and those outside conf.d that still have it."""
    directory = drop_ins(config)
    if not directory.is_dir():
        return [], _holders(config, product, build)
    removed = []
    with _locked(directory):
        for path in dict.fromkeys(_holders(config, product, build)):
            if path.parent != directory:
                continue
            text = _text(path)
            wanted = tomllib.loads(text)
            kept = [one for one in wanted["blacklist"]["entry"] if (one["product"], one["build"]) != (product, build)]
            wanted["blacklist"]["entry"] = kept
            _replace(config, path, _without(text, product, build), wanted)
            removed.append(path)
        return removed, _holders(config, product, build)


def _holders(config: Path | None, product: str, build: int) -> list[Path]:
    return [one.file for one in configured(config) if not one.is_range and (one.product, one.first) == (product, build)]


def _without(text: str, product: str, build: int) -> str:
    """The text without the tables of this entry. Comments stay where they are."""
    lines = text.splitlines(keepends=True)
    starts = [at for at, line in enumerate(lines) if _BLOCK.match(line)]
    for start in reversed(starts):
        end = next((at for at in range(start + 1, len(lines)) if lines[at].lstrip().startswith("[")), len(lines))
        try:
            (one,) = tomllib.loads("".join(lines[start:end]))["blacklist"]["entry"]
        except (ValueError, KeyError):
            continue
        if (one.get("product"), one.get("build")) == (product, build):
            kept = [line for line in lines[start:end] if line.lstrip().startswith("#")]
            if not kept and start and not lines[start - 1].strip():
                start -= 1      # the empty line that set it apart
            while end > start and not kept and not lines[end - 1].strip():
                end -= 1
            lines[start:end] = kept
    return "".join(lines)


def _quoted(value: str | int | list[str]) -> str:
    """A TOML value; JSON's strings, numbers and lists of strings are such."""
    return json.dumps(value, ensure_ascii=False)


def _text(path: Path) -> str:
    """A file that configured() has read; UTF-8, whatever the locale. Raises Failure."""
    try:
        return read([str(path)])[0][1]
    except ConfigError as error:
        raise Failure(USAGE, str(error), "unplugctl config check") from None


def _plain(document: dict[str, Any]) -> dict[str, Any]:
    """A document without empty lists of entries and an empty blacklist table."""
    blacklist = {key: value for key, value in document.get("blacklist", {}).items() if value != []}
    rest = {key: value for key, value in document.items() if key != "blacklist"}
    return rest | ({"blacklist": blacklist} if blacklist else {})


def _replace(config: Path | None, path: Path, text: str, wanted: dict[str, Any]) -> None:
    """Replace the file by `text`, atomically, if its content is `wanted`."""
    try:
        said = tomllib.loads(text)
    except ValueError:
        said = {}
    if _plain(said) != _plain(wanted):
        raise Failure(FAILED, f"{path}: the entry is written there in a way that unplugctl cannot edit",
                      "edit the file, then: systemctl reload unplugd")
    try:
        old = path.read_bytes() if path.exists() else None
        mode = path.stat().st_mode & 0o7777 if old is not None else 0o644
        _write(path, text.encode("utf-8"), mode)
        try:
            load(config)
        except ConfigError as error:
            # what unplugd would not load is not left there
            if old is None:
                path.unlink()
            else:
                _write(path, old, mode)
            raise Failure(FAILED, f"{error} (nothing was changed)", "unplugctl config check") from None
    except OSError as error:
        raise _cannot(path, error) from None


def _write(path: Path, content: bytes, mode: int) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            os.fchmod(stream.fileno(), mode)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Two unplugctl at a time: the second waits."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise _cannot(directory, error) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _cannot(path: Path, error: OSError) -> Failure:
    hint = "only root may change the configuration: use sudo" if isinstance(error, PermissionError) else ""
    return Failure(FAILED, f"{path}: {error.strerror}", hint)
