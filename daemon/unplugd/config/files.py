"""The files of the configuration: their names, and the TOML in them. Every failure to read one is a ConfigError.

A file can be anything: a FIFO, a directory, a broken link, a file of another owner, a file of many gigabytes, bytes
that are not TOML, TOML with numbers that Python cannot hold, TOML that takes hours to parse. What the keys mean is in
load.py. `unplugctl` reads single keys with this module alone, so it imports little.
"""

from __future__ import annotations

import codecs
import errno
import os
import re
import signal
import stat
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from unplugd.errors import ConfigError

DEFAULT_FILE = "/etc/unplugd/unplugd.toml"
DEFAULT_DROP_INS = "/etc/unplugd/conf.d"

LARGEST = 2 << 20
"""Bytes of all files together: twice the size of ten thousand blacklist entries."""

_AT_LEAST, _A_BYTE = 0.4, 1.5 / (1 << 20)
"""Seconds of CPU time to parse and check all files: a constant part, and a part for each byte. Ten thousand entries
need about a fifth of their limit."""

_LONG_NUMBER = re.compile(r"\d[\d_]{4299}")
"""Python converts no text of more than 4300 decimal digits to a number, because the time grows with their square."""


def paths(main: str | None = None) -> list[str]:
    """The files to read, in order: `main` and `main`.d/*.toml, or those of /etc/unplugd. Raises ConfigError.

    /etc/unplugd/unplugd.toml need not be there, and no directory of drop-ins. A name that begins with a dot is not
    read: editors keep their locks and copies under such names.
    """
    drop_ins = DEFAULT_DROP_INS if main is None else f"{main}.d"
    first = [main] if main is not None else [DEFAULT_FILE] if os.path.lexists(DEFAULT_FILE) else []
    try:
        names = os.listdir(drop_ins)
    except OSError as error:
        if error.errno == errno.ENOENT and not os.path.lexists(drop_ins):
            return first
        raise ConfigError(drop_ins, "", f"cannot be listed: {error.strerror}; it is a directory that unplugd's user"
                                        " can read, or it is not there") from error
    return first + [os.path.join(drop_ins, name) for name in sorted(names)
                    if name.endswith(".toml") and not name.startswith(".")]


def read(files: Sequence[str]) -> list[tuple[str, str]]:
    """Each file with its text. Only regular files are read. Raises ConfigError."""
    texts: list[tuple[str, str]] = []
    room = LARGEST
    for file in files:
        data = _bytes(file, room)
        room -= len(data)
        try:
            texts.append((file, data.removeprefix(codecs.BOM_UTF8).decode("utf-8")))
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise ConfigError(file, "", f"is not TOML: byte {error.object[error.start]:#04x} (at line {line}) is not"
                                        " UTF-8; save the file as UTF-8") from error
    return texts


def _bytes(file: str, room: int) -> bytes:
    data = bytearray()
    try:
        # O_NONBLOCK: opening a FIFO would wait for its other end
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigError(file, "", "cannot be read: it is not a regular file; move it away")
            while len(data) <= room and (piece := os.read(descriptor, room + 1 - len(data))):
                data += piece
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigError(file, "", f"cannot be read: {error.strerror}{_remedy(error)}") from error
    if len(data) > room:
        raise ConfigError(file, "", f"is too large: all files of the configuration have at most {LARGEST} bytes")
    return bytes(data)


def _remedy(error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return "; it must belong to root or be readable for all, since unplugd runs without root's right to all files"
    return ""


class _TooSlow(Exception):
    """The limit of CPU time is reached."""


@contextmanager
def limited(texts: Sequence[tuple[str, str]]) -> Iterator[None]:
    """Limit the CPU time for parsing and checking these texts, each within refusing(). The limit depends on their size.

    For some TOML the time grows with the square of its size. CPU time is counted, so a busy host refuses no file. There
    is no limit outside of the main thread.
    """
    try:
        previous = signal.signal(signal.SIGVTALRM, _too_slow)
    except ValueError:
        yield
        return
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, _AT_LEAST + _A_BYTE * sum(len(text) for _, text in texts))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    finally:
        signal.signal(signal.SIGVTALRM, previous)


def _too_slow(_number: int, _frame: object) -> NoReturn:
    raise _TooSlow


@contextmanager
def refusing(file: str, text: str = "") -> Iterator[None]:
    """Raise every exception during the parsing and checking of `text` as a ConfigError that names `file`."""
    try:
        yield
    except ConfigError:
        raise
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(file, "", f"is not TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError(file, "", "is nested too deeply; no key of unplugd needs that") from error
    except _TooSlow as error:
        raise ConfigError(file, "", "takes too long to read; no key of unplugd needs such TOML") from error
    except Exception as error:  # an unexpected one must not end a running service
        number = _LONG_NUMBER.search(text)
        if isinstance(error, ValueError) and number:
            raise ConfigError(file, _key_at(text, number.start()), "is a number of more than 4300 digits") from error
        raise ConfigError(file, "", f"cannot be used: {type(error).__name__}: {error}") from error


def _key_at(text: str, place: int) -> str:
    """The key whose value is at this place, as far as the lines before say."""
    tables = re.findall(r"^[ \t]*\[+([^\[\]\n]+)\]", text[:place], re.MULTILINE)
    name, equals, _ = text[text.rfind("\n", 0, place) + 1 : place].partition("=")
    return ".".join(part.strip() for part in (*tables[-1:], name) if equals)


def document(file: str) -> dict[str, Any]:
    """What one file says, its keys unchecked. Raises ConfigError."""
    texts = read([file])
    with limited(texts), refusing(*texts[0]):
        return tomllib.loads(texts[0][1])
    raise AssertionError("refusing() raises")  # pragma: no cover # for mypy, which cannot know
