"""attach/connect.py: whose sockets are connected to, and as whom."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from unplugd.attach.connect import acting_as, connect

OURS, ANOTHERS = 60007, 60008
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


def test_messages_stay_messages(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        with pytest.raises(OSError, match="wrong type"):
            connect(path)
        with connect(path, socket.SOCK_SEQPACKET) as ours, listener.accept()[0] as theirs:
            assert not ours.getblocking()
            ours.send(b"one")
            ours.send(b"two")
            assert [theirs.recv(100), theirs.recv(100)] == [b"one", b"two"]


def test_connect_does_not_wait(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with pytest.raises(FileNotFoundError):
        connect(path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        with pytest.raises(ConnectionRefusedError):
            connect(path)
        listener.listen(0)
        with connect(path), pytest.raises(BlockingIOError):
            connect(path)


@AS_ROOT
def test_root_is_root_again_whatever_happens() -> None:
    with pytest.raises(KeyError), acting_as(60007):  # noqa: PT012  - what is seen inside is half of the test
        assert os.geteuid() == 60007
        raise KeyError
    assert os.geteuid() == 0


def listening(path: Path, owner: int = 0) -> socket.socket:
    """A socket that listens at `path` and belongs to `owner`."""
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(str(path))
    bound.listen()
    os.chown(path, owner, owner)
    path.chmod(0o600)
    return bound


@pytest.fixture
def directory() -> Iterator[Path]:
    """Root's own; its users may pass."""
    with TemporaryDirectory() as made:
        os.chmod(made, 0o711)
        yield Path(made)


@pytest.fixture
def theirs(directory: Path) -> Path:
    """A device model's directory in root's."""
    made = directory / "qemu"
    made.mkdir()
    os.chown(made, OURS, OURS)
    return made


def connected_as(path: Path, bound: socket.socket) -> int:
    with connect(str(path)), bound.accept()[0] as peer:
        return int.from_bytes(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[4:8], "little")


@AS_ROOT
@pytest.mark.parametrize("owner", [0, OURS, ANOTHERS])
def test_in_a_directory_of_roots_alone_any_user_may_have_a_socket(directory: Path, owner: int) -> None:
    with listening(directory / "s", owner) as bound:
        assert connected_as(directory / "s", bound) == owner


@AS_ROOT
@pytest.mark.parametrize(("owner", "reached"), [(0, False), (OURS, True), (ANOTHERS, False)])
def test_in_a_users_directory_only_that_user(theirs: Path, owner: int, reached: bool) -> None:
    with listening(theirs / "s", owner) as bound:
        if reached:
            assert connected_as(theirs / "s", bound) == OURS
        else:
            with pytest.raises(PermissionError, match=f"belongs to uid {owner}"):
                connect(str(theirs / "s"))


@AS_ROOT
@pytest.mark.parametrize("where", ["itself", "its directory"])
@pytest.mark.parametrize("target", [0, ANOTHERS])
def test_a_link_that_a_device_model_planted(directory: Path, theirs: Path, where: str, target: int) -> None:
    """To a socket that is another's alone: the confined process would get a connection to it."""
    private = directory / "private"
    private.mkdir()
    with listening(private / "s", target):
        if where == "itself":
            (theirs / "s").symlink_to(private / "s")
            path = theirs / "s"
        else:
            (theirs / "d").symlink_to(private)
            os.chown(theirs / "d", OURS, OURS, follow_symlinks=False)
            path = theirs / "d" / "s"
        with pytest.raises(PermissionError):
            connect(str(path))


@AS_ROOT
def test_a_second_name_of_anothers_socket(directory: Path, theirs: Path) -> None:
    with listening(theirs / "s", OURS):
        os.link(theirs / "s", theirs / "t")
        with pytest.raises(PermissionError, match="another name"):
            connect(str(theirs / "t"))


@AS_ROOT
@pytest.mark.parametrize("mode", [0o1777, 0o775])
def test_where_several_users_write_nothing_is_connected_to(directory: Path, mode: int) -> None:
    shared = directory / "shared"
    shared.mkdir()
    shared.chmod(mode)
    for owner in (0, OURS):
        with listening(shared / f"s{owner}", owner), pytest.raises(PermissionError, match="not only that user"):
            connect(str(shared / f"s{owner}"))


def test_what_is_no_socket(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    for name in ("file", "fifo", "file/s", "."):
        with pytest.raises(PermissionError):
            connect(str(tmp_path / name))
