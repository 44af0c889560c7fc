"""Every key of JSON that documentation names is printed, and every key that is printed is documented."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.documents import ROOT
from tests.integration.test_ctl import UNPLUGCTL, ask, ctl
from tests.lab.daemon import Daemon, Run, embedded, eventually, merged
from tests.lab.xenstored import KINDS, Xenstored, running
from unplugd.core.history import Did
from unplugd.ctl.journal import _entry

API = (ROOT / "docs" / "api.md").read_text()
PAGE = (ROOT / "docs" / "unplugctl.md").read_text()
OPAQUE = {"effective"}
"""What mirrors the configuration: docs/configuration.md has its keys, tests/unit/test_docs.py sees to that."""


def documented(page: str, after: str) -> set[str]:
    """The keys in the first table after a line that begins so."""
    text = page.partition(f"\n{after}")[2]
    table = re.search(r"^\|.*?\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert table, after
    return {key for row in table[1].splitlines() for key in re.findall(r"`([^`]+)`", row.split("|")[1])}


def keys(*documents: Any) -> set[str]:
    """The keys of some documents of one kind, as the tables write them."""
    found = {key for document in documents for key in _keys(document, "")}
    # a list that was empty, or an object that was null, in one of them
    return {key for key in found if not any(other.startswith((f"{key}.", f"{key}[]")) for other in found)}


def _keys(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict) and path not in OPAQUE:
        for key, item in value.items():
            yield from _keys(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for item in value:
            yield from _keys(item, f"{path}[]")
    else:
        yield path


def test_keys_as_tables_write_them() -> None:
    assert keys({"a": 1, "b": {"c": []}, "d": [{"e": None}], "f": []}, {"f": [{"g": 1}], "d": []}) == {
        "a", "b.c", "d[].e", "f[].g"}  # fmt: skip
    assert keys({"a": None}, {"a": {"b": 1}}) == {"a.b"}


@pytest.fixture
def daemon(run: Run) -> Daemon:
    settings = embedded(7, 8, blacklist={"entry": [{"product": "xensource-windows", "build": 86451, "reason": "x"}]})
    return run(merged(settings, {"log": {"sinks": ["file"]}}))


def test_a_domain_and_its_steps(daemon: Daemon) -> None:
    with daemon.connect(7) as guest:
        guest.read(0x10, 2)
        guest.read(0x12, 1)
        guest.write(0x10, 4, 5)     # no product yet
        guest.announce(3, 1)
        guest.write(0x10, 2, 3)
        guest.reset()
        guest.announce(1, 86451)
    daemon.kill()
    daemon.start()
    with daemon.connect(7) as guest:    # what it did before was another process's to remember
        guest.read(0x10, 2)
        restored = ask(daemon.file, "show", "7")
        guest.reset()
        guest.read(0x12, 1)
        guest.write(0x10, 4, 5)
        guest.announce(3, 1)
        guest.write(0x10, 2, 3)
    shown = ask(daemon.file, "show", "7")
    wanted = documented(API, "<!-- keys of a domain -->")
    assert keys(shown) == wanted
    listed = ask(daemon.file, "list")["domains"]
    assert keys(*listed) == {key for key in wanted if not key.startswith("history")}
    rows = API.partition("<!-- keys of a step -->")[2].partition("\n\n")[0].splitlines()[3:]
    table = [row.split("|")[1:3] for row in rows]
    told = {did.strip(" `"): set(re.findall(r"`(\w+)`", row)) for did, row in table}
    assert set(told) == {did.value for did in Did}
    seen = {step["did"]: set(step) - {"time", "last_time", "times", "did"}
            for step in restored["history"] + shown["history"]}  # fmt: skip
    assert seen == told


def test_the_status(daemon: Daemon) -> None:
    before = ask(daemon.file, "status")
    text = daemon.file.read_text()
    daemon.file.write_text(text + "\n[policy]\nodd = 1\n")
    daemon.reload(applied=False)
    after = eventually(lambda: ask(daemon.file, "status"), lambda found: found["configuration"]["refused"] is not None)
    daemon.file.write_text(text)
    assert keys(before, after) == documented(PAGE, "### `status`\n")
    assert keys(json.loads(daemon.get("/api/v1/status")[2])) == documented(API, "<!-- keys of the status -->")
    answers = [json.loads(daemon.get("/api/v1/configuration")[2])]
    daemon.file.write_text("odd = 1\n")
    answers.append(json.loads(daemon.get("/api/v1/configuration")[2]))
    daemon.file.write_text(text)
    assert [answer["valid"] for answer in answers] == [True, False]
    assert keys(*answers) == documented(API, "<!-- keys of the configuration -->")
    assert daemon.stop() == 0
    down = ask(daemon.file, "status", status=3)
    assert keys(down) == documented(PAGE, "Where unplugd does not run:\n")


def test_top_and_logs(daemon: Daemon) -> None:
    assert keys(ask(daemon.file, "top", "-i", "1", "-d", "0.05")) == documented(PAGE, "### `top`\n")
    line = {"__REALTIME_TIMESTAMP": "1795428616464000", "MESSAGE": "x"}
    assert keys(_entry(json.dumps(line).encode())) == documented(PAGE, "### `log` and `events`\n")
    with daemon.connect(7) as guest:
        guest.log(b"hello\n")
    entry = eventually(lambda: ctl(daemon.file, "log", "7", "-l"))
    assert keys(json.loads(entry)) == {"time", "event", "message"}


@pytest.fixture(scope="module")
def store() -> Iterator[Xenstored]:
    with running(KINDS[0]) as xenstored:
        yield xenstored


def test_the_blacklist(store: Xenstored, run: Run) -> None:
    daemon = run({"xenstore": {"backend": "socket", "socket": str(store.socket)}})
    added = ask(daemon.file, "blacklist", "add", "-p", "linux", "9")
    assert keys(added) == documented(PAGE, "### `blacklist add`\n")
    assert keys(ask(daemon.file, "blacklist", "list")) == documented(PAGE, "### `blacklist list`\n")
    found = ask(daemon.file, "blacklist", "check", "linux", "9", status=1)
    assert keys(found) == documented(PAGE, "### `blacklist check`\n")
    removed = ask(daemon.file, "blacklist", "remove", "-p", "linux", "9")
    assert keys(removed) == documented(PAGE, "### `blacklist remove`\n")


def test_the_impact(daemon: Daemon) -> None:
    with daemon.connect(7) as guest:
        guest.announce(1, 86451)
    assert keys(ask(daemon.file, "blacklist", "impact", status=1)) == documented(PAGE, "### `blacklist impact`\n")


def test_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "unplugd.toml"
    file.write_text("publish = false\n")
    assert keys(ask(file, "config", "check")) == documented(PAGE, "### `config check`\n")
    assert keys(ask(file, "config", "show")) == documented(PAGE, "### `config show`\n")
    file.write_text("publish = 1\n")
    assert keys(ask(file, "config", "check", status=2)) == documented(PAGE, "And where it is not valid:\n")


def test_every_command_with_json_has_its_table() -> None:
    assert Path(UNPLUGCTL).name == "unplugctl"
    headings = set(re.findall(r"^### (.*)$", PAGE, re.MULTILINE))
    named = {name for heading in headings for name in re.findall(r"`([a-z ]+)`", heading)}
    assert named == {
        "list", "show", "top", "log", "events", "status", "blacklist list", "blacklist check", "blacklist add",
        "blacklist impact", "blacklist remove", "config check", "config show",
    }  # fmt: skip
