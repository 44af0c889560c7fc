"""The watches of a client: their tokens on the present connection, and the events for them.

Watches outlive connections.

A watch counts as armed when xenstored has acknowledged it *and* has sent the event that it sends at every registration.
Until then this event can also stand for a real change: xenstored does not queue an event twice (since XSA-326), so the
event of a change is merged with the first one. A client that reads after the watch is armed misses no change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from unplugd.errors import NoSuchNode, StoreError, StoreUnavailable
from unplugd.xenstore.store import DEADLINE
from unplugd.xenstore.wire import Op, strings, watch_path

if TYPE_CHECKING:
    from unplugd.xenstore.connection import StoreConnection


class Watch:
    """One registration. It has a new token on each connection, so that a late event cannot be confused."""

    __slots__ = (
        "acknowledged",
        "armed",
        "callback",
        "connection",
        "first",
        "path",
        "settled",
        "timer",
        "token",
    )

    def __init__(self, path: str, callback: Callable[[str], None], armed: asyncio.Future[None]) -> None:
        self.path = path
        self.callback = callback
        self.armed: asyncio.Future[None] | None = armed
        """What the registrant waits for: done when it was armed for the first time, and forgotten then."""
        self.connection: StoreConnection | None = None
        self.token = ""
        self.acknowledged = False
        self.first = True
        """Whether the event that xenstored sends at registration has not arrived yet."""
        self.settled: asyncio.Future[None] | None = None
        """Done when it is armed on this connection, and forgotten then: thousands of watches are kept."""
        self.timer: asyncio.TimerHandle | None = None


class Watches:
    """All registrations of one client."""

    def __init__(self) -> None:
        self._watches: dict[tuple[str, Callable[[str], None]], Watch] = {}
        self._tokens: dict[str, Watch] = {}
        self._last_token = 0
        self._connection: StoreConnection | None = None

    def add(self, path: str, callback: Callable[[str], None]) -> asyncio.Future[None]:
        """`Store.watch`."""
        armed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            watch_path(path)
        except NoSuchNode as error:
            armed.set_exception(error)
            return armed
        if (path, callback) in self._watches:
            raise ValueError(f"this callback watches {path} already")
        watch = self._watches[path, callback] = Watch(path, callback, armed)
        armed.add_done_callback(lambda future: self._forget_if_failed(watch))
        if self._connection:
            self._arm(watch, self._connection)
        return armed

    def end(self, path: str, callback: Callable[[str], None]) -> asyncio.Future[None]:
        """`Store.unwatch`."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        watch = self._watches.get((path, callback))
        answer = self._forget(watch) if watch else None
        if watch:
            _settle(watch.armed, StoreUnavailable(f"the watch of {path} was ended before it was armed"))

        def answered(answer: asyncio.Future[None] | None) -> None:
            # A lost connection ends the watch too, and a watch that was never armed may give ENOENT: ignore both.
            if answer:
                ignore(answer)
            if not done.done():
                done.set_result(None)

        if answer:
            answer.add_done_callback(answered)
        else:
            answered(None)
        return done

    def event(self, path: str, token: str) -> None:
        """An event came on the connection."""
        watch = self._tokens.get(token)
        if watch is None:
            return  # the watch was ended while this was under way
        if watch.first:
            # The kernel's device may bring it before the acknowledgement.
            watch.first = False
            if watch.acknowledged:
                _settle(watch.settled, None)
            return
        try:
            watch.callback(path)
        except Exception as error:  # noqa: BLE001 - one callback's bug is not the connection's
            message = f"the callback for xenstore's {watch.path} failed"
            asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})

    async def arm_all(self, connection: StoreConnection) -> None:
        """Arm all watches on a new connection; later ones are armed when they are added. Raises StoreError."""
        self._connection = connection
        connection.lost.add_done_callback(lambda lost: self._fail_unsettled(connection, lost.result()))
        while unarmed := [watch for watch in self._watches.values() if watch.connection is not connection]:
            asked = [self._arm(watch, connection) for watch in unarmed]
            answers = await asyncio.gather(*asked, return_exceptions=True)
            for watch, answer in zip(unarmed, answers, strict=True):
                # A watch that never was armed fails alone. One that was before must not be lost silently.
                there = self._watches.get((watch.path, watch.callback)) is watch
                if isinstance(answer, StoreError) and there and not _has_failed(watch.armed):
                    raise answer

    def disarm(self) -> None:
        """The connection is lost, and no watch is armed."""
        self._connection = None
        self._tokens.clear()

    def close(self, reason: str) -> None:
        """Remove all watches; those that are not armed yet end in StoreUnavailable(reason)."""
        watches, self._watches = self._watches, {}
        self.disarm()
        for watch in watches.values():
            _settle(watch.settled, StoreUnavailable(reason))
            _settle(watch.armed, StoreUnavailable(reason))

    def _arm(self, watch: Watch, connection: StoreConnection) -> asyncio.Future[None]:
        self._last_token += 1
        watch.token = str(self._last_token)
        watch.connection = connection
        watch.acknowledged = False
        watch.first = True
        self._tokens[watch.token] = watch
        settled = watch.settled = asyncio.get_running_loop().create_future()
        settled.add_done_callback(lambda future: self._settled(watch, future))
        payload = strings(watch_path(watch.path), watch.token.encode())
        # No deadline: a xenstored that does not answer loses the connection, and then the watch is armed on the next.
        asked = connection.request(Op.WATCH, watch.path, payload, nothing)
        asked.add_done_callback(lambda future: self._acknowledged(watch, settled, future))
        return settled

    def _acknowledged(self, watch: Watch, settled: asyncio.Future[None], asked: asyncio.Future[None]) -> None:
        error = asked.exception()
        if watch.settled is not settled:
            return
        watch.acknowledged = True
        if error or not watch.first:
            _settle(settled, error)
        else:
            # It follows at once. If it does not come, a real event must not be taken for it.
            watch.timer = asyncio.get_running_loop().call_later(
                DEADLINE, self._no_first_event, watch, settled
            )

    def _no_first_event(self, watch: Watch, settled: asyncio.Future[None]) -> None:
        if watch.settled is settled:
            watch.first = False
        _settle(settled, None)

    def _settled(self, watch: Watch, settled: asyncio.Future[None]) -> None:
        error = settled.exception()
        if watch.settled is not settled:
            return
        watch.settled = None
        if watch.timer:
            watch.timer.cancel()
            watch.timer = None
        if isinstance(error, StoreUnavailable):
            return
        _settle(watch.armed, error)
        if not error and not _has_failed(watch.armed):  # a cancelled one is about to be forgotten for that
            watch.armed = None

    def _fail_unsettled(self, connection: StoreConnection, reason: str) -> None:
        for watch in self._watches.values():
            if watch.connection is connection:
                _settle(watch.settled, StoreUnavailable(reason))

    def _forget_if_failed(self, watch: Watch) -> None:
        if _has_failed(watch.armed) and (answer := self._forget(watch)):
            answer.add_done_callback(ignore)

    def _forget(self, watch: Watch) -> asyncio.Future[None] | None:
        """Remove a watch, also from xenstored if it is armed: the future is xenstored's answer."""
        if self._watches.get((watch.path, watch.callback)) is not watch:
            return None
        del self._watches[watch.path, watch.callback]
        self._tokens.pop(watch.token, None)
        _settle(watch.settled, StoreUnavailable(f"the watch of {watch.path} was ended"))
        connection = watch.connection
        if connection is None or connection is not self._connection:
            return None
        payload = strings(watch_path(watch.path), watch.token.encode())
        return connection.request(Op.UNWATCH, watch.path, payload, nothing, deadline=DEADLINE)


def nothing(_payload: bytes) -> None:
    """Decodes an answer without content."""


def ignore(future: asyncio.Future[Any]) -> None:
    """Ignore the result of a future."""
    if not future.cancelled():
        future.exception()


def _settle(future: asyncio.Future[None] | None, error: BaseException | None) -> None:
    if future and not future.done():
        if error:
            future.set_exception(error)
        else:
            future.set_result(None)


def _has_failed(future: asyncio.Future[None] | None) -> bool:
    return future is not None and future.done() and (future.cancelled() or future.exception() is not None)
