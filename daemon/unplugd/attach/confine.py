"""One function that gives up all privileges of the process, and checks it.

The process of a domain keeps only its open handles, restricted to its domain, the socket to the supervisor, memory and
a clock. It cannot open a file, create a socket, start a process or send a signal, and cannot regain any of this.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import pwd
import resource
import signal
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from unplugd.attach.xen import restrict_all
from unplugd.config.attach import AttachConfig
from unplugd.errors import HostError

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38

_SCMP_ACT_ALLOW = 0x7FFF0000
_SCMP_ACT_ERRNO = 0x00050000
_SCMP_CMP_EQ, _SCMP_CMP_MASKED_EQ = 4, 7
_PROT_EXEC = 4
_DESCRIPTORS = 32

SYSTEM_CALLS = (
    # the event loop
    "epoll_wait", "epoll_pwait", "epoll_pwait2", "epoll_ctl", "read", "write", "recvfrom", "recvmsg", "sendto",
    "sendmsg", "close", "shutdown", "getsockopt", "setsockopt", "getsockname", "getpeername", "fstat",
    "newfstatat", "lseek", "poll", "ppoll",
    # memory: the allocator's, and mappings of guest pages
    "brk", "munmap", "mremap", "madvise",
    # time, randomness, signals, threads' plumbing, the end
    "clock_gettime", "clock_nanosleep", "gettimeofday", "getrandom", "futex", "sched_yield", "rt_sigaction",
    "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "restart_syscall", "getpid", "getppid", "gettid", "getuid",
    "geteuid", "rseq", "set_robust_list", "exit", "exit_group",
)  # fmt: skip


def _ioc(letter: str, number: int, size: int) -> int:
    """_IOC(_IOC_NONE, letter, number, size) of asm-generic/ioctl.h."""
    return size << 16 | ord(letter) << 8 | number


IOCTLS = {
    "IOCTL_PRIVCMD_MMAPBATCH_V2": _ioc("P", 4, 32),
    "IOCTL_PRIVCMD_DM_OP": _ioc("P", 5, 16),
    "IOCTL_EVTCHN_NOTIFY": _ioc("E", 4, 4),
    "FIOCLEX": 0x5451,
}
"""The only ones beside FIONBIO. Sources: xen/sys/privcmd.h, xen/sys/evtchn.h, asm-generic/ioctls.h."""
_FIONBIO = 0x5421


@dataclass(frozen=True, slots=True)
class Identity:
    """The user and group of the process."""

    uid: int
    gid: int


def identity(config: AttachConfig, domid: int) -> Identity:
    """Who the process of `domid` runs as. Raises HostError when the configured user is not there."""
    if not config.user:
        try:
            base = pwd.getpwnam("xen-qemuuser-range-base")
            return Identity(base.pw_uid + domid, base.pw_gid)
        except KeyError:
            pass
    for name in (config.user,) if config.user else ("unplugd-attach", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid == 0:
            raise HostError("the user of a domain's process", name, "is root")
        return Identity(entry.pw_uid, entry.pw_gid)
    raise HostError("the user of a domain's process", config.user or "nobody", "does not exist")


class _Argument(ctypes.Structure):
    """struct scmp_arg_cmp of seccomp.h."""

    _fields_ = [
        ("arg", ctypes.c_uint), ("op", ctypes.c_int), ("datum_a", ctypes.c_uint64), ("datum_b", ctypes.c_uint64),
    ]  # fmt: skip


@cache
def _libraries() -> tuple[Any, Any]:
    """libc and libseccomp; loaded while the process may still open files."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        seccomp = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    except OSError as error:
        raise HostError("the library", "libseccomp.so.2", str(error)) from error
    seccomp.seccomp_init.restype = ctypes.c_void_p
    seccomp.seccomp_init.argtypes = [ctypes.c_uint32]
    seccomp.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(_Argument)]
    seccomp.seccomp_load.argtypes = [ctypes.c_void_p]
    seccomp.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    return libc, seccomp


def preload() -> None:
    """Load what confine() needs, in the process that children are forked from. Raises HostError."""
    _libraries()


def _prctl(option: int, value: int) -> None:
    if _libraries()[0].prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def _filter_system_calls(events: int) -> None:
    """From here on, every system call that is not in the list fails with EPERM.

    unplugd also reads `events` while the page is lent (lender.py), so the process must not be able to make it block.
    """
    seccomp = _libraries()[1]
    context = seccomp.seccomp_init(_SCMP_ACT_ERRNO | errno.EPERM)
    if not context:
        raise OSError(errno.ENOMEM, "seccomp_init")

    def allow(name: str, *arguments: _Argument) -> None:
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number < 0:  # this architecture does not have it, so it cannot be called
            return
        array = (_Argument * max(1, len(arguments)))(*arguments)
        result = seccomp.seccomp_rule_add_array(context, _SCMP_ACT_ALLOW, number, len(arguments), array)
        if result < 0:
            raise OSError(-result, f"seccomp rule for {name}")

    for name in SYSTEM_CALLS:
        allow(name)
    for request in IOCTLS.values():
        allow("ioctl", _Argument(1, _SCMP_CMP_EQ, request, 0))
    # One rule for each possible descriptor: the kernel uses only the lower half of the argument, so a rule "not equal
    # to `events`" could be bypassed with the upper half.
    for descriptor in set(range(_DESCRIPTORS)) - {events}:
        allow("ioctl", _Argument(1, _SCMP_CMP_EQ, _FIONBIO, 0), _Argument(0, _SCMP_CMP_EQ, descriptor, 0))
    for command in (fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL):
        allow("fcntl", _Argument(1, _SCMP_CMP_EQ, command, 0))
    for name in ("mmap", "mprotect"):
        allow(name, _Argument(2, _SCMP_CMP_MASKED_EQ, _PROT_EXEC, 0))
    result = seccomp.seccomp_load(context)
    if result < 0:
        raise OSError(-result, "seccomp_load")


def confine(domid: int, identity: Identity, root: Path, supervisor: int, events: int) -> None:
    """Restrict this process to `domid`, change its user to `identity` and its root to the empty directory `root`.

    `supervisor` is the pid of the parent; the process is killed when the parent dies. `events` is the descriptor of the
    event channels, which stays non-blocking. The handles of the Xen libraries must already be open. Raises OSError or
    XenError if a step fails, and RuntimeError if a privilege could be regained. The caller must exit then.
    """
    restrict_all(domid)
    os.chroot(root)
    os.chdir("/")
    os.setgroups([])
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK):
        resource.setrlimit(limit, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_DESCRIPTORS, _DESCRIPTORS))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_DUMPABLE, 0)
    # After the change of user, which clears it; a supervisor that died in between is noticed here.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:
        raise RuntimeError("the supervisor is gone")
    _filter_system_calls(events)
    _prove(events)


def _prove(events: int) -> None:
    """Try to regain each privilege. Raises RuntimeError if one attempt works."""
    attempts: dict[str, Any] = {
        "become root": lambda: os.setresuid(0, 0, 0),
        "open a file": lambda: os.open("/", os.O_RDONLY),
        "create a process": os.fork,
        "create a socket": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
        "signal its parent": lambda: os.kill(os.getppid(), 0),
        "leave its root": lambda: os.chroot("/"),
        "have event channels block": lambda: os.set_blocking(events, True),
        "have them block by their flags": lambda: fcntl.fcntl(events, fcntl.F_SETFL, 0),
    }
    for what, attempt in attempts.items():
        try:
            attempt()
        except OSError as error:
            if error.errno != errno.EPERM:
                raise RuntimeError(f"confined, the process failed to {what} for another reason: {error}") from error
        else:
            raise RuntimeError(f"confined, the process could still {what}")
