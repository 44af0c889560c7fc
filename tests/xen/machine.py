"""The emulated machine: starts it, runs commands in its dom0, stops it."""

from __future__ import annotations

import base64
import json
import shlex
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.xen.images import CACHE

ACCELERATOR = "tcg,thread=multi,tb-size=1024"
PROCESSOR = "qemu64,+svm,+npt"
"""AMD's virtualization is what QEMU emulates; with `max`, dom0 dies of SMAP."""
MEMORY = "3500M"
"""All of it below 4 GiB: a guest that QEMU's nested virtualization lost had its VMCB above. Others were lost since."""
XEN_OPTIONS = (
    "console=com1 com1=115200,8n1 dom0_mem=2G,max:2G dom0_max_vcpus=2 loglvl=warning guest_loglvl=warning "
    "sched=credit2 spec-ctrl=no"
)
_SHARE = -10
"""Nice value of the machine's session: libxl gives device models and scripts 10 seconds, which under emulation are gone
soon when others want the CPUs too."""
_CHUNK = 48 << 10
"""Bytes of a file that go to dom0 in one request."""
DOM0_OPTIONS = "console=hvc0 loglevel=4 systemd.show_status=0 net.ifnames=0 mitigations=off"


class Dead(Exception):
    """The machine is gone, or its dom0 does not answer."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a command in dom0 ended with."""

    status: int
    out: str
    err: str


class Machine:
    """A running machine; `directory` holds its sockets and its console's output."""

    def __init__(self, directory: Path = CACHE / "run", *, c_xenstored: bool = False) -> None:
        self.directory = directory
        self._dom0_options = DOM0_OPTIONS + (" lab.xenstored=c" if c_xenstored else "")
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        self._received = b""
        self._number = 0

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        agent = self.directory / "agent"
        agent.unlink(missing_ok=True)
        disk = "if=none,id={id},file={file},format=raw,snapshot=on,cache=unsafe"
        command: list[str | Path] = [
            "setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64",
            "-accel", ACCELERATOR, "-cpu", PROCESSOR, "-smp", "2", "-m", MEMORY,
            "-machine", "pc,hpet=off", "-nodefaults", "-display", "none", "-no-reboot",
            "-kernel", CACHE / "xen", "-append", XEN_OPTIONS,
            "-initrd", f"{CACHE}/vmlinux-dom0 {self._dom0_options},{CACHE}/initrd-dom0",
            "-drive", disk.format(id="root", file=CACHE / "dom0.ext4"), "-device", "virtio-blk-pci,drive=root",
            "-drive", disk.format(id="more", file=CACHE / "payload.tar"), "-device", "virtio-blk-pci,drive=more",
            "-device", "virtio-serial-pci", "-chardev", f"socket,id=agent,path={agent},server=on,wait=off",
            "-device", "virtserialport,chardev=agent,name=agent",
            "-serial", f"file:{self.directory}/console", "-monitor", "none",
        ]  # fmt: skip
        with (self.directory / "qemu.log").open("w") as log:
            words = [str(word) for word in command]
            self._process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            Path(f"/proc/{self._process.pid}/autogroup").write_text(str(_SHARE))
        except OSError:
            pass  # a kernel without autogroups shares CPUs among processes, not sessions
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._line is not None:
            self._line.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @property
    def console(self) -> str:
        """What Xen and dom0 wrote to the serial line."""
        return (self.directory / "console").read_text("utf-8", "replace")

    def wait(self, seconds: float = 300) -> float:
        """Wait until dom0 runs commands; returns how long it took. Raises Dead."""
        begin = time.monotonic()
        while time.monotonic() - begin < seconds:
            try:
                if self._line is None:
                    self._line = socket.socket(socket.AF_UNIX)
                    self._line.connect(str(self.directory / "agent"))
                self.run("true", timeout=5)
                return time.monotonic() - begin
            except (OSError, TimeoutError):
                if self._line is not None:
                    self._line.close()
                    self._line = None
                time.sleep(0.5)
            if self._process is not None and self._process.poll() is not None:
                raise Dead("QEMU ended: " + (self.directory / "qemu.log").read_text()[-500:])
        raise Dead(f"dom0 runs no commands after {seconds:.0f} s; the console ends with:\n{self.console[-1500:]}")

    def run(self, command: str, timeout: float = 300) -> Result:
        """Run a shell command in dom0. Its status is 124 when it was not done in time. Raises Dead."""
        answer = self._request(timeout + 30, command=command, timeout=timeout)
        return Result(answer["status"], answer.get("out", ""), answer.get("err", ""))

    def check(self, command: str, timeout: float = 300) -> str:
        """Run a shell command in dom0 that must succeed; returns its output. Raises AssertionError, Dead."""
        result = self.run(command, timeout)
        if result.status:
            raise AssertionError(f"{command}: status {result.status}\n{result.out[-1500:]}{result.err[-1500:]}")
        return result.out

    def put(self, path: str, content: str | bytes, mode: int = 0o644) -> None:
        """Write a file in dom0."""
        data = content.encode() if isinstance(content, str) else content
        self.check(f"mkdir -p {shlex.quote(str(Path(path).parent))}")
        for at in range(0, max(1, len(data)), _CHUNK):
            content = base64.b64encode(data[at:at + _CHUNK]).decode()
            self._request(60, path=path, content=content, mode=mode, append=at > 0)

    def until(self, command: str, seconds: float = 60, *, pause: float = 0.5) -> str:
        """Run a command in dom0 until it succeeds; returns its output. Raises AssertionError, Dead."""
        loop = (
            f"end=$((SECONDS+{int(seconds)})); until {{ {command}; }} 2>/tmp/until.err; do "
            f"[ $SECONDS -lt $end ] || {{ cat /tmp/until.err >&2; exit 1; }}; sleep {pause}; done"
        )
        return self.check(loop, seconds + 30)

    def _request(self, seconds: float, **request: Any) -> dict[str, Any]:
        assert self._line is not None
        self._number += 1
        request["id"] = self._number
        deadline = time.monotonic() + seconds
        self._line.settimeout(seconds)
        self._line.sendall(b"\n" + json.dumps(request).encode() + b"\n")
        while True:
            while b"\n" in self._received:
                line, self._received = self._received.split(b"\n", 1)
                try:
                    answer = json.loads(line)
                except ValueError:
                    continue
                if isinstance(answer, dict) and answer.get("id") == self._number:
                    return answer
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"dom0 has not answered {request} for {seconds:.0f} s")
            self._line.settimeout(left)
            data = self._line.recv(1 << 20)
            if not data:
                raise Dead("the machine is gone")
            self._received += data
