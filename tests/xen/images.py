"""Builds what is booted: Xen, the dom0 kernel and file system, the guests. From Debian packages alone.

Everything is kept in .cache/xen, and what depends on unplugd's own sources is made anew at every run: the dom0 tree
itself (a minute) is made once. Nothing is installed on this machine, and what is compressed is unpacked here, not under
emulation. Needs root, for mmdebstrap and chroot.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

HERE = Path(__file__).parent
PROJECT = HERE.parent.parent
CACHE = PROJECT / ".cache" / "xen"
SUITE = "bookworm"

HOST_PACKAGES = {
    "qemu-system-x86_64": "qemu-system-x86",
    "mmdebstrap": "mmdebstrap",
    "nasm": "nasm",
    "gcc": "gcc",
    "ld": "binutils",
    "depmod": "kmod",
    "cpio": "cpio",
    "mke2fs": "e2fsprogs",
    "lz4": "lz4",
}
"""Programs of this machine, and the Debian packages that have them. gcc must be able to make 32-bit objects."""

DOM0_PACKAGES = (
    "systemd", "systemd-sysv", "udev", "dbus", "kmod", "iproute2", "procps",
    "xen-utils-4.17", "xen-utils-common", "xenstore-utils", "qemu-system-xen", "qemu-utils", "ipxe-qemu", "seabios",
    "python3", "python3-systemd", "python3-aiofiles", "python3-h11", "python3-prometheus-client", "python3-pyxs",
    "busybox-static",
)  # fmt: skip
"""Debian, Xen, and what unplugd's package depends on: there is no network in dom0 to fetch it from."""

DOM0_MODULES = (
    "xen-evtchn", "xen-gntdev", "xen-gntalloc", "xen-privcmd", "xenfs", "xen-blkback", "xen-netback", "virtio_pci",
    "virtio_blk", "virtio_console", "ext4", "loop", "bridge", "tun", "crc32c_generic",
)  # fmt: skip
GUEST_MODULES = ("ata_piix", "sd_mod", "xen-blkfront", "xen-netfront")

MASKED_UNITS = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer",
    "dpkg-db-backup.timer", "systemd-timesyncd.service", "systemd-networkd-wait-online.service", "xendomains.service",
    "systemd-update-utmp.service", "systemd-hwdb-update.service", "systemd-random-seed.service",
    "systemd-pstore.service", "modprobe@drm.service", "modprobe@fuse.service",
)  # fmt: skip

KERNEL_AT = 0x1000000
INITRD_AT = 0x8000000
_CMDLINE_AT = 0xA000


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command and return its output; its end goes to the terminal when it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=cwd)
    if done.returncode:
        sys.stderr.write(f"{' '.join(words)}: status {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        raise SystemExit(1)
    return done.stdout


def missing() -> list[str]:
    """What this machine lacks to build and run the lab, as names of Debian packages."""
    lacks = [package for program, package in HOST_PACKAGES.items() if shutil.which(program) is None]
    if "gcc" not in lacks:
        probe = ["gcc", "-m16", "-x", "c", "-c", "-o", os.devnull, "-"]
        if subprocess.run(probe, input=b"", capture_output=True, check=False).returncode:
            lacks.append("gcc-multilib")
    return lacks


def install(packages: list[str]) -> None:
    """Install Debian packages on this machine, by today's lists: old ones name files that the mirror no longer has."""
    apt = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-y", "-q", "-o", "DPkg::Lock::Timeout=300")
    run(*apt, "-o", "Acquire::Retries=3", "update")
    run(*apt, "-o", "Acquire::Retries=3", "install", "--no-install-recommends", *packages)


# --- packages ---------------------------------------------------------------------------------------------------------


def _kernel_package(meta: str) -> str:
    """The package that a metapackage such as linux-image-amd64 stands for today."""
    for line in run("apt-cache", "depends", meta).splitlines():
        if line.strip().startswith("Depends: linux-image-"):
            return line.split()[-1]
    raise SystemExit(f"apt-cache knows no {meta}")


def fetch_packages() -> tuple[str, str]:
    """Xen and two kernels, unpacked into .cache/xen/x; returns the releases of dom0's kernel and the guest's."""
    stamp = CACHE / "kernels"
    if stamp.exists():
        dom0, guest = stamp.read_text().split()
        return dom0, guest
    packages = ["xen-hypervisor-4.17-amd64", "busybox-static"]
    kernels = [_kernel_package("linux-image-amd64"), _kernel_package("linux-image-cloud-amd64")]
    debs, tree = CACHE / "debs", CACHE / "x"
    shutil.rmtree(debs, ignore_errors=True)
    shutil.rmtree(tree, ignore_errors=True)
    debs.mkdir(parents=True, mode=0o777)
    debs.chmod(0o777)  # apt downloads as a user of its own
    run("apt-get", "-q", "download", *packages, *kernels, cwd=debs)
    for deb in sorted(debs.glob("*.deb")):
        run("dpkg-deb", "-x", deb, tree)
    for modules in (tree / "lib/modules").iterdir():
        run("depmod", "-b", tree, modules.name)
    dom0, guest = (name.removeprefix("linux-image-") for name in kernels)
    hypervisor = next((tree / "boot").glob("xen-4.17-amd64.gz"))
    # QEMU's multiboot loader takes the unpacked ELF32.
    (CACHE / "xen").write_bytes(zlib.decompressobj(31).decompress(hypervisor.read_bytes()))
    for release, name in ((dom0, "vmlinux-dom0"), (guest, "vmlinux-guest")):
        (CACHE / name).write_bytes(vmlinux((tree / f"boot/vmlinuz-{release}").read_bytes()))
    run("strip", CACHE / "vmlinux-dom0")
    stamp.write_text(f"{dom0} {guest}\n")
    return dom0, guest


def vmlinux(image: bytes) -> bytes:
    """The ELF kernel inside a bzImage (Documentation/arch/x86/boot.rst: payload_offset, payload_length)."""
    offset, length = struct.unpack_from("<II", image, 0x248)
    begin = ((image[0x1F1] or 4) + 1) * 512 + offset
    payload = image[begin:begin + length]
    if payload.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor().decompress(payload)
    if payload.startswith(b"\x1f\x8b"):
        return zlib.decompressobj(31).decompress(payload)
    command = ["lz4", "-dc"] if payload.startswith(b"\x02\x21\x4c\x18") else ["zstd", "-dc"]
    # What follows the stream is the kernel's own: its length, which these programs take for garbage.
    return subprocess.run(command, input=payload[:-4], stdout=subprocess.PIPE, check=False).stdout


def _modules(release: str, names: tuple[str, ...]) -> list[Path]:
    """The files of these modules and what they need, in the order in which to load them; built-in ones have none."""
    files: list[Path] = []
    for name in names:
        output = run("modprobe", "-d", CACHE / "x", "-S", release, "--show-depends", name)
        files += [Path(line.split()[1]) for line in output.splitlines() if line.startswith("insmod")]
    return list(dict.fromkeys(files))


def _initrd(target: Path, release: str, names: tuple[str, ...], init: str) -> None:
    """A busybox initramfs whose /init is `init`, with modules in /lib and their order in /lib/order."""
    tree = target.with_suffix(".d")
    shutil.rmtree(tree, ignore_errors=True)
    for directory in ("bin", "proc", "sys", "dev", "lib", "mnt"):
        (tree / directory).mkdir(parents=True)
    shutil.copy(CACHE / "x/bin/busybox", tree / "bin/busybox")
    (tree / "bin/sh").symlink_to("busybox")
    files = _modules(release, names)
    for file in files:
        shutil.copy(file, tree / "lib")
    (tree / "lib/order").write_text("".join(f"{file.name}\n" for file in files))
    (tree / "init").write_text(init)
    (tree / "init").chmod(0o755)
    run("sh", "-c", f"find . | cpio -o -H newc --quiet > {target}", cwd=tree)
    shutil.rmtree(tree)


# --- dom0 -------------------------------------------------------------------------------------------------------------

_DOM0_INIT = """#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc; $b mount -t sysfs sys /sys; $b mount -t devtmpfs dev /dev
for m in $($b cat /lib/order); do $b insmod /lib/$m; done
i=0; while [ ! -b /dev/vda ] && [ $i -lt 100 ]; do $b usleep 100000; i=$((i+1)); done
$b mount -t ext4 -o rw,noatime /dev/vda /mnt || exec $b sh
x=/usr/lib/xen-4.17/bin/xenstored
$b grep -q lab.xenstored=c /proc/cmdline && echo XENSTORED=$x >> /mnt/etc/default/xen
$b mount --move /dev /mnt/dev; $b umount /proc /sys
exec $b switch_root /mnt /lib/systemd/systemd
"""

_AGENT_UNIT = """[Unit]
Description=Runs the test's commands
After=xen.service
Requires=xen.service
[Service]
ExecStartPre=/bin/tar xf /dev/vdb -C /root
ExecStart=/usr/local/sbin/agent.py
KillMode=process
Restart=on-failure
[Install]
WantedBy=multi-user.target
"""


_PATIENCE = {
    "systemd/system.conf.d/lab.conf": "[Manager]\nDefaultTimeoutStartSec=600\nDefaultTimeoutStopSec=300\n",
    "systemd/system/unplugd.service.d/lab.conf": "[Service]\nWatchdogSec=600\n",
    "unplugd/conf.d/lab.toml": "[attach]\nunreachable_after = 60\n",
}


def dom0_tree(release: str) -> Path:
    """The tree of dom0: Debian and its kernel's modules."""
    tree, stamp = CACHE / "dom0", CACHE / "dom0.stamp"
    key = hashlib.sha256(repr((DOM0_PACKAGES, DOM0_MODULES, _PATIENCE, release)).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == key:
        return tree
    stamp.unlink(missing_ok=True)
    shutil.rmtree(tree, ignore_errors=True)
    sources = Path("/etc/apt/sources.list.d/debian.sources")
    without = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "locale", "doc")]
    run("mmdebstrap", "--variant=apt", "--mode=root", "--include=" + ",".join(DOM0_PACKAGES),
        '--aptopt=APT::Install-Recommends "false"', '--aptopt=Acquire::Check-Valid-Until "false"',
        '--aptopt=Acquire::Check-Date "false"', *without, SUITE, tree,
        sources if sources.exists() else "/etc/apt/sources.list")
    for file in _modules(release, DOM0_MODULES):
        place = tree / file.relative_to(CACHE / "x")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    for name in ("order", "builtin", "builtin.modinfo"):
        shutil.copy(CACHE / f"x/lib/modules/{release}/modules.{name}", tree / f"lib/modules/{release}")
    run("depmod", "-b", tree, release)
    stamp.write_text(key)
    return tree


def dom0_settings(tree: Path, release: str) -> None:
    """Make the tree this lab's dom0, and its initrd."""
    (tree / "etc/hostname").write_text("dom0\n")
    (tree / "etc/hosts").write_text("127.0.0.1 localhost dom0\n")
    (tree / "etc/fstab").write_text("")
    modules = "xen-evtchn xen-gntdev xen-gntalloc xen-privcmd xenfs virtio_console loop"
    (tree / "etc/modules-load.d/lab.conf").write_text("\n".join(modules.split()) + "\n")
    defaults = tree / "etc/default/xen"
    logging = 'XENCONSOLED_ARGS="--log=guest"\n'
    if logging not in defaults.read_text():
        with defaults.open("a") as file:
            file.write(logging)
    (tree / "var/log/xen/console").mkdir(parents=True, exist_ok=True)
    units = tree / "etc/systemd/system"
    for unit in MASKED_UNITS:
        link = units / unit
        link.unlink(missing_ok=True)
        link.symlink_to("/dev/null")
    # Under emulation, on a busy machine, all takes longer than anybody would wait for on a real one.
    for place, text in _PATIENCE.items():
        path = tree / "etc" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (units / "agent.service").write_text(_AGENT_UNIT)
    wants = units / "multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "agent.service").unlink(missing_ok=True)
    (wants / "agent.service").symlink_to("../agent.service")
    _initrd(CACHE / "initrd-dom0", release, ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4"), _DOM0_INIT)


def package() -> Path:
    """unplugd's Debian package, built anew where a source is younger than it."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "daemon", "debian", "man",
                 "systemd", "config", "scripts/deb.sh", "pyproject.toml", "setup.py", cwd=PROJECT)
    sources = [path for name in listed.split("\0") if name and (path := PROJECT / name).exists()]
    built = max(PROJECT.glob("dist/unplugd_*.deb"), key=_age, default=None)
    if built is None or _age(built) < max(map(_age, sources)):
        run(PROJECT / "scripts/deb.sh")
        built = max(PROJECT.glob("dist/unplugd_*.deb"), key=_age)
    return built


def _age(path: Path) -> float:
    return path.stat().st_mtime


def install_unplugd(tree: Path) -> None:
    """Install unplugd into the tree as its user would: its package, by apt.

    In a chroot of this machine, since that takes minutes under emulation; the scenario `packaged` removes it and
    installs it again in the running dom0.
    """
    shutil.copy(package(), tree / "root/unplugd.deb")
    apt = ("chroot", tree, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y")
    run(*apt, "install", "--no-install-recommends", "--reinstall", "--allow-downgrades",
        "/root/unplugd.deb")
    run("chroot", tree, "systemctl", "enable", "unplugd-attach.service")
    # What Debian has besides is of no use without a network, and apt reads all of it, which takes minutes there.
    shutil.rmtree(tree / "var/lib/apt/lists")
    (tree / "var/lib/apt/lists/partial").mkdir(parents=True)
    agent = tree / "usr/local/sbin/agent.py"
    shutil.copy(HERE / "dom0/agent.py", agent)
    agent.chmod(0o755)


def dom0_image(tree: Path) -> None:
    """The file system that dom0 boots from."""
    image = CACHE / "dom0.ext4"
    image.unlink(missing_ok=True)
    run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal,^metadata_csum", "-d", tree, "-L", "dom0", image, "1500M")


# --- guests -----------------------------------------------------------------------------------------------------------


def _boot_sector() -> bytes:
    out = CACHE / "mbr.bin"
    run("nasm", "-f", "bin", HERE / "guests/mbr.asm", "-o", out)
    return out.read_bytes()


def monitor_image() -> Path:
    """The disk of the boot-sector guest: an I/O port monitor on its serial line."""
    out = CACHE / "monitor"
    flags = "-m16 -march=i386 -ffreestanding -fno-pic -fno-stack-protector -fcf-protection=none -Os -nostdlib"
    run("gcc", *flags.split(), "-fno-asynchronous-unwind-tables", "-c", HERE / "guests/monitor.c", "-o", f"{out}.o")
    run("ld", "-m", "elf_i386", "-Ttext", "0x7e00", "-e", "_start", "--oformat", "binary", f"{out}.o", "-o",
        f"{out}.bin")
    code = Path(f"{out}.bin").read_bytes()
    if len(code) > 48 * 512:
        raise SystemExit(f"the port monitor has {len(code)} bytes, the boot sector reads {48 * 512}")
    image = CACHE / "monitor.img"
    image.write_bytes((_boot_sector() + code).ljust(1 << 20, b"\0"))
    return image


def linux_images(release: str) -> None:
    """The Linux guest: its kernel as it lies in memory, its initrd, and a boot disk for each command line.

    Debian's kernel is started by guests/linux.asm, not by GRUB; QEMU's generic loader puts kernel and initrd into
    memory, so that nothing is read or decompressed under emulation.
    """
    _initrd(CACHE / "linux-initrd.img", release, GUEST_MODULES, (HERE / "guests/init.sh").read_text())
    (CACHE / "linux-kernel.img").write_bytes(memory_image((CACHE / "vmlinux-guest").read_bytes()))
    code = CACHE / "linux.bin"
    run("nasm", "-f", "bin", HERE / "guests/linux.asm", "-o", code)
    header = (CACHE / f"x/boot/vmlinuz-{release}").read_bytes()[:0x400]
    initrd_size = (CACHE / "linux-initrd.img").stat().st_size
    for name, more in (("run", ""), ("stay", "lab.stay"), ("never", "xen_emul_unplug=never")):
        line = f"console=hvc0 loglevel=4 nokaslr mitigations=off {more}"
        start = _boot_sector() + code.read_bytes() + boot_params(header, initrd_size, line)
        (CACHE / f"linux-{name}.img").write_bytes(start.ljust(1 << 20, b"\0"))


def memory_image(elf: bytes) -> bytes:
    """The loadable segments of an ELF64 kernel as they lie in memory from KERNEL_AT on; fresh memory is zero."""
    offset, = struct.unpack_from("<Q", elf, 32)
    count, = struct.unpack_from("<H", elf, 56)
    image = bytearray()
    for at in range(offset, offset + 56 * count, 56):
        kind, _, begin, _, physical, size, _, _ = struct.unpack_from("<IIQQQQQQ", elf, at)
        if kind == 1:  # PT_LOAD
            place = physical - KERNEL_AT
            image.extend(bytes(max(0, place + size - len(image))))
            image[place:place + size] = elf[begin:begin + size]
    return bytes(image.rstrip(b"\0"))


def boot_params(header: bytes, initrd_size: int, command_line: str) -> bytes:
    """The zero page but for the memory map, and the command line (Documentation/arch/x86/zero-page.rst)."""
    page = bytearray(4096)
    end = 0x202 + header[0x201]
    page[0x1F1:end] = header[0x1F1:end]
    page[0x210] = 0xFF  # type_of_loader: none of the registered
    page[0x211] |= 1  # LOADED_HIGH
    struct.pack_into("<II", page, 0x218, INITRD_AT, initrd_size)
    struct.pack_into("<I", page, 0x228, _CMDLINE_AT)
    return bytes(page) + command_line.encode() + b"\0"


def payload(*more: Path) -> None:
    """What dom0 needs beside its own tree, as a raw tar on a second disk: guests, dom0/, and `more`."""
    with tarfile.open(CACHE / "payload.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for path in [*sorted(CACHE.glob("linux-*.img")), CACHE / "monitor.img"]:
            tar.add(path, path.name)
        for path in [*sorted((HERE / "dom0").iterdir()), *more]:
            if path.is_file():
                tar.add(path, path.name)
    size = (CACHE / "payload.tar").stat().st_size
    os.truncate(CACHE / "payload.tar", (size + 4095) // 4096 * 4096)


def build(*more: Path) -> None:
    """Everything, whatever is there already; `more` are files for dom0's /root."""
    CACHE.mkdir(parents=True, exist_ok=True)
    dom0, guest = fetch_packages()
    tree = dom0_tree(dom0)
    dom0_settings(tree, dom0)
    install_unplugd(tree)
    dom0_image(tree)
    monitor_image()
    linux_images(guest)
    payload(*more)
