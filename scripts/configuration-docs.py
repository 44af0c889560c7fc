#!/usr/bin/env python3
"""Writes the keys of docs/configuration.md; with --check, only says whether they are what the code says.

What is allowed is asked of config/load.py, by giving it what is wrong. Default and explanation are those of
config/unplugd.toml, which a test holds to the code. Only what a reload does is said here.
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

RESTART = "refused: it needs a restart"
BUILD = "from the next build number on"
ACCESS = "from the next access on"
ATTACH = "not applied: `systemctl restart unplugd-attach`"
RELOAD = {
    "runtime_dir": RESTART,
    "publish": "at once: switched on, what guests have announced so far is written too; switched off, what is there"
               " stays",
    "protocol_version": ACCESS,
    "xenstore.backend": RESTART,
    "xenstore.socket": RESTART,
    "xenstore.domain": "domains that are new are introduced, those that are missing are released; another `name` or"
                       " `uuid` of a domain that stays is not followed",
    "blacklist.lookup_timeout": BUILD,
    "blacklist.on_error": BUILD,
    "blacklist.entry": "new nodes are written, those that are missing are removed if unplugd wrote them; a verdict"
                       " stands until its guest's reset",
    "blacklist.range": BUILD,
    "products": "at once; a verdict stands until its guest's reset",
    "policy.allow_unplug": "from the next unplug mask on",
    "policy.blacklisted_unplug": "from the next unplug mask on",
    "policy.legacy_unplug": ACCESS,
    "socket.device_model_uids": "from the next connection on, and the sockets change their owner; connections stay",
    "log.sinks": "from the next record on",
    "log.directory": "from the next line on; old files stay where they are",
    "log.rate": "at once; what was earned stays",
    "log.burst": "at once; a balance over it is cut to it",
    "log.on_limit": ACCESS,
    "log.flush_after": "at once",
    "log.max_file_bytes": "from the next line on",
    "http.listen": "at once; an address that cannot be had refuses the reload",
    "attach.when_unreachable": ATTACH,
    "attach.unreachable_after": ATTACH,
    "attach.user": ATTACH,
    "attach.monitor": ATTACH,
}
"""What `systemctl reload` does with each key."""

TYPES = {"xenstore.domain": "list of tables", "blacklist.entry": "list of tables", "blacklist.range": "list of tables",
         "products": "table"}
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
        rows.append((f"`{key}`", words, "needed" if key in needed else "may be left out"))
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
    ("a list's table without a needed key", "[[blacklist.entry]]\nproduct = 'linux'\n"),
    ("a product without a number", "[[blacklist.range]]\nproduct = 'my-drivers'\n"),
    ("a number of Xen's registry", "[products]\n'my-drivers' = 3\n"),
    ("an end before its beginning", "[[blacklist.range]]\nproduct = 'linux'\nfrom = 9\nto = 1\n"),
    ("a guest that would wait for ever", "[log]\non_limit = 'delay'\nrate = 0\n"),
    ("not TOML", "log.rate 256\n"),
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
