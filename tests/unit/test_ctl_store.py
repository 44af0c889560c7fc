"""ctl/store.py on the embedded store; the real ones: tests/integration/test_ctl.py."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from unplugd.config.load import XenstoreConfig
from unplugd.ctl import store
from unplugd.ctl.failure import XENSTORE, Failure
from unplugd.errors import StoreRefused
from unplugd.xenstore.store import Store

EMBEDDED = XenstoreConfig(backend="embedded")


def test_a_node_comes_is_read_and_goes() -> None:
    async def work(xenstore: Store) -> list[object]:
        path = "/mh/driver-blacklist/linux/9"
        seen: list[object] = [await store.read_blacklist(xenstore), await store.read_node(xenstore, path)]
        await store.add_node(xenstore, path, "warum? ä")
        await store.add_node(xenstore, "/mh/driver-blacklist/odd/x", "")
        seen += [await store.read_node(xenstore, path), await store.read_blacklist(xenstore)]
        seen += [await store.remove_node(xenstore, path), await store.remove_node(xenstore, path)]
        return [*seen, await store.read_blacklist(xenstore)]

    assert store.with_store(EMBEDDED, work) == [
        {}, None, "warum? ä", {("linux", "9"): "warum? ä", ("odd", "x"): ""}, True, False, {("odd", "x"): ""},
    ]  # fmt: skip


def test_a_refusal_is_a_failure_that_says_where_to_look() -> None:
    async def work(xenstore: Store) -> None:
        raise StoreRefused("/mh", "EACCES")

    with pytest.raises(Failure, match="EACCES") as failure:
        store.with_store(EMBEDDED, work)
    assert (failure.value.status, "systemctl" in failure.value.hint) == (XENSTORE, True)


def test_a_xenstored_that_takes_no_connection_does_not_hang_us(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def never(xenstore: Store) -> None:
        raise AssertionError

    class Silent:
        async def run(self, on_connected: object, on_lost: object) -> None:
            await asyncio.Event().wait()

        async def close(self) -> None:
            pass

    monkeypatch.setattr(store, "PATIENCE", 0.05)
    monkeypatch.setattr(store, "open_store", lambda config: Silent())
    with pytest.raises(Failure, match="has not answered") as failure:
        store.with_store(EMBEDDED, never)
    assert failure.value.status == XENSTORE
    monkeypatch.undo()
    with pytest.raises(Failure, match="xenstore:"):
        store.with_store(XenstoreConfig(backend="socket", socket=str(tmp_path / "none")), never)


@pytest.mark.parametrize(("reason", "uid", "hint"), [
    ("cannot connect: Permission denied", 0, store.NOT_ROOT),
    ("no xenstored at /x: No such file", 1000, store.NOT_ROOT),
    ("no xenstored at /x: No such file", 0, store.HINT),
])  # fmt: skip
def test_who_is_not_root_is_told_so(monkeypatch: pytest.MonkeyPatch, reason: str, uid: int, hint: str) -> None:
    class Closed:
        async def run(self, on_connected: object, on_lost: Callable[[str], None]) -> None:
            on_lost(reason)
            await asyncio.Event().wait()

        async def close(self) -> None:
            pass

    async def never(xenstore: Store) -> None:
        raise AssertionError

    monkeypatch.setattr(store, "open_store", lambda config: Closed())
    monkeypatch.setattr("os.geteuid", lambda: uid)
    with pytest.raises(Failure, match="xenstore: ") as failure:
        store.with_store(EMBEDDED, never)
    assert failure.value.hint == hint
