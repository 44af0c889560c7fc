"""config/files.py: whatever a file is, and whatever is in it, reading it ends soon and in a ConfigError."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import pytest

from unplugd.config import files as module
from unplugd.config.files import LARGEST, document, limited, paths, read, refusing
from unplugd.config.load import load
from unplugd.errors import ConfigError


def refused(file: Path) -> ConfigError:
    """How load() refuses a file: named, in one printable line, within a second."""
    began = time.process_time()
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert time.process_time() - began < 1
    error = caught.value
    assert str(error).isprintable()
    assert len(str(error)) < 4000
    return error


DEEP = 3000
LONG: list[tuple[str, str, str, str]] = [
    ("decimal digits", f"[log]\nrate = {'9' * 4301}\n", "log.rate", "more than 4300 digits"),
    ("decimal digits, negative", f"[ log ]\n  burst = -{'9' * 5000}\n", "log.burst", "more than 4300 digits"),
    ("decimal digits in no table", f"protocol_version = {'1_' * 4301}1\n", "protocol_version", "4300 digits"),
    ("decimal digits in a list of tables", f"[[blacklist.entry]]\nproduct='linux'\nbuild = {'9' * 9999}\n",
     "blacklist.entry.build", "4300 digits"),
    ("hexadecimal digits", f"[log]\nrate = 0x{'f' * 4000}\n", "log.rate", "a number from"),
    ("octal digits", f"[log]\nmax_file_bytes = 0o{'7' * 9000}\n", "log.max_file_bytes", "a whole number"),
    ("binary digits", f"[[blacklist.range]]\nproduct='linux'\nfrom = 0b{'1' * 40000}\n", "blacklist.range #1.from",
     "a whole number"),
    ("digits in a list", f"[socket]\ndevice_model_uids = [0x{'f' * 4000}]\n", "socket.device_model_uids", "a list"),
    ("digits of a product", f"[products]\nmine = 0x{'f' * 4000}\n", 'products."mine"', "a whole number"),
    ("a port", f"[http]\nlisten = '127.0.0.1:{'9' * 4301}'\n", "http.listen", "address:port"),
    ("lists in lists", f"x = {'[' * DEEP}{']' * DEEP}\n", "", "nested too deeply"),
    ("lists without end", f"x = {'[' * DEEP}", "", "nested too deeply"),
    ("tables in tables", f"x = {'{a=' * DEEP}1{'}' * DEEP}\n", "", "nested too deeply"),
    ("a dotted key", ".".join("a" * 100_000) + " = 1\n", "", "too long to read"),
    ("a dotted table", f"[{'.'.join('a' * 100_000)}]\n", "", "too long to read"),
    ("a key", f"{'k' * 100_000} = 1\n", "k" * 1000 + "...", "is not a key"),
    ("a value", f"publish = '{'v' * 100_000}'\n", "publish", "true or false"),
    ("a key of control characters", '"\\u001b[2J\\u202e" = 1\n', r"\x1b[2J\u202e", "is not a key"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "key", "problem"), [case[1:] for case in LONG], ids=[case[0] for case in LONG])
def test_what_is_long_or_deep(tmp_path: Path, text: str, key: str, problem: str) -> None:
    file = tmp_path / "unplugd.toml"
    file.write_text(text)
    error = refused(file)
    assert (error.file, error.key) == (str(file), key)
    assert problem in error.problem


BYTES: list[tuple[str, bytes, str]] = [
    ("a NUL", b"publish = true\n\0", "is not TOML"),
    ("Latin-1", "publish = true\n# größe\n".encode("latin-1"), r"byte 0xf6 \(at line 2\) is not UTF-8"),
    ("UTF-16", "publish = true\n".encode("utf-16"), "is not UTF-8"),
    ("half a character", "# größe".encode()[:-2], "is not UTF-8"),
    ("an encoded surrogate", b"# \xed\xa0\x80\n", "is not UTF-8"),
    ("a carriage return alone", b"publish = true\rprotocol_version = 1\n", "is not TOML"),
    ("gzip", bytes.fromhex("1f8b0800000000000003"), "is not UTF-8"),
]


@pytest.mark.parametrize(("data", "problem"), [case[1:] for case in BYTES], ids=[case[0] for case in BYTES])
def test_what_is_no_text(tmp_path: Path, data: bytes, problem: str) -> None:
    file = tmp_path / "unplugd.toml"
    file.write_bytes(data)
    with pytest.raises(ConfigError, match=problem):
        load(file)


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    file = tmp_path / "unplugd.toml"
    file.write_bytes(b"\xef\xbb\xbfpublish = false\r\n[log]\r\nrate = 1\r\n")
    assert not load(file).publish
    assert document(str(file)) == {"publish": False, "log": {"rate": 1}}
    file.write_bytes(b"\xef\xbb\xbf\xef\xbb\xbfpublish = false\n")
    with pytest.raises(ConfigError, match="is not TOML"):
        load(file)


@pytest.mark.parametrize("kind", ["fifo", "socket", "directory", "device", "link to nothing", "link to itself", "gone"])
def test_only_regular_files_are_read(tmp_path: Path, kind: str) -> None:
    drop_ins = tmp_path / "u.toml.d"
    drop_ins.mkdir()
    (tmp_path / "u.toml").touch()
    odd = drop_ins / "60.toml"
    match kind:
        case "fifo":
            os.mkfifo(odd)
        case "socket":
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(str(odd))
        case "directory":
            odd.mkdir()
        case "device":
            odd.symlink_to("/dev/zero")
        case "link to nothing":
            odd.symlink_to("nothing")
        case "link to itself":
            odd.symlink_to("60.toml")
        case "gone":
            (tmp_path / "u.toml").unlink()
    error = refused(tmp_path / "u.toml")
    assert error.file == str(tmp_path / "u.toml" if kind == "gone" else odd)
    assert "cannot be read: " in error.problem


def test_a_link_to_a_regular_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("publish = false\n")
    (tmp_path / "u.toml").symlink_to("elsewhere")
    assert not load(tmp_path / "u.toml").publish


def test_names_that_begin_with_a_dot_are_not_read(tmp_path: Path) -> None:
    drop_ins = tmp_path / "u.toml.d"
    drop_ins.mkdir()
    (tmp_path / "u.toml").touch()
    (drop_ins / ".#50-unplugctl.toml").symlink_to("admin@dom0.12345:1700000000")
    (drop_ins / "._x.toml").write_bytes(b"\0\5\26\7")
    (drop_ins / ".toml").write_text("nonsense")
    (drop_ins / "10.toml").write_text("publish = false\n")
    assert paths(str(tmp_path / "u.toml")) == [str(tmp_path / "u.toml"), str(drop_ins / "10.toml")]
    assert not load(tmp_path / "u.toml").publish


@pytest.mark.parametrize("kind", ["file", "link to nothing", "link to itself"])
def test_drop_ins_that_cannot_be_listed(tmp_path: Path, kind: str) -> None:
    file, drop_ins = tmp_path / "u.toml", tmp_path / "u.toml.d"
    file.touch()
    assert paths(str(file)) == [str(file)]
    match kind:
        case "file":
            drop_ins.touch()
        case "link to nothing":
            drop_ins.symlink_to("nothing")
        case "link to itself":
            drop_ins.symlink_to("u.toml.d")
    assert refused(file).file == str(drop_ins)


def test_files_of_other_owners(tmp_path: Path) -> None:
    """Without root's right to all files, as the unit has it: a process of another uid."""
    if os.geteuid() != 0:
        pytest.skip("root alone can become another user")
    file, drop_ins = tmp_path / "u.toml", tmp_path / "u.toml.d"
    file.write_text("")
    drop_ins.mkdir()
    (drop_ins / "1.toml").write_text("publish = false\n")
    for part in (*tmp_path.parents, tmp_path)[:-3]:
        if part.owner() == "root" and part.stat().st_mode & 0o077 == 0:
            part.chmod(0o711)

    def fails_as_nobody() -> str:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            said = "a fault"
            try:
                os.setresuid(65534, 65534, 65534)
                load(file)
                said = ""
            except ConfigError as error:
                said = str(error)
            finally:
                os.write(writer, said.encode())
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as stream:
            said = stream.read()
        os.waitpid(pid, 0)
        return said

    tmp_path.chmod(0o755)
    assert fails_as_nobody() == ""
    drop_ins.chmod(0o700)
    assert "u.toml.d: cannot be listed: Permission denied" in fails_as_nobody()
    drop_ins.chmod(0o744)      # its names are seen, its files are not
    assert "1.toml: cannot be read: Permission denied; it must belong to root" in fails_as_nobody()
    drop_ins.chmod(0o755)
    (drop_ins / "1.toml").chmod(0o600)
    assert "1.toml: cannot be read: Permission denied" in fails_as_nobody()


def test_sizes_are_bounded_over_all_files(tmp_path: Path) -> None:
    file, drop_ins = tmp_path / "u.toml", tmp_path / "u.toml.d"
    with file.open("wb") as stream:
        stream.truncate(3 << 30)
    assert "is too large" in refused(file).problem
    file.write_text("#" * (LARGEST // 2) + "\n")
    drop_ins.mkdir()
    (drop_ins / "1.toml").write_text("#" * (LARGEST // 2 - 1))
    load(file)
    (drop_ins / "2.toml").write_text("\n")
    assert refused(file).file == str(drop_ins / "2.toml")


def test_ten_thousand_entries_are_no_matter(tmp_path: Path) -> None:
    file = tmp_path / "u.toml"
    file.write_text("".join(
        f'[[blacklist.entry]]\nproduct = "experimental"\nbuild = {build}\nreason = "loses data on resume, {build:06}"\n'
        for build in range(10_000)))
    assert len(load(file).blacklist.entries) == 10_000


def test_a_fault_of_a_check_is_a_configuration_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last net: what no parser and no check foresaw."""
    def broken(text: str) -> None:
        raise MemoryError(f"no room for {len(text)} characters")

    file = tmp_path / "u.toml"
    file.write_text("publish = true\n")
    monkeypatch.setattr("tomllib.loads", broken)
    assert refused(file).problem == "cannot be used: MemoryError: no room for 15 characters"


def test_in_a_thread_nothing_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AT_LEAST", 0.0)
    ended = []

    def work() -> None:
        with limited([("x", "")]), refusing("x"):
            sum(range(2_000_000))
        ended.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended


def test_the_limit_ends_with_the_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    before = signal.getsignal(signal.SIGVTALRM)
    file = tmp_path / "u.toml"
    file.write_text("publish = true\n")
    monkeypatch.setattr(module, "_AT_LEAST", 0.05)
    for _ in range(3):
        document(str(file))
    deadline = time.process_time() + 0.2
    while time.process_time() < deadline:
        pass
    assert signal.getsignal(signal.SIGVTALRM) == before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_read_names_the_file(tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\x1b.toml")
    with pytest.raises(ConfigError) as caught:
        read([name])
    assert str(caught.value) == f"{tmp_path}/\\udcff\\x1b.toml: cannot be read: No such file or directory"
