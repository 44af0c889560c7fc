"""Builds Debian's QEMU with the device `unplugd` (clients/qemu) for the scenarios of tests/xen/builtin.py.

From the source package of a suite, for Xen alone, on this machine: the program runs with dom0's libraries. Kept in
.cache/xen/qemu; made anew when the device or Debian's source changes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path

from tests.xen.images import CACHE, PROJECT, SUITE, install, run

PACKAGES = (
    "dpkg-dev", "gcc", "g++", "pkg-config", "meson", "ninja-build", "flex", "bison", "python3-venv", "libglib2.0-dev",
    "libpixman-1-dev", "zlib1g-dev", "libfdt-dev", "libxen-dev",
)  # fmt: skip
CLIENTS = PROJECT / "clients"
OPTIONS = (
    "--prefix=/usr --firmwarepath=/usr/share/qemu:/usr/share/seabios:/usr/lib/ipxe/qemu "
    "--target-list=i386-softmmu --without-default-features --enable-xen --disable-tcg --disable-kvm "
    "--disable-docs --disable-tools --disable-guest-agent --disable-install-blobs"
)
"""Everything that Xen's HVM guests do not need is left out. Firmware is where Debian has it."""
_MESON = "meson==1.5.0"
"""What QEMU 10.0 wants, and looks for in its folder of wheels, which Debian's source leaves out."""


def source(suite: str) -> Path:
    """Debian's source package: the file that describes it."""
    place = CACHE / "qemu" / suite
    lists, parts = place / "lists", place / "sources"
    for directory in (lists / "partial", parts):
        directory.mkdir(parents=True, exist_ok=True)
    here = Path("/etc/apt/sources.list.d/debian.sources").read_text()
    text = here.replace("Types: deb\n", "Types: deb-src\n").replace(SUITE, suite)
    (parts / "debian.sources").write_text(text)
    apt = ("apt-get", "-q", "-o", "Dir::Etc::SourceList=/dev/null", "-o", f"Dir::Etc::SourceParts={parts}",
           "-o", f"Dir::State::Lists={lists}", "-o", "APT::Sandbox::User=root")
    run(*apt, "update")
    run(*apt, "--download-only", "source", "qemu", cwd=place)
    return max(place.glob("*.dsc"), key=lambda path: path.stat().st_mtime)


def build(suite: str) -> tuple[Path, str]:
    """The program, and in a few words what it is and how long it took to build."""
    needed = [name for name in PACKAGES if not Path(f"/var/lib/dpkg/info/{name}.list").exists()
              and not list(Path("/var/lib/dpkg/info").glob(f"{name}:*.list"))]
    if needed:
        install(needed)
    described = source(suite)
    ours = ("qemu/unplugd.c", "qemu/install.sh", "unplugd-client.h")
    device = b"".join((CLIENTS / name).read_bytes() for name in ours)
    key = hashlib.sha256(described.read_bytes() + device + OPTIONS.encode()).hexdigest()
    place = described.parent
    program, stamp = place / "qemu-builtin", place / "stamp"
    said = described.stem.removeprefix("qemu_")
    if program.exists() and stamp.exists() and stamp.read_text() == key:
        return program, f"QEMU {said}, built before"
    begin = time.monotonic()
    tree = place / "tree"
    if not (tree / described.stem).exists():
        shutil.rmtree(tree, ignore_errors=True)
        run("dpkg-source", "--no-check", "-x", described, tree)
        (tree / described.stem).touch()
    run(CLIENTS / "qemu/install.sh", tree)
    made = tree / "build-xen"
    if not (made / "build.ninja").exists():
        made.mkdir(exist_ok=True)
        if (tree / "pythondeps.toml").exists():
            wheels = tree / "python/wheels"
            wheels.mkdir(exist_ok=True)
            run(PROJECT / ".venv/bin/python", "-m", "pip", "download", "-q", "--no-deps", "-d", wheels, _MESON)
        run("../configure", *OPTIONS.split(), cwd=made)
    run("ninja", f"-j{os.cpu_count()}", "qemu-system-i386", cwd=made)
    run("strip", "-o", program, made / "qemu-system-i386")
    stamp.write_text(key)
    return program, f"QEMU {said}, built in {time.monotonic() - begin:.0f} s, {program.stat().st_size >> 20} MiB"
