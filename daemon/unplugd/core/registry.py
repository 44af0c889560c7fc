"""Which product number is which PV driver.

Source: xen/include/public/hvm/pvdrivers.h. Configuration may add to it (`[products]`); nothing else may.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

PUBLIC: Mapping[str, int] = {
    "xensource-windows": 1,
    "gplpv-windows": 2,
    "linux": 3,
    "xenserver-windows-v7.0+": 4,
    "xenserver-windows-v7.2+": 5,
    "experimental": 0xFFFF,
}
"""The registry of Xen's public headers: product name to product number."""

_NODE_NAME = re.compile(r"[A-Za-z0-9_@-]+")


class Registry:
    """Product numbers (1..0xffff) and names, both ways, the additions of the configuration included."""

    def __init__(self, additions: Mapping[str, int] | None = None) -> None:
        self.numbers: dict[str, int] = {**PUBLIC, **(additions or {})}
        self._names = {number: name for name, number in self.numbers.items()}

    def name(self, number: int | None) -> str | None:
        """The name of a product number, or None where nobody has registered it."""
        return None if number is None else self._names.get(number)

    def number(self, name: str) -> int | None:
        """The number of a product name, or None."""
        return self.numbers.get(name)


def fits_xenstore(name: str) -> bool:
    """Whether a product of this name can have a directory in xenstore.

    A path takes only letters, digits and `-/_@` (docs/misc/xenstore.txt), so `xenserver-windows-v7.0+` cannot:
    what is configured for such a product is decided by unplugd itself.
    """
    return _NODE_NAME.fullmatch(name) is not None
