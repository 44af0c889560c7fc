r"""What a guest wrote, made safe to look at: the two escapings of untrusted bytes (contract section 3).

A terminal that shows a raw log line obeys it: escape sequences move the cursor, retitle the window, hide the line
before. So no sink ever passes on what a guest wrote without one of these two. Both are total, never raise and need
no limit of their own: the output is at most four times as long as the input.

Text sinks get printable ASCII and nothing else. The backslash is doubled, so the bytes can be had back.

The journal gets UTF-8, because it is read by people whose guests speak other languages. What is escaped there, always
as `\xNN` of its UTF-8 bytes:

- control characters: C0, DEL and C1 (C1 holds an 8-bit CSI that some terminals obey);
- U+2028 and U+2029, which many programs take for the end of a line;
- the bidirectional embeddings, overrides and isolates (U+202A-202E, U+2066-2069): they make text read otherwise than
  it is, beyond the end of the guest's words. The marks U+200E, U+200F and U+061C do no such thing and stay;
- U+FEFF: invisible, and a byte order mark if it comes first in an exported file;
- noncharacters (U+FDD0-FDEF and the last two of each plane): systemd takes them for invalid, and journalctl would show
  "[blob data]" in place of the line;
- bytes that are not UTF-8.

The backslash is left alone in the journal: there a search for a Windows path must find it. That is why a tab is
`\x09` there and not `\t`, which would be hard to tell from the end of `C:\temp`.

Nothing here knows what a line or an entry is.
"""

from __future__ import annotations

_PRINTABLE = bytes(range(0x20, 0x7F))
_PLAIN_TEXT = _PRINTABLE.replace(b"\\", b"")

_TEXT = [chr(byte) if byte in _PLAIN_TEXT else f"\\x{byte:02x}" for byte in range(256)]
_TEXT[0x09] = "\\t"
_TEXT[0x0A] = "\\n"
_TEXT[0x0D] = "\\r"
_TEXT[0x5C] = "\\\\"


def _journal_table() -> dict[int, str]:
    hidden = [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, 0xFEFF]
    hidden += [*range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xFDD0, 0xFDF0)]
    hidden += [plane << 16 | last for plane in range(17) for last in (0xFFFE, 0xFFFF)]
    table = {code: "".join(f"\\x{byte:02x}" for byte in chr(code).encode()) for code in hidden}
    # What "surrogateescape" makes of a byte that is not UTF-8. Encoded surrogates are not UTF-8 for Python either,
    # so nothing else can come out of the decoder as one of these.
    table.update({0xDC00 + byte: f"\\x{byte:02x}" for byte in range(0x80, 0x100)})
    return table


_JOURNAL = _journal_table()


def escape_text(raw: bytes) -> str:
    r"""Return `raw` as printable ASCII: `\t`, `\n`, `\r`, `\\`, and `\xNN` for every other byte outside it.

    The result is never ambiguous: two different inputs never give the same text.
    """
    if not raw.translate(None, _PLAIN_TEXT):
        return raw.decode("ascii")
    return "".join(map(_TEXT.__getitem__, raw))


def escape_journal(raw: bytes) -> bytes:
    r"""Return `raw` as valid UTF-8 without control characters; what those were is `\xNN` (see above for the rest)."""
    if not raw.translate(None, _PRINTABLE):
        return raw
    return raw.decode("utf-8", "surrogateescape").translate(_JOURNAL).encode("utf-8")
