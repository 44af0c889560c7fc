"""PRODUCT and BUILD on the command line: what may be given, and what is said where it can mean more than one thing."""

from __future__ import annotations

from unplugd.core.blacklist import LAST_BUILD
from unplugd.core.families import Numbering, family_of, parse_version, versions
from unplugd.core.registry import Registry
from unplugd.ctl import show
from unplugd.ctl.failure import USAGE, Failure


def parse_build(text: str, product: int | None = None) -> int:
    """A build number of this product: decimal, 0x..., or a version by XENBUS's formula (9.0.4). Raises Failure."""
    number = parse_version(text)
    if number is not None:
        family = family_of(product)
        if family is not None and family.numbering is not Numbering.XENBUS and family.numbering is not None:
            raise Failure(USAGE, f"{text} is no build number of {family.name}: its build number is "
                          f"{family.numbering.value}", "unplugctl list  shows what guests announce")
        return number
    try:
        hexadecimal = text[:2].lower() == "0x"
        number = int(text, 16 if hexadecimal else 10) if text.isascii() and text.isalnum() else -1
    except ValueError:
        number = -1
    if not 0 <= number <= LAST_BUILD:
        raise Failure(USAGE, f"{show.safe(text)} is no build number",
                      f"a number from 0 to {LAST_BUILD}, 0x..., or a version as 9.0.4, as XENBUS drivers announce it")
    return number


def parse_product(text: str, registry: Registry) -> str:
    """The name of a product that was given by name or number. Raises Failure."""
    if text in registry.numbers:
        return text
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    name = registry.name(number)
    if name is not None:
        return name
    if 0 < number <= 0xFFFF:
        family = family_of(number)
        whose = "" if family is None else f" (it is {family.name}'s: {family.title})"
        raise Failure(USAGE, f"product {number} has no name here{whose}, and xenstore's blacklist goes by names",
                      f'give it one in configuration:  [products]  "{_suggested(number)}" = {number}')
    raise Failure(USAGE, f"{show.safe(text)} is not a product that unplugd knows",
                  "products: " + ", ".join(f"{name} ({number})" for name, number in registry.numbers.items())
                  + "\nanother one gets a name in configuration: [products]")


def _suggested(number: int) -> str:
    family = family_of(number)
    return "my-drivers" if family is None else family.name.lower()


def computed(text: str, build: int) -> str:
    """What must be said of a build number that was given as a version; "" where it was given as a number."""
    if parse_version(text) is None:
        return ""
    others = [version for version in versions(build) if version != text]
    also = ", ".join(others[:4]) + (f" and {len(others) - 4} more" if len(others) > 4 else "")
    return (f"{text} is what XENBUS drivers announce as {build} ({build:#x})"
            + (f"; so they do {also}" if others else ""))
