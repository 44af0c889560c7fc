"""What is known of driver families: versions and their build numbers above all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unplugd.core.families import (
    FAMILIES,
    GPLPV,
    LINUX,
    VMDP,
    XENBUS,
    XENSERVER_OLD,
    Family,
    Numbering,
    effect,
    family_of,
    in_words,
    parse_version,
    predicted,
    versions,
    xenbus_build,
)
from unplugd.core.protocol import Action


@pytest.mark.parametrize(
    ("version", "build"),
    [("9.1.0", 0x090100), ("9.2.350", 0x9035E), ("9.0.9137", 0x923B1), ("8.2.2", 0x080202), ("65535.0.0", 0xFFFF0000)],
)
def test_xenbus_does_not_mask_the_parts_of_its_version(version: str, build: int) -> None:
    assert parse_version(version) == build
    assert version in versions(build)


@pytest.mark.parametrize("text", ["", "9", "9.1", "9.1.0.5", "9.256.0", "65536.0.0", "9.1.65536", "9.1.x", "٩.1.0"])
def test_what_is_no_version(text: str) -> None:
    assert parse_version(text) is None


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 0xFFFF))
def test_a_version_is_among_those_of_its_number(major: int, minor: int, micro: int) -> None:
    build = xenbus_build(major, minor, micro)
    found = versions(build)
    assert f"{major}.{minor}.{micro}" in found
    assert len(set(found)) == len(found)
    assert {parse_version(one) for one in found} == {build}


@pytest.mark.parametrize(
    ("product", "build", "words"),
    [
        (0xFFFF, 0x090004, "9.0.4"),
        (0xFFFF, 0x090100, "9.1.0, 9.0.256 or 9.1.256"),
        (0xFFFF, 0x9035E, "9.3.94, 9.2.350, 9.3.350, 9.1.606 or 5 more versions"),
        (0xFFFF, 7, ""), (3, 1, ""), (1, 86451, ""), (205, 0x090100, ""), (0x1234, 0x090100, ""), (None, 0x090100, ""),
    ],
)  # fmt: skip
def test_a_build_number_in_words_pretends_nothing(product: int | None, build: int, words: str) -> None:
    assert in_words(product, build) == words


def test_families_by_product() -> None:
    assert [family_of(product) for product in (3, 0xFFFF, 2, 205)] == [LINUX, XENBUS, GPLPV, VMDP]
    assert family_of(None) is family_of(4) is None
    numbers = [product for family in FAMILIES for product in family.products]
    assert len(set(numbers)) == len(numbers)


def test_what_is_said_of_each_is_whole() -> None:
    for family in FAMILIES:
        assert (family.numbering is None) == (not family.products)
        for text in (family.refused, family.withheld):
            assert text.endswith(".")
    assert [family.name for family in FAMILIES if family.numbering is Numbering.XENBUS] == ["XENBUS"]


@pytest.mark.parametrize(
    ("family", "report", "refuse", "withhold"),
    [
        (LINUX, "reported", "refused", "refused"), (XENBUS, "reported", "ignored", "withheld"),
        (XENSERVER_OLD, "reported", "refused or ignored", "refused or withheld"),
        (None, "reported", "refused or ignored", "refused or withheld"),
    ],
)  # fmt: skip
def test_what_becomes_of_a_family(family: Family | None, report: str, refuse: str, withhold: str) -> None:
    actions = Action.REPORT, Action.REFUSE, Action.WITHHOLD
    assert [predicted(action, family) for action in actions] == [report, refuse, withhold]
    assert all(effect(action, family).endswith(".") for action in actions)


def test_the_effects_on_xenbus_differ() -> None:
    assert "unplugs all the same" in effect(Action.REFUSE, XENBUS)
    assert "falls back" in effect(Action.WITHHOLD, XENBUS)
    assert "not told" in effect(Action.REPORT, XENBUS)
    assert effect(Action.WITHHOLD, None) == effect(Action.REFUSE, None)
