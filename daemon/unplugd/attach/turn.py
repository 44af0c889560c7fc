"""The compiled part of a domain's process, unplugd.attach._turn, where it was built (see _turn.c).

It changes speed alone. UNPLUGD_PURE=1 in the environment does without, as for unplugd itself.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unplugd.attach._turn import Turn
else:
    try:
        from unplugd.attach._turn import Turn
    except ImportError:
        Turn = None


def compiled(page: memoryview, events: int, ports: dict[int, int]) -> Turn | None:
    """The compiled part for a page of slots, or None where there is none."""
    return None if Turn is None or os.environ.get("UNPLUGD_PURE") else Turn(page, events, ports)
