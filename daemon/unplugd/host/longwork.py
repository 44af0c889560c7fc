"""Work of unplugd's own that takes long on the event loop: guests are served between its pieces, and the loop turns.

And it comes to its end, however busy guests are: after it has let others in, it has a tenth of the time that they
took before it does so again. What a piece is, and that every domain is settled between two, is up to who does the work.
"""

from __future__ import annotations

import asyncio
import time

_SHARE = 0.1
"""Of the time that others took, what the work has for itself then."""


def serve_guests() -> bool:
    """Serve guests that wait. True if the loop must turn: it has something else to do, or cannot serve guests here."""
    serve = getattr(asyncio.get_running_loop(), "serve_guests", None)
    return serve is None or bool(serve())


class LongWork:
    """One such work. All methods belong to the event loop's thread."""

    __slots__ = ("_at_least", "_at_most", "_mine_until", "_turned")

    def __init__(self, at_least: float = 0.0, at_most: float = 0.0) -> None:
        """Seconds from one turn of the event loop to the next, in let_others().

        After `at_least` it turns where somebody has something for it, after `at_most` in any case.
        """
        self._at_least = at_least
        self._at_most = at_most
        self._turned = float("-inf")
        self._mine_until = 0.0

    def serve(self) -> None:
        """Between two pieces: let guests be served."""
        began = time.monotonic()
        if began >= self._mine_until:
            serve_guests()
            self._rest(began)

    async def let_others(self) -> None:
        """Between two pieces: let guests be served, and the event loop turn if it is time for that."""
        began = time.monotonic()
        if began < self._mine_until:
            return
        wanted = serve_guests()
        if began - self._turned >= (self._at_least if wanted else self._at_most):
            await asyncio.sleep(0)
            self._turned = time.monotonic()
        self._rest(began)

    def _rest(self, began: float) -> None:
        done = time.monotonic()
        self._mine_until = done + (done - began) * _SHARE
