import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from unplugd.core.escape import escape_journal, escape_text, utf8, visible

# What is drawn as nothing though its category is that of letters, marks or symbols.
BLANK = "".join(map(chr, [
    0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180C, 0x180D, 0x180F, 0x2800, 0x3164, *range(0xFE00, 0xFE10),
    0xFFA0, 0x16FE4, 0x1D159, *range(0xE0100, 0xE01F0),
]))  # fmt: skip

NAMED = {"t": b"\t", "n": b"\n", "r": b"\r", "\\": b"\\"}


def unescape_text(text: str) -> bytes:
    """The inverse that an administrator's script would use."""

    def byte(match: re.Match[str]) -> str:
        code = match[1]
        return chr(int(code[1:], 16)) if code[0] == "x" else NAMED[code].decode()

    return re.sub(r"\\(x[0-9a-f]{2}|[tnr\\])", byte, text).encode("latin-1")


@given(st.binary(max_size=300))
@example(bytes(range(256)))
@example(rb"C:\x41\t")
def test_text_is_printable_ascii_and_can_be_had_back(raw: bytes) -> None:
    text = escape_text(raw)
    assert text.isascii()
    assert not text or text.isprintable()
    assert unescape_text(text) == raw


@given(st.binary(max_size=20), st.binary(max_size=20))
def test_text_of_two_inputs_is_never_the_same(one: bytes, other: bytes) -> None:
    assert (escape_text(one) == escape_text(other)) == (one == other)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"", ""),
        (b"XENBUS|Initialize: ok", "XENBUS|Initialize: ok"),
        (b"a\tb\nc\rd", r"a\tb\nc\rd"),
        (b"C:\\temp", r"C:\\temp"),
        (b"\x1b[2J\x00\x7f", r"\x1b[2J\x00\x7f"),
        ("é".encode(), r"\xc3\xa9"),
        (b"\xff", r"\xff"),
    ],
)
def test_text_examples(raw: bytes, text: str) -> None:
    assert escape_text(raw) == text


@given(st.one_of(st.binary(max_size=300), st.text(max_size=100).map(str.encode)))
@example(bytes(range(256)))
@example(b"\xed\xa0\x80")  # a surrogate, encoded
@example(b"\xed\xb2\x80")  # the one that "surrogateescape" uses
@example(b"\xc0\x80")  # NUL, too long
@example(b"\xf4\x90\x80\x80")  # past the last character
def test_in_the_journal_all_is_visible(raw: bytes) -> None:
    text = escape_journal(raw).decode("utf-8")
    for character in text:
        assert unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
        assert character not in BLANK


def test_every_character_is_kept_or_escaped_whole() -> None:
    for code in range(0x110000):
        character = chr(code)
        hidden = unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"} or character in BLANK
        if 0xDC80 <= code <= 0xDCFF:
            assert visible(character) == f"\\x{code - 0xDC00:02x}"
        elif hidden:
            raw = character.encode("utf-8", "surrogatepass")
            assert visible(character) == "".join(f"\\x{byte:02x}" for byte in raw), hex(code)
        else:
            assert visible(character) == character, hex(code)


@given(st.text(st.characters(codec=None, exclude_categories=()), max_size=60))
def test_a_string_and_its_bytes_look_the_same(text: str) -> None:
    if not any("\ud800" <= character < "\udc80" or "\udcff" < character <= "\udfff" for character in text):
        assert visible(utf8(text).decode("utf-8", "surrogateescape")).encode() == escape_journal(utf8(text))
    visible(text).encode()
    utf8(text)


@given(st.text(st.characters(categories=["L", "M", "N", "P", "S", "Zs"], exclude_characters=BLANK), max_size=100))
def test_journal_keeps_what_people_write(text: str) -> None:
    assert escape_journal(text.encode()) == text.encode()


@given(st.binary(max_size=300))
def test_journal_escapes_once(raw: bytes) -> None:
    assert escape_journal(escape_journal(raw)) == escape_journal(raw)


@given(st.binary(max_size=300))
def test_neither_grows_more_than_four_times(raw: bytes) -> None:
    assert len(escape_text(raw)) <= 4 * len(raw)
    assert len(escape_journal(raw)) <= 4 * len(raw)


@pytest.mark.parametrize(
    ("raw", "journal"),
    [
        (b"", ""),
        (b"C:\\temp", r"C:\temp"),
        (b"a\tb\nc", r"a\x09b\x0ac"),
        (b"\x00\x1b[31m\x7f", r"\x00\x1b[31m\x7f"),
        ("Grüße \u85ad".encode(), "Grüße \u85ad"),
        ("\u0085\u009b".encode(), r"\xc2\x85\xc2\x9b"),
        ("\u2028\u2029\ufeff".encode(), r"\xe2\x80\xa8\xe2\x80\xa9\xef\xbb\xbf"),
        ("\u202eevil\u2069".encode(), r"\xe2\x80\xaeevil\xe2\x81\xa9"),
        ("\u200e\u200f\u061c".encode(), r"\xe2\x80\x8e\xe2\x80\x8f\xd8\x9c"),
        ("a\U000e0041b".encode(), r"a\xf3\xa0\x81\x81b"),  # a tag
        ("\u3164\u00ad".encode(), r"\xe3\x85\xa4\xc2\xad"),
        ("\ufe0f\u200d\ufff9".encode(), r"\xef\xb8\x8f\xe2\x80\x8d\xef\xbf\xb9"),
        ("\ue000\U000e0fff".encode(), r"\xee\x80\x80\xf3\xa0\xbf\xbf"),
        ("a\u00a0b\u3000c".encode(), "a\u00a0b\u3000c"),
        ("\ufdd0\uffff\U0010fffe".encode(), r"\xef\xb7\x90\xef\xbf\xbf\xf4\x8f\xbf\xbe"),
        (b"\xff\xc3", r"\xff\xc3"),
        (b"\xc3\x1b\xa9", r"\xc3\x1b\xa9"),
    ],
)
def test_journal_examples(raw: bytes, journal: str) -> None:
    assert escape_journal(raw).decode() == journal


@pytest.mark.parametrize(
    ("text", "raw"),
    [("", b""), ("a", b"a"), ("\N{EURO SIGN}", b"\xe2\x82\xac"), ("\udcff", b"\xff"), ("\ud800", b"\xed\xa0\x80")],
)
def test_any_string_has_bytes(text: str, raw: bytes) -> None:
    """Lone surrogates that a decoder makes are the bytes that were not UTF-8; JSON has others."""
    assert utf8(text) == raw
