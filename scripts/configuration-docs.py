#!/usr/bin/env python3
"""Writes the keys of docs/configuration.md; with --check, only says whether they are what the code says.

The allowed values come from the error messages of config/load.py for wrong values. Defaults and explanations come from
config/unplugd.toml, which a test compares with the code. Only the effect of a reload is written here.
"""

from __future__ import annotations

import re
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "daemon"))

import docspage

from unplugd.config.keys import KEYS, TABLE_LISTS, Wrong
from unplugd.config.load import load
from unplugd.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "config" / "unplugd.toml"

RESTART = "the reload is refused; it needs a restart"
BUILD = "from the next build number on"
ACCESS = "from the next access on"
ATTACH = "not applied: `systemctl restart unplugd-attach`"
RELOAD = {
    "runtime_dir": RESTART,
    "publish": "at once. When enabled, the nodes of all guests are written; when disabled, existing nodes stay",
    "protocol_version": ACCESS,
    "xenstore.backend": RESTART,
    "xenstore.socket": RESTART,
    "xenstore.domain": "new domains are introduced, missing ones are released; a changed `name` or `uuid` of a domain"
                       " that stays is ignored",
    "guest": "from the next build number, unplug mask or log line on; a blacklisted verdict stays until the guest's"
             " reset",
    "blacklist.mode": BUILD,
    "blacklist.action": "from the next build number on; for a driver that is already refused, from its next unplug mask"
                        " on",
    "blacklist.lookup_timeout": BUILD,
    "blacklist.on_error": BUILD,
    "blacklist.entry": "nodes of new entries are written; nodes of removed entries are removed if unplugd wrote them; a"
                       " blacklisted verdict stays until the guest's reset",
    "blacklist.range": BUILD,
    "products": "at once; a blacklisted verdict stays until the guest's reset",
    "policy.allow_unplug": "from the next unplug mask on",
    "policy.blacklisted_unplug": "from the next unplug mask on",
    "policy.legacy_unplug": ACCESS,
    "socket.device_model_uids": "from the next connection on; the owner of the sockets changes at once; existing"
                                " connections stay",
    "log.sinks": "from the next record on",
    "log.directory": "from the next line on; old files stay where they are",
    "log.rate": "at once; the balance stays",
    "log.burst": "at once; a balance above it is reduced to it",
    "log.on_limit": ACCESS,
    "log.flush_after": "at once",
    "log.identifier": "from the next line on",
    "log.max_file_bytes": "from the next line on",
    "http.listen": "at once; if the address cannot be used, the reload is refused",
    "attach.when_unreachable": ATTACH,
    "attach.unreachable_after": ATTACH,
    "attach.forward": ATTACH,
    "attach.user": ATTACH,
    "attach.monitor": ATTACH,
}
"""What `systemctl reload` does with each key."""

TYPES = {"xenstore.domain": "list of tables", "blacklist.entry": "list of tables", "blacklist.range": "list of tables",
         "guest": "list of tables", "products": "table"}
WRONG = (object(), "relative", "/" + "x" * 4000)
"""One of them is wrong for every key."""


@dataclass
class Block:
    """An explanation in the example file and what it explains."""

    section: str
    words: list[str] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)
    """Key to default."""
    example: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The keys, dotted; those of a list of tables by the name of the list."""
        found = [f"{self.section}.{key}".lstrip(".") for key in self.keys]
        found += [line[2:-2] for line in self.example if line.startswith("[[")]
        return found or [self.section]


def blocks(text: str) -> list[Block]:
    """The example file, explanation by explanation."""
    found: list[Block] = []
    section = ""
    fresh = True
    for line in text.splitlines():
        if match := re.fullmatch(r"\[([a-z]+)\]", line):
            section = match[1]
        elif match := re.fullmatch(r"#([a-z_]+) = (.*)", line):
            found[-1].keys[match[1]] = match[2]
        elif line.startswith("#: "):
            found[-1].example.append(line.removeprefix("#: "))
        elif line.startswith("# "):
            if fresh:
                found.append(Block(section))
            found[-1].words.append(line.removeprefix("# "))
        fresh = line == ""
    return [block for block in found if block.keys or block.example]


def allowed(key: str) -> str:
    """What config/load.py says that a key must be."""
    words = ""
    for value in WRONG:
        try:
            KEYS[key](value)
        except Wrong as wrong:
            words = str(wrong)
    assert words, key
    return words


def list_keys(name: str) -> str:
    """The keys of a list of tables."""
    checks, needed = TABLE_LISTS[name]
    rows = []
    for key, check in checks.items():
        words = ""
        try:
            check(object())
        except Wrong as wrong:
            words = str(wrong)
        rows.append((f"`{key}`", words, "required" if key in needed else "optional"))
    return docspage.table(("key of each", "allowed", ""), rows)


def keys() -> str:
    """All sections."""
    parts = []
    section: str | None = None
    missing = {*KEYS, *TABLE_LISTS, "products"}
    for block in blocks(EXAMPLE.read_text()):
        if block.section != section:
            section = block.section
            parts.append(f"## {section}\n" if section else "## Keys outside a table\n")
        parts.append("### " + ", ".join(f"`{name}`" for name in block.names) + "\n")
        missing -= set(block.names)
        rows = []
        for name in block.names:
            default = f"`{block.keys[name.rpartition('.')[2]]}`" if name in KEYS else "none"
            kind = allowed(name) if name in KEYS else TYPES[name]
            rows.append((f"`{name}`", default, kind, RELOAD[name]))
        parts.append(docspage.table(("key", "default", "allowed", "at a reload"), rows))
        parts.append(" ".join(block.words).replace("<", "\\<") + "\n")
        if block.example:
            table = block.names[0] if block.names[0] != "products" else ""
            if table:
                parts.append(list_keys(table))
            head = "" if table else "[products]\n"
            parts.append(f"```toml\n{head}" + "\n".join(block.example) + "\n```\n")
    assert not missing, missing
    return "\n".join(parts)


ERRORS = (
    ("a key that does not exist", "[log]\nsink = ['file']\n"),
    ("a table that does not exist", "[logs]\nrate = 1\n"),
    ("a value that is not allowed", "[log]\nrate = '1 MB'\n"),
    ("an entry without a required key", "[[blacklist.entry]]\nproduct = 'linux'\n"),
    ("a product without a number", "[[blacklist.range]]\nproduct = 'my-drivers'\n"),
    ("a number that Xen's registry already has", "[products]\n'my-drivers' = 3\n"),
    ("a range that ends before it begins", "[[blacklist.range]]\nproduct = 'linux'\nfrom = 9\nto = 1\n"),
    ("a limit that would make a guest wait for ever", "[log]\non_limit = 'delay'\nrate = 0\n"),
    ("not TOML", "log.rate 256\n"),
    ("a number of thousands of digits", f"[log]\nrate = {'9' * 5000}\n"),
)


def errors() -> str:
    """Messages, as load() gives them."""
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "unplugd.toml"
        for what, text in ERRORS:
            file.write_text(text)
            try:
                load(file)
            except ConfigError as error:
                message = str(error).replace(str(file), "/etc/unplugd/unplugd.toml")
                # what Python's parser says after it is its own business
                message = re.sub(r"(is not TOML: ).*", r"\1...", message)
            else:
                raise AssertionError(what)
            rows.append((what, f"`{message}`"))
    return docspage.table(("what is wrong", "message"), rows)


PARTS = {"keys": keys(), "errors": errors()}

if __name__ == "__main__":
    sys.exit(docspage.main("configuration.md", PARTS))
