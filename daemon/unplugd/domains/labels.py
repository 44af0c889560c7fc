"""A domain's driver as label values of a metric: bounded, whatever a guest does (contract section 4)."""

from __future__ import annotations

CHANGES = 8
"""How often a domain's labels change before they read `other`: each change is a new time series in Prometheus."""


class Labels:
    """`product` and `build` as a metric shows them. What counts as a change is another driver's build."""

    __slots__ = ("_changes", "_last", "build", "product")

    def __init__(self) -> None:
        self.product = ""
        self.build = ""
        self._last = ("", "")
        self._changes = 0

    def follow(self, product: int | None, build: int | None) -> None:
        """The guest's driver is now this one; None for what is not known (any more, after a reset)."""
        if self._changes > CHANGES:
            return
        if product is not None and build is not None:
            label = str(product), str(build)
            if label != self._last:
                self._last = label
                self._changes += 1
            self.product, self.build = label if self._changes <= CHANGES else ("other", "other")
        elif product is None:
            self.product = self.build = ""
        elif not self._changes and not self.product:
            self.product = str(product)
