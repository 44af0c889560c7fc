"""ctl/published.py on the embedded store, and what `list` and `show` make of it."""

from __future__ import annotations

import asyncio
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from unplugd.ctl import published, show
from unplugd.ctl.cli import main
from unplugd.ctl.control import START_HINT
from unplugd.ctl.failure import NOT_FOUND, NOT_RUNNING, Failure
from unplugd.xenstore.embedded import EmbeddedStore

UUID = "4f0e0c5e-0000-4000-8000-000000000007"
NODES = {
    "/local/domain/0/name": b"Domain-0",
    "/local/domain/8/unplug/product": b"1",
    "/local/domain/8/unplug/product-name": b"xensource-windows",
    "/local/domain/8/unplug/build": b"86451",
    "/local/domain/8/unplug/blacklisted": b"1",
    "/local/domain/8/unplug/unplugged": b"5",
    "/local/domain/8/unplug/verdict": b"ignored",
    "/local/domain/9/unplug/verdict": b"odd",
    "/mh/driver-blacklist/xensource-windows/86451": b"loses data on resume",
    "/local/domain/9/unplug/product": b"odd\xff",
    "/local/domain/12/name": b"left over",  # nobody introduced it
}


def known() -> list[dict[str, Any]]:
    async def main() -> list[dict[str, Any]]:
        store = EmbeddedStore(())
        running = asyncio.ensure_future(store.run(lambda: None, lambda reason: None))
        await asyncio.sleep(0)
        for domid, name in ((7, "web-01"), (8, "old-win\x1b[2J"), (9, "new")):
            store.introduce(domid, name, UUID)
        for path, value in NODES.items():
            await store.write(path, value)
        try:
            return await published.read(store)
        finally:
            running.cancel()

    return asyncio.run(main())


def test_what_xenstore_knows() -> None:
    quiet, refused, odd = known()
    assert quiet == {
        "domid": 7, "name": "web-01", "uuid": UUID, "product": None, "product_name": None, "build": None,
        "blacklisted": False, "blacklist_reason": "", "verdict": None, "rule": None, "guest_rule": None,
        "unplugged": [], "unplugged_mask": 0, "connections": None,
        "log": None, "history": None,
    }  # fmt: skip
    assert (refused["product"], refused["product_name"], refused["build"]) == (1, "xensource-windows", 86451)
    assert (refused["blacklisted"], refused["blacklist_reason"]) == (True, "loses data on resume")
    assert refused["unplugged"] == ["ide-disks", "aux-ide-disks"]
    assert refused["verdict"] == "ignored"
    assert odd["product"] is odd["verdict"] is None


def test_an_empty_xenstore_has_nobody() -> None:
    async def main() -> list[dict[str, Any]]:
        store = EmbeddedStore(())
        running = asyncio.ensure_future(store.run(lambda: None, lambda reason: None))
        await asyncio.sleep(0)
        try:
            return await published.read(store)
        finally:
            running.cancel()

    assert asyncio.run(main()) == []


@pytest.fixture
def down(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Arguments for a unplugd that does not run, whose xenstore knows the above."""
    found = known()
    monkeypatch.setattr(published, "with_store", lambda config, work: found)
    show.use_colour("never")
    file = tmp_path / "unplugd.toml"
    file.write_text(f'runtime_dir = "{tmp_path}"\n')
    return ["--config", str(file)]


def test_list_shows_it_and_says_so(down: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", *down]) == 3
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "Name            ID  Driver             Build  Verdict  Unplugged                Log",
        "web-01           7  -                      -  -        -                        ?",
        "old-win\\x1b[2J   8  xensource-windows  86451  IGNORED  ide-disks,aux-ide-disks  ?",
        "new              9  -                      -  -        -                        ?",
    ]
    assert "systemctl start unplugd" in said.err
    assert said.err.endswith("above is what it published in xenstore while it ran\n")
    assert main(["list", "-l", "8", *down]) == 3
    assert json.loads(capsys.readouterr().out)["domains"] == [known()[1]]


def test_show_explains_all_the_same(down: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "8", *down]) == 3
    text = capsys.readouterr().out
    assert "on this host's blacklist (loses data on resume)" in text
    assert "Log           unplugctl log 8" in text
    assert "0 lines" not in text
    assert main(["show", "7", *down]) == 3
    assert "No PV driver has announced itself" in capsys.readouterr().out
    assert main(["show", "99", *down]) == 4


@pytest.mark.parametrize("more", ["publish = false\n", '[xenstore]\nbackend = "embedded"\n', "odd = 1\n"])
def test_where_nothing_is_published_the_first_failure_stands(more: str, tmp_path: Path) -> None:
    file = tmp_path / "unplugd.toml"
    file.write_text(more)
    why = Failure(NOT_RUNNING, "nobody answers", START_HINT)
    with pytest.raises(Failure) as failure:
        published.domains(Namespace(config=str(file)), why)
    assert failure.value is why


@pytest.mark.parametrize(
    "why", [Failure(NOT_FOUND, "no such domain"), Failure(NOT_RUNNING, "permission denied", "use sudo")]
)
def test_only_for_a_unplugd_that_does_not_answer(why: Failure) -> None:
    with pytest.raises(Failure) as failure:
        published.domains(Namespace(config=None), why)
    assert failure.value is why
