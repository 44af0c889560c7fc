"""config/unplugd.toml: every key, each with its default, and examples that can be used as they are."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from unplugd.config import load as config

EXAMPLE = Path(__file__).parents[2] / "config" / "unplugd.toml"
TEXT = EXAMPLE.read_text()

DEFAULTS = re.sub(r"^#(?=[a-z_]+ = )", "", TEXT, flags=re.MULTILINE)
EXAMPLES = re.sub(r"^#: ", "", DEFAULTS, flags=re.MULTILINE)

# A list of tables is named by one of them in the file, by all of them in the daemon.
TABLES = {"domains": "domain", "entries": "entry", "ranges": "range", "guests": "guest"}


def load(tmp_path: Path, text: str) -> config.Config:
    file = tmp_path / "unplugd.toml"
    file.write_text(text)
    return config.load(file)


def test_as_it_is_it_changes_nothing(tmp_path: Path) -> None:
    assert load(tmp_path, TEXT) == config.Config()


def test_what_it_calls_defaults_are_the_defaults(tmp_path: Path) -> None:
    # the deprecated key has its default there, and a warning
    assert load(tmp_path, DEFAULTS)._replace(warnings=()) == config.Config()


def test_its_examples_can_be_used(tmp_path: Path) -> None:
    used = load(tmp_path, EXAMPLES)
    assert [domain.domid for domain in used.xenstore.domains] == [7]
    assert [(entry.product, entry.build) for entry in used.blacklist.entries] == [("xensource-windows", 86451)]
    assert [(r.product, r.first, r.last) for r in used.blacklist.ranges] == [("experimental", 0x080000, 0x0801FF)]
    assert [str(rule.match) for rule in used.guests] == ["vdi-*, 4f0e0c5e-0000-4000-8000-000000000007"]
    assert used.products == {"my-drivers": 0x1234}


def test_every_key_is_there() -> None:
    document = tomllib.loads(EXAMPLES)
    missing = []
    settings = config.Config()._asdict()
    del settings["warnings"]    # not a key
    for name, value in settings.items():
        section = TABLES.get(name, name)
        if section not in document:
            missing.append(section)
        elif hasattr(value, "_fields"):
            keys = (TABLES.get(key, key) for key in value._fields)
            missing += [f"{section}.{key}" for key in keys if key not in document[section]]
    assert missing == []


def test_every_key_is_explained() -> None:
    """Above each key, or the run of keys it stands in, is a comment in words."""
    lines = TEXT.splitlines()
    for number, line in enumerate(lines):
        if re.match(r"#[a-z_]+ = |#: \[\[|#: \"", line):
            above = number - 1
            while re.match(r"#[a-z_]+ = |#: ", lines[above]):
                above -= 1
            assert lines[above].startswith("# "), line
