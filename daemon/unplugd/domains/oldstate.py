"""The state files of version 0.1.0 ("unplugd1"), read once when unplugd is upgraded over it. Nothing writes them.

Two slots of 512 bytes: header, checksum. At 1024 a word: bytes of the partial line (12 bits), number of the header that
they follow (32 bits), and how many of them are recorded already. At 4096 and 8192 an area each for the partial line.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unplugd.core.guest import Snapshot
from unplugd.core.protocol import Action
from unplugd.host.ownfiles import open_file

_HEADER = struct.Struct("<8sQ16s64sqqqqqddqqqq128sqq")
_SIZE = 3 * 4096
_LINE_LIMIT = 4095


def snapshot(fields: Sequence[Any]) -> Snapshot:
    """The guest's part of a header, as Snapshot.

    Every field is bounded here: a header with a valid checksum was written by unplugd, but perhaps by another version.
    """
    product, build, blacklisted, unplugged, flags, balance, at, charged, lines, size, throttled, reason = fields
    if balance != balance:
        balance = 0.0
    action = Action.REFUSE if blacklisted else Action.NONE  # and what blacklist.action says, where that is stricter
    return Snapshot(
        None if product < 0 else product, None if build < 0 else build, action, False, False, bool(blacklisted),
        unplugged, flags, balance, at, charged, lines, size, bool(throttled), text(reason), "",
    )


def text(raw: bytes) -> str:
    """A text that was cut to its field."""
    return raw.rstrip(b"\0").decode("utf-8", "ignore")


def read(path: Path, boot: bytes) -> tuple[bytes, Snapshot, bytes] | None:
    """uuid, guest, and the log text that is not recorded yet; None where there is nothing of this boot of dom0."""
    try:
        descriptor = open_file(path, os.O_RDONLY)
        try:
            raw = os.pread(descriptor, _SIZE + 1, 0)
        finally:
            os.close(descriptor)
    except OSError:
        return None
    if len(raw) != _SIZE:
        return None
    found, newest = None, 0
    for at in (0, 512):
        header = raw[at:at + _HEADER.size]
        (checksum,) = struct.unpack_from("<I", raw, at + _HEADER.size)
        magic, sequence, its_boot, uuid, *fields, area, length = _HEADER.unpack(header)
        if (zlib.crc32(header) == checksum and magic == b"unplugd1" and its_boot == boot and sequence > newest
                and area in (0, 1) and 0 <= length < _LINE_LIMIT):
            found, newest = (uuid.rstrip(b"\0"), snapshot(fields), area, length), sequence
    if found is None:
        return None
    uuid, guest, area, length = found
    (word,) = struct.unpack_from("<Q", raw, 1024)
    rest, longer = divmod(word, 1 << 12)
    recorded, number = divmod(rest, 1 << 32)
    if number == newest & 0xFFFFFFFF and length <= longer < _LINE_LIMIT:
        length = longer
    else:
        recorded = 0
    at = 4096 * (1 + area)
    return uuid, guest, raw[at + min(recorded, length):at + length]
