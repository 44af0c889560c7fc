"""Product numbers and names (contract section 2)."""

from __future__ import annotations

import pytest

from unplugd.core.registry import PUBLIC, Registry, fits_xenstore


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (1, "xensource-windows"), (2, "gplpv-windows"), (3, "linux"), (4, "xenserver-windows-v7.0+"),
        (5, "xenserver-windows-v7.2+"), (0xFFFF, "experimental"),
    ],
)  # fmt: skip
def test_xens_registry(number: int, name: str) -> None:
    assert Registry().name(number) == name
    assert Registry().number(name) == number


def test_what_is_not_registered_has_no_name() -> None:
    assert Registry().name(6) is None
    assert Registry().name(None) is None
    assert Registry().number("nobody") is None


def test_configuration_adds_to_it() -> None:
    registry = Registry({"my-drivers": 0x1234})
    assert registry.name(0x1234) == "my-drivers"
    assert registry.number("my-drivers") == 0x1234
    assert registry.number("linux") == 3
    assert "my-drivers" not in PUBLIC


@pytest.mark.parametrize("name", ["linux", "a-b_c@D9"])
def test_names_that_a_xenstore_path_takes(name: str) -> None:
    assert fits_xenstore(name)


@pytest.mark.parametrize("name", ["xenserver-windows-v7.0+", "a/b", "", "a b", "linux\n", "\u00e9", "a.b"])
def test_names_that_it_does_not_take(name: str) -> None:
    assert not fits_xenstore(name)
