"""The process of one domain: creates its ioreq server, gives up all privileges, and serves.

The supervisor forks it, and it never returns into the supervisor's code. It ends with a status of `Ended`. If it is
killed, its server stays, and the next process takes it over.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import traceback
from dataclasses import dataclass
from enum import IntEnum
from errno import EINVAL, EOPNOTSUPP
from typing import Any, NoReturn

from unplugd.attach.agent import Agent
from unplugd.attach.broker import ChildEnd
from unplugd.attach.confine import Identity, confine
from unplugd.attach.forward import Forward
from unplugd.attach.guestmem import GuestMemory
from unplugd.attach.lender import Lender
from unplugd.attach.plan import FIRST_CONFIG, FIRST_PORT, LAST_CONFIG, LAST_PORT
from unplugd.attach.platform import PlatformBar, find
from unplugd.attach.qemu import Monitor
from unplugd.attach.server import IoreqServer, NotYet
from unplugd.attach.serverids import ServerId, ServerIds
from unplugd.attach.unplugd import Unplugd
from unplugd.attach.xen import EventChannels, ForeignMemory, XenDeviceModel, XenError, restricted_privcmd
from unplugd.config.attach import AttachConfig

DRAIN = 10.0
"""Seconds in which vCPUs must have taken their answers when the ports are handed back. One that has not (its domain is
paused) leaves the server disabled, not destroyed."""


class Ended(IntEnum):
    """Exit status of a domain's process."""

    HANDED_BACK = 0
    """The server is destroyed; QEMU has the ports."""
    FAILED = 1
    NOT_HVM = 3
    """The domain has no ioreq servers."""
    NOT_YET = 4
    """QEMU has not made its server yet."""
    LEFT = 5
    """The server is disabled but still there: a vCPU did not take its answer in time."""
    NO_PLATFORM = 6
    """QEMU has no platform device (`xen_platform_pci = 0`, or a PV domain), so it cannot carry out an unplug."""


@dataclass(frozen=True, slots=True)
class AttachedDomain:
    """The domain of a child process."""

    domid: int
    uuid: str


def run(
    domain: AttachedDomain,
    end: socket.socket,
    kept: ServerIds,
    identity: Identity,
    config: AttachConfig,
    supervisor: int,
) -> NoReturn:
    """Run as the process of `domain`. `end` is the child's end of the broker's pair; `supervisor` the parent's pid."""
    status = Ended.FAILED
    try:
        _forget_the_parent(end)
        status = asyncio.run(_main(domain, end, kept, identity, config, supervisor))
    except BaseException:  # noqa: BLE001  - nothing may return into the supervisor's code
        text = " | ".join(traceback.format_exc(limit=-3).splitlines())
        ChildEnd(end, lambda: None, lambda: None).log(f"ended: {text}")
    finally:
        os._exit(status)


def _forget_the_parent(end: socket.socket) -> None:
    """Close all inherited descriptors except the broker's socket, and restore default signals.

    This includes standard error, because a write to it could wait for journald. Messages go to the supervisor.
    """
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    # Only the supervisor decides when a domain's process ends; `systemctl stop` signals only the supervisor.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    keep = end.fileno()
    os.closerange(3, keep)
    os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))


async def _main(
    domain: AttachedDomain,
    end: socket.socket,
    kept: ServerIds,
    identity: Identity,
    config: AttachConfig,
    supervisor: int,
) -> Ended:
    loop = asyncio.get_running_loop()
    detach = asyncio.Event()
    broker = ChildEnd(end, detach.set, gone=lambda: os._exit(Ended.FAILED))
    memory, events = ForeignMemory(domain.domid), EventChannels()
    privcmd = restricted_privcmd(domain.domid)
    broker.start()
    monitor = Monitor(lambda: broker.connect("qemu"), broker.log)
    device = await find(monitor)
    if device is None:
        return Ended.NO_PLATFORM
    try:
        server = IoreqServer(
            XenDeviceModel(domain.domid), memory, events, ((FIRST_PORT, LAST_PORT), (FIRST_CONFIG, LAST_CONFIG)),
            (device.bus, device.slot, device.function),
            keep=lambda number: kept.save(ServerId(domain.domid, domain.uuid, number)),
            known=kept.load(domain.domid, domain.uuid),
        )  # fmt: skip
    except NotYet:
        return Ended.NOT_YET
    except XenError as error:
        if error.call == "xendevicemodel_create_ioreq_server" and error.errno in (EINVAL, EOPNOTSUPP):
            return Ended.NOT_HVM
        raise
    platform = PlatformBar(device, monitor, server, broker.log)
    await platform.look()
    unplugd = Unplugd(
        lambda: broker.connect("unplugd"),
        give_up_after=None if config.when_unreachable == "wait" else config.unreachable_after,
        report=broker.log,
    )
    failure: asyncio.Future[None] = loop.create_future()

    def failed(error: BaseException) -> None:
        if not failure.done():
            failure.set_exception(error)

    # An exception in a callback (an answer of unplugd, an access) ends the process, as one in a task does.
    loop.set_exception_handler(lambda _, context: failed(context.get("exception") or RuntimeError(context["message"])))
    asked = Forward(unplugd, monitor, broker.log, failed) if config.forward else unplugd
    agent = Agent(asked, monitor, platform, GuestMemory(memory), server.answer, failed)
    lender = Lender(server, privcmd, lambda: broker.connect("pages"), agent.take, agent.busy)
    unplugd.answers = lender.offer
    confine(domain.domid, identity, kept.empty, supervisor, events.fd)
    how = "taken over" if server.taken_over else "created"
    broker.say("attached", f"ioreq server {server.id} {how}, {server.vcpus} vCPUs")

    connecting = loop.create_task(unplugd.run())
    lender.start()
    gc.freeze()
    waiting = loop.create_task(detach.wait())
    ended: set[asyncio.Future[Any]] = {waiting, connecting, failure}
    await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
    for future in (connecting, failure):
        if future.done():
            future.result()
    return await _hand_back(server, agent, broker)


async def _hand_back(server: IoreqServer, agent: Agent, broker: ChildEnd) -> Ended:
    """Give the ports to QEMU without losing an access."""
    server.disable()
    try:
        async with asyncio.timeout(DRAIN):
            # There is no event for a vCPU that takes its answer.
            while agent.busy or not server.idle:  # noqa: ASYNC110 # nobody signals it
                await asyncio.sleep(0.005)
    except TimeoutError:
        broker.log(f"a vCPU has not taken its answer within {DRAIN:.0f} s: the ioreq server stays, disabled")
        return Ended.LEFT
    server.destroy()
    return Ended.HANDED_BACK
