"""Files of unplugd's own: nobody else's is ever used, and nothing blocks."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from unplugd.host import ownfiles

NOBODY = 65534
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


def _link(path: Path) -> None:
    target = path.with_name("target")
    target.write_bytes(b"another file")
    path.symlink_to(target)


def _sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 3 << 30)


STRANGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "link": (_link, "symbolic link: remove it"),
    "dangling link": (lambda path: path.symlink_to("nowhere"), "symbolic link: remove it"),
    "fifo": (os.mkfifo, "not a regular file: remove it"),
    "socket": (_socket, "not a regular file: remove it"),
    "sparse": (_sparse, "has 3221225472 bytes, more than the 100"),
    "directory": (Path.mkdir, "not a regular file|directory"),
    "device": (lambda path: os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5)), "not a regular file"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_what_is_no_file_of_ours_is_not_read(tmp_path: Path, kind: str) -> None:
    make, why = STRANGE[kind]
    path = tmp_path / "file"
    if kind == "device" and os.geteuid() != 0:
        pytest.skip("only root makes devices")
    make(path)
    with pytest.raises(OSError, match=why) as raised:
        ownfiles.read_file(path, 100)
    assert raised.value.filename == str(path)


@pytest.mark.parametrize("kind", [kind for kind in STRANGE if kind not in ("sparse", "directory")])
def test_nor_written_to_but_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    if kind == "device" and os.geteuid() != 0:
        pytest.skip("only root makes devices")
    STRANGE[kind][0](path)
    with pytest.raises(OSError, match="remove it"):
        os.close(ownfiles.open_file(path, os.O_RDWR | os.O_CREAT))
    os.close(ownfiles.create_file(path))
    assert ownfiles.read_file(path, 100) == b""
    STRANGE[kind][0](path.with_suffix(".new")) if kind != "link" else None
    ownfiles.replace_file(path, b"ours")
    assert ownfiles.read_file(path, 100) == b"ours"
    if kind == "link":
        assert (tmp_path / "target").read_bytes() == b"another file"


@AS_ROOT
def test_somebody_elses_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"planted")
    os.chown(path, NOBODY, -1)
    with pytest.raises(OSError, match="belongs to uid 65534, not to uid 0: remove it, or change its owner"):
        ownfiles.read_file(path, 100)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ownfiles.read_file(tmp_path / "file", 100)


def test_directories(tmp_path: Path) -> None:
    made = tmp_path / "a" / "b"
    assert ownfiles.make_directory(made, 0o700).st_mode & 0o777 == 0o700
    assert ownfiles.make_directory(made, 0o755).st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(made)
    with pytest.raises(OSError, match="symbolic link: remove it, or configure the directory that it leads to"):
        ownfiles.make_directory(tmp_path / "link", 0o700)
    assert ownfiles.make_directory(tmp_path / "link" / "below", 0o700)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="not a directory"):
        ownfiles.make_directory(tmp_path / "file", 0o700)
    with pytest.raises(OSError, match="not a directory") as raised:
        ownfiles.make_directory(tmp_path / "file" / "below", 0o700)
    assert raised.value.filename == str(tmp_path / "file" / "below")
    with pytest.raises(OSError, match="not a directory"):
        ownfiles.make_directory(tmp_path / "file" / "far" / "below", 0o700)


@AS_ROOT
def test_somebody_elses_directory(tmp_path: Path) -> None:
    os.chown(tmp_path, NOBODY, -1)
    with pytest.raises(OSError, match="belongs to uid 65534"):
        ownfiles.make_directory(tmp_path, 0o700)
