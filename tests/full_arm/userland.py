"""A Debian userland for 64-bit ARM on this machine, under user-mode emulation, with the agent installed in it.

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
SUITE = "bookworm"
PYTHON = "3.11"
PACKAGES = "python3,libgomp1,libstdc++6,dash,libc-bin,coreutils,bash"
EXTRAS = "agent,litert,onnx"
GLIBC_MINORS = (36, 35, 34, 31, 28, 27, 17)
SITE = "opt/site"
TOOLS = ("qemu-aarch64-static", "update-binfmts", "mmdebstrap")
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
    cores: int = 4


PI_5 = Board(
    "Raspberry Pi 5 Model B Rev 1.0", "cortex-a76", "0xd0b",
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
)  # fmt: skip
PI_4 = Board("Raspberry Pi 4 Model B Rev 1.4", "cortex-a72", "0xd08", "fp asimd evtstrm crc32 cpuid")


def missing() -> str | None:
    """Why there can be no emulation here, or None."""
    if os.geteuid() != 0:
        return "it needs root"
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        return f"{', '.join(absent)}: not installed"
    _enable()
    return None if Path("/proc/sys/fs/binfmt_misc/qemu-aarch64").exists() else "the kernel has no binfmt_misc"


def _enable() -> None:
    """Have the kernel start ARM programs through QEMU."""
    if not Path("/proc/sys/fs/binfmt_misc/register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", "/proc/sys/fs/binfmt_misc"], check=False)
    subprocess.run(["update-binfmts", "--enable", "qemu-aarch64"], check=False, capture_output=True)


def build(folder: Path) -> Path:
    """Make the userland in `folder` (or take the one that is there) and install the agent's wheel; returns its root."""
    root, stamp = folder / "root", folder / "made"
    wanted = hashlib.sha256(f"{SUITE} {PACKAGES}".encode()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _run([
            "mmdebstrap", "--quiet", "--arch=arm64", "--variant=extract",
            "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", f"--include={PACKAGES}", SUITE, str(root), *_mirror(),
        ])  # fmt: skip
        _run(["chroot", str(root), "/sbin/ldconfig"])
        stamp.write_text(wanted)
    _install(folder, root)
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


def _install(folder: Path, root: Path) -> None:
    """The wheel of this tree with its extras, as pip on the board would choose them."""
    wheels = folder / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "wheel", "--no-deps", "--wheel-dir", str(wheels), str(REPOSITORY)])
    (wheel,) = wheels.glob("edgefleet-*.whl")
    site, constraints = root / SITE, REPOSITORY / "constraints.txt"
    wanted = hashlib.sha256(constraints.read_bytes() + EXTRAS.encode()).hexdigest()
    stamp = folder / "installed"
    targets = [*(f"manylinux_2_{minor}_aarch64" for minor in GLIBC_MINORS), "manylinux2014_aarch64"]
    platform = [f"--platform={target}" for target in targets]
    options = [
        "--only-binary=:all:", "--implementation=cp", f"--python-version={PYTHON}", *platform, f"--target={site}",
    ]  # fmt: skip
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(site, ignore_errors=True)
        _run([*pip, "install", *options, f"--constraint={constraints}", f"{wheel}[{EXTRAS}]"])
        stamp.write_text(wanted)
    else:
        _run([*pip, "install", *options, "--no-deps", "--upgrade", str(wheel)])


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
    """What the kernel of a 64-bit Raspberry Pi says (arch/arm64/kernel/cpuinfo.c)."""
    cores = [
        f"processor\t: {core}\nBogoMIPS\t: 108.00\nFeatures\t: {board.features}\nCPU implementer\t: 0x41\n"
        f"CPU architecture: 8\nCPU variant\t: 0x1\nCPU part\t: {board.part}\nCPU revision\t: 1\n"
        for core in range(board.cores)
    ]
    return "\n".join([*cores, f"Model\t\t: {board.model}\n"])


def _run(arguments: Sequence[str]) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=4 * TIMEOUT_S, check=False)
    if done.returncode:
        raise RuntimeError(f"{arguments[0]} ended with {done.returncode}: {(done.stdout + done.stderr)[-3000:]}")
    return done.stdout
