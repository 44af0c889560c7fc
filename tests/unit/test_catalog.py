"""systemd/unplugd.catalog: an explanation for every kind of record, as journalctl -x shows it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from unplugd.sinks.records import Event

CATALOG = Path(__file__).parents[2] / "systemd" / "unplugd.catalog"
ENTRIES = re.split(r"^-- ", CATALOG.read_text(), flags=re.MULTILINE)[1:]
FIELDS = {"XEN_DOMID", "XEN_DOMAIN_NAME", "XEN_DOMAIN_UUID", "UNPLUG_PRODUCT_NAME", "UNPLUG_BUILD"}


def test_every_event_has_one_entry() -> None:
    assert [entry.split("\n", 1)[0] for entry in ENTRIES] == [event.message_id for event in Event]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry[:8])
def test_entries_are_whole(entry: str) -> None:
    head, _, body = entry.partition("\n\n")
    assert re.search(r"^Subject: .{10,75}$", head, re.MULTILINE)
    assert "Defined-By: unplugd\n" in head
    assert re.search(r"^Support: man:unplug[a-z.-]+\([158]\)$", head, re.MULTILINE)
    assert max(map(len, body.splitlines())) <= 90
    assert set(re.findall(r"@([A-Z_]+)@", entry)) <= FIELDS


def test_journalctl_takes_it_in(tmp_path: Path) -> None:
    if shutil.which("journalctl") is None:
        pytest.skip("journalctl is not installed")
    catalogs = tmp_path / "usr" / "lib" / "systemd" / "catalog"
    catalogs.mkdir(parents=True)
    shutil.copy(CATALOG, catalogs)
    (tmp_path / "var" / "lib" / "systemd" / "catalog").mkdir(parents=True)
    update = ["journalctl", f"--root={tmp_path}", "--update-catalog"]
    done = subprocess.run(update, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    listed = subprocess.run(
        ["journalctl", f"--root={tmp_path}", "--list-catalog"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    for event in Event:
        assert event.message_id in listed
    assert len(listed.splitlines()) == len(Event)
