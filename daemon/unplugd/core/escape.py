r"""Untrusted text made safe to look at: guests' bytes and dom0's names (contract section 3).

A terminal obeys what it shows: escape sequences move the cursor, retitle the window, hide the line before. So nothing
that a guest or a toolstack chose is shown without one of these functions. They are total, never raise and need no
limit: the output is at most four times as long as the input's UTF-8.

Text sinks get printable ASCII and nothing else: escape_text(). The backslash is doubled, so the bytes can be recovered.

Everything else that people read gets UTF-8, because their guests speak other languages: escape_journal() for bytes,
visible() for strings. These are messages in the journal, /metrics, the HTML page and unplugctl. Every character
that is invisible or changes how others are shown is escaped, as `\xNN` of its UTF-8 bytes:

- the categories Cc (controls, C1 with its 8-bit CSI too), Cf (bidirectional controls, joiners, soft hyphen, byte order
  mark, tags), Zl and Zp (line ends for many programs), Cs, Co and Cn (no defined look; systemd takes noncharacters for
  invalid, and journalctl would show "[blob data]" in place of the line);
- variation selectors and fillers: letters, marks and symbols that are drawn as nothing (_BLANK);
- bytes that are not UTF-8.

Spaces (Zs) are visible as such and stay. The backslash stays too: a search for a Windows path must find it. That is why
a tab is `\x09` there and not `\t`, which would be hard to tell from the end of `C:\temp`.

Python says which category a character has: one that is newer than Python's Unicode tables counts as Cn.

Nothing here knows what a line, a name or an entry is.
"""

from __future__ import annotations

_PRINTABLE = bytes(range(0x20, 0x7F))
_PLAIN_TEXT = _PRINTABLE.replace(b"\\", b"")

_BYTES = [f"\\x{byte:02x}" for byte in range(256)]
_TEXT = [chr(byte) if byte in _PLAIN_TEXT else _BYTES[byte] for byte in range(256)]
_TEXT[0x09] = "\\t"
_TEXT[0x0A] = "\\n"
_TEXT[0x0D] = "\\r"
_TEXT[0x5C] = "\\\\"

_REMEMBERED = 4096
"""Characters whose looks are remembered: 0.5 MiB at most."""

_SPACES = frozenset("\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000")
"""Category Zs: str.isprintable() says no to these; ASCII's space it takes for printable."""

_BLANK = frozenset(map(chr, [
    0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, *range(0x180B, 0x180E), 0x180F, 0x2800, 0x3164, *range(0xFE00, 0xFE10),
    0xFFA0, 0x16FE4, 0x1D159, *range(0xE0100, 0xE01F0),
]))
"""Drawn as nothing, whatever their category says: Unicode's Default_Ignorable_Code_Point outside the categories above
(DerivedCoreProperties.txt), the blank Braille pattern, the Khitan filler and the null notehead."""


class _Shown(dict[int, int | str]):
    """What str.translate() makes of a character; remembers some, for there are a million that are not shown."""

    def __missing__(self, code: int) -> int | str:
        character = chr(code)
        shown: int | str = code
        if 0xDC80 <= code <= 0xDCFF:    # a byte that is not UTF-8, as "surrogateescape" decodes it
            shown = _BYTES[code - 0xDC00]
        elif character not in _SPACES and (not character.isprintable() or character in _BLANK):
            shown = "\\x" + character.encode("utf-8", "surrogatepass").hex("x").replace("x", "\\x")
        if len(self) < _REMEMBERED:
            self[code] = shown
        return shown


_SHOWN = _Shown()


def plain(raw: bytes) -> bool:
    """Whether `raw` stays as it is in every sink."""
    return not raw.translate(None, _PLAIN_TEXT)


def escape_text(raw: bytes) -> str:
    r"""Return `raw` as printable ASCII: `\t`, `\n`, `\r`, `\\`, and `\xNN` for every other byte outside it.

    The result is never ambiguous: two different inputs never give the same text.
    """
    if plain(raw):
        return raw.decode("ascii")
    return "".join(map(_TEXT.__getitem__, raw))


def escape_journal(raw: bytes) -> bytes:
    r"""Return `raw` as valid UTF-8 in which everything can be seen; what cannot, or is not UTF-8, is `\xNN`."""
    if not raw.translate(None, _PRINTABLE):
        return raw
    return visible(raw.decode("utf-8", "surrogateescape")).encode()


def visible(text: str) -> str:
    r"""The same for a string, in which lone surrogates stand for bytes that are not UTF-8 ("surrogateescape").

    Any other half of a surrogate pair, which JSON can hold, is escaped too: the result can always be encoded.
    """
    if text.isprintable() and (text.isascii() or _BLANK.isdisjoint(text)):
        return text
    return text.translate(_SHOWN)


def utf8(text: str) -> bytes:
    """The UTF-8 of a string, in which lone surrogates stand for bytes that are not UTF-8; total for any string."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # no decoder makes such a string, but JSON does
        return text.encode("utf-8", "surrogatepass")
