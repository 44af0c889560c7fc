from __future__ import annotations

from pathlib import Path

import pytest

from unplugd.attach.serverids import ServerId, ServerIds


@pytest.fixture
def servers(tmp_path: Path) -> ServerIds:
    kept = ServerIds(tmp_path)
    kept.prepare()
    return kept


def test_an_id_is_kept_for_this_domain_only(servers: ServerIds) -> None:
    assert servers.load(7, "u") is None
    servers.save(ServerId(7, "u", 2))
    assert servers.load(7, "u") == 2
    assert servers.load(7, "another") is None
    assert servers.load(8, "u") is None
    assert servers.domids() == [7]
    assert servers.directory.stat().st_mode & 0o777 == 0o700
    servers.forget(7)
    servers.forget(7)
    assert servers.load(7, "u") is None
    assert servers.domids() == []


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"domid": 7}', '{"domid": 7, "uuid": "u", "server": 99}',
                                  '{"domid": 7, "uuid": "u", "server": "1"}', "\udcff"])
def test_nonsense_is_no_id(servers: ServerIds, text: str) -> None:
    (servers.directory / "dom7.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert servers.load(7, "u") is None


def test_other_files_are_no_domains(servers: ServerIds) -> None:
    for name in ("dom.json", "domx.json", "dom7.new", "empty"):
        (servers.directory / name).touch()
    assert servers.domids() == []
