"""Debian userlands for ARM on this machine, under user-mode emulation, with the agent installed in them.

What runs in it has its own mounts and its own /proc, whose processor is a Raspberry Pi's; network and files are this
machine's. Needs root, qemu-user-static, binfmt-support and mmdebstrap; nothing here asserts.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("python3", "libgomp1", "libstdc++6", "dash", "libc-bin", "coreutils", "bash")
SITE = "opt/site"
# What Debian's own scripts would choose as alternatives, which nothing runs here.
ALGEBRA = ("blas", "lapack")
# QEMU waits for nobody, and a runtime that hangs under it must not hold the tests.
TIMEOUT_S = 150.0


@dataclass(frozen=True, slots=True)
class Board:
    """A board as its processes see it."""

    model: str
    """Of the device tree."""
    qemu_cpu: str
    part: str
    """MIDR part number (Arm's technical reference manuals)."""
    features: str
    level: int = 8
    """Of the Arm architecture."""
    cores: int = 4


PI_5 = Board(
    "Raspberry Pi 5 Model B Rev 1.0", "cortex-a76", "0xd0b",
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
)  # fmt: skip
PI_4 = Board("Raspberry Pi 4 Model B Rev 1.4", "cortex-a72", "0xd08", "fp asimd evtstrm crc32 cpuid")
PI_2 = Board(
    "Raspberry Pi 2 Model B Rev 1.1", "cortex-a7", "0xc07",
    "half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm", level=7,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Userland:
    """A release of Debian for one architecture, and how the agent gets into it."""

    suite: str
    architecture: str
    """Debian's name."""
    machine: str
    """As wheels name it."""
    emulator: str
    """As QEMU does."""
    python: str
    glibc_minor: int
    boards: dict[str, Board]
    """Profile → board."""
    extras: str = "agent,litert,onnx"
    more_packages: tuple[str, ...] = ()
    closure: Path | None = None
    """Pins of all that is installed beside the distribution's own Python packages; None: pip resolves."""

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.suite}-{self.architecture}"

    @property
    def constraints(self) -> Path:
        """Pins of what is installed."""
        return self.closure or REPOSITORY / "constraints.txt"

    @property
    def packages(self) -> str:
        """What is unpacked, as mmdebstrap wants it."""
        return ",".join((*PACKAGES, *self.more_packages))


BOOKWORM_ARM64 = Userland(
    "bookworm", "arm64", "aarch64", "aarch64", "3.11", 36, {"raspberry-pi-5": PI_5, "raspberry-pi-4b": PI_4}
)
TRIXIE_ARM64 = Userland("trixie", "arm64", "aarch64", "aarch64", "3.13", 41, {"raspberry-pi-5": PI_5})
# No index has wheels of numpy and cffi for it: they are Debian's.
BOOKWORM_ARMHF = Userland(
    "bookworm", "armhf", "armv7l", "arm", "3.11", 36, {"raspberry-pi-os-32": PI_2}, "agent,tflite",
    ("python3-numpy", "python3-cffi"), REPOSITORY / "constraints" / "armv7.txt",
)  # fmt: skip
USERLANDS = (BOOKWORM_ARM64, BOOKWORM_ARMHF, TRIXIE_ARM64)
EMULATORS = tuple(sorted({each.emulator for each in USERLANDS}))
TOOLS = (*(f"qemu-{each}-static" for each in EMULATORS), "update-binfmts", "mmdebstrap")


def missing() -> str | None:
    """Why there can be no emulation here, or None."""
    if os.geteuid() != 0:
        return "it needs root"
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        return f"{', '.join(absent)}: not installed"
    _enable()
    registered = all(Path(f"/proc/sys/fs/binfmt_misc/qemu-{each}").exists() for each in EMULATORS)
    return None if registered else "the kernel has no binfmt_misc"


def _enable() -> None:
    """Have the kernel start ARM programs through QEMU."""
    if not Path("/proc/sys/fs/binfmt_misc/register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", "/proc/sys/fs/binfmt_misc"], check=False)
    for each in EMULATORS:
        subprocess.run(["update-binfmts", "--enable", f"qemu-{each}"], check=False, capture_output=True)


def build(userland: Userland, folder: Path) -> Path:
    """Make the userland in `folder` (or take the one that is there) and install the agent's wheel; returns its root."""
    root, stamp = folder / "root", folder / "made"
    wanted = hashlib.sha256(f"{userland.suite} {userland.architecture} {userland.packages}".encode()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _run([
            "mmdebstrap", "--quiet", f"--arch={userland.architecture}", "--variant=extract",
            "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", f"--include={userland.packages}",
            userland.suite, str(root), *_mirror(),
        ])  # fmt: skip
        libraries = [f"/{path.relative_to(root)}\n" for path in root.glob("usr/lib/*/*") if path.name in ALGEBRA]
        (root / "etc" / "ld.so.conf.d" / "alternatives.conf").write_text("".join(libraries))
        _run(["chroot", str(root), "/sbin/ldconfig"])
        stamp.write_text(wanted)
    _install(userland, folder, root)
    return root


def _mirror() -> list[str]:
    """The mirror that this machine's own apt uses; none: mmdebstrap's default."""
    sources = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    for source in sources:
        text = source.read_text() if source.is_file() else ""
        found = re.search(r"^(?:deb(?:\s+\[[^\]]*\])?|URIs:)\s+(\S+)", text, re.MULTILINE)
        if found:
            return [found[1]]
    return []


def _install(userland: Userland, folder: Path, root: Path) -> None:
    """The wheel of this tree with its extras, as pip on the board would choose them."""
    wheels = folder / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "wheel", "--no-deps", "--wheel-dir", str(wheels), str(REPOSITORY)])
    (wheel,) = wheels.glob("edgefleet-*.whl")
    site, pins = root / SITE, userland.constraints
    wanted = hashlib.sha256(pins.read_bytes() + userland.extras.encode()).hexdigest()
    stamp = folder / "installed"
    install = [*pip, "install", *_target(userland), f"--target={site}"]
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(site, ignore_errors=True)
        if userland.closure is None:
            _run([*install, f"--constraint={pins}", f"{wheel}[{userland.extras}]"])
        else:
            _run([*install, "--no-deps", f"--requirement={pins}", str(wheel)])
        stamp.write_text(wanted)
    else:
        _run([*install, "--no-deps", "--upgrade", str(wheel)])


def _target(userland: Userland) -> list[str]:
    """Options of pip for the wheels of another machine: those whose glibc is no newer than the userland's."""
    glibcs = [f"manylinux_2_{minor}_{userland.machine}" for minor in range(userland.glibc_minor, 16, -1)]
    platforms = [f"--platform={each}" for each in (*glibcs, f"manylinux2014_{userland.machine}")]
    return ["--only-binary=:all:", "--implementation=cp", f"--python-version={userland.python}", *platforms]


def command(root: Path, board: Board, folder: Path, arguments: Sequence[str]) -> list[str]:
    """Command line that runs `python3 ARGUMENTS` on the board; `folder` of this machine is the same there."""
    (root / folder.relative_to("/")).mkdir(parents=True, exist_ok=True)
    cpuinfo, model = folder / f"{board.qemu_cpu}.cpuinfo", folder / f"{board.qemu_cpu}.model"
    cpuinfo.write_text(_cpuinfo(board))
    model.write_bytes(board.model.encode() + b"\0")
    script = f"""set -e
mount --make-rprivate /
mount -t proc proc {root}/proc
mount --bind {cpuinfo} {root}/proc/cpuinfo
mount -t sysfs -o ro sysfs {root}/sys
mount -t tmpfs tmpfs {root}/sys/firmware
mkdir -p {root}/sys/firmware/devicetree/base
cp {model} {root}/sys/firmware/devicetree/base/model
mount --bind /dev {root}/dev
mount --bind {folder} {root}{folder}
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin PYTHONPATH=/{SITE} QEMU_CPU={board.qemu_cpu} LANG=C.UTF-8 HOME=/root \\
  chroot {root} /usr/bin/python3 "$@"
"""
    return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script, "sh", *arguments]


def run(root: Path, board: Board, folder: Path, *arguments: str) -> str:
    """Run `python3 ARGUMENTS` on the board; what it printed. Raises RuntimeError when it fails."""
    return _run(command(root, board, folder, arguments))


def _cpuinfo(board: Board) -> str:
    """What the kernel of a Raspberry Pi says (arch/arm64/kernel/cpuinfo.c, arch/arm/kernel/setup.c)."""
    named = "" if board.level > 7 else f"model name\t: ARMv{board.level} Processor rev 1 (v{board.level}l)\n"
    cores = [
        f"processor\t: {core}\n{named}BogoMIPS\t: 108.00\nFeatures\t: {board.features}\nCPU implementer\t: 0x41\n"
        f"CPU architecture: {board.level}\nCPU variant\t: 0x1\nCPU part\t: {board.part}\nCPU revision\t: 1\n"
        for core in range(board.cores)
    ]
    return "\n".join([*cores, f"Model\t\t: {board.model}\n"])


def _run(arguments: Sequence[str]) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=4 * TIMEOUT_S, check=False)
    if done.returncode:
        raise RuntimeError(f"{arguments[0]} ended with {done.returncode}: {(done.stdout + done.stderr)[-3000:]}")
    return done.stdout
