"""What this machine is: processor, memory, board, accelerators and runtimes, read from /proc, /sys, /dev and metadata.

Imports no runtime, opens no device and starts nothing; every path lies below a root that tests can replace.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from edgefleet_device_profiles.profile import BoardMatch, IsaFeature, Profile, Runtime

# uname -m → the architecture names of OCI (and Go).
OCI_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "armv6l": "arm"}

# Runtime → (distribution, form of its version). The first one found decides: LiteRT succeeded tflite-runtime and began
# to count anew at 1.0, so that its 1.0 is newer than the other's 2.14, which stands as 0.2.14: a variant's or profile's
# ">=0.2.3" takes in that and every LiteRT, its ">=2.1" LiteRT only.
RUNTIME_DISTRIBUTIONS: dict[Runtime, tuple[tuple[str, str], ...]] = {
    Runtime.LITERT: (("ai-edge-litert", "{}"), ("tflite-runtime", "0.{}")),
    Runtime.ONNXRUNTIME: (("onnxruntime", "{}"),),
    Runtime.OPENVINO: (("openvino", "{}"),),
}

# Feature → the flags of /proc/cpuinfo that make it up, all of them; NEON has another name on 32-bit kernels. A level of
# x86-64 is told by the flags that the psABI adds to the one before.
ISA_FLAGS: dict[IsaFeature, tuple[frozenset[str], ...]] = {
    IsaFeature.NEON: (frozenset({"asimd"}), frozenset({"neon"})),
    IsaFeature.FP16: (frozenset({"asimdhp"}),),
    IsaFeature.DOTPROD: (frozenset({"asimddp"}),),
    IsaFeature.I8MM: (frozenset({"i8mm"}),),
    IsaFeature.BF16: (frozenset({"asimd", "bf16"}),),
    IsaFeature.SSE4_2: (frozenset({"sse4_2", "popcnt", "ssse3", "cx16"}),),
    IsaFeature.AVX2: (frozenset({"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe"}),),
    IsaFeature.AVX_VNNI: (frozenset({"avx_vnni"}),),
    IsaFeature.AVX512: (frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),),
    IsaFeature.AVX512_VNNI: (frozenset({"avx512_vnni"}),),
    IsaFeature.AMX: (frozenset({"amx_tile", "amx_int8"}),),
}

# Accelerator → device files that its driver makes.
ACCELERATORS: dict[str, tuple[str, ...]] = {
    "dri": ("dev/dri/renderD*",),
    "accel": ("dev/accel/accel*",),
    "hailo": ("dev/hailo*",),
    "edge-tpu": ("dev/apex_*",),
    "nvidia": ("dev/nvidia[0-9]*", "dev/nvhost-gpu", "dev/nvgpu"),
}


class MachineFacts(BaseModel):
    """What one machine has; sent to the server as part of its facts."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    architecture: str
    cpu_model: str
    cores: int = Field(ge=1, lt=2**31)
    memory_mib: int = Field(ge=0, lt=2**53)
    board: str | None = None
    """Device-tree model or DMI product name."""
    serial: str | None = None
    os: str
    python: str
    runtimes: dict[Runtime, str]
    """Installed runtime → version."""
    isa: tuple[str, ...] = ()
    """Values of IsaFeature that every core has; a newer agent may know more of them."""
    max_clock_mhz: int | None = Field(default=None, ge=1, lt=2**31)
    """Highest clock of the fastest core."""
    accelerators: tuple[str, ...] = ()
    """Names of ACCELERATORS whose device files are there."""


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def _field(text: str, *names: str) -> str | None:
    """Value of the first `name : value` line whose name is asked for, as /proc/cpuinfo writes them."""
    pairs = (line.partition(":") for line in reversed(text.splitlines()))
    fields = {key.strip(): value.strip() for key, _, value in pairs}
    return next((fields[name] for name in names if fields.get(name)), None)


def installed_runtimes() -> dict[Runtime, str]:
    """Runtimes that can be imported here, with their versions, without importing them."""
    found: dict[Runtime, str] = {}
    for runtime, distributions in RUNTIME_DISTRIBUTIONS.items():
        for name, form in distributions:
            try:
                found[runtime] = form.format(importlib.metadata.version(name))
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


def _isa(cpuinfo: str) -> tuple[IsaFeature, ...]:
    """Features whose flags every core lists."""
    pairs = (line.partition(":") for line in cpuinfo.splitlines())
    cores = [set(value.split()) for key, _, value in pairs if key.strip() in {"flags", "Features"}]
    common = set[str]().union(*cores[:1]).intersection(*cores)
    return tuple(feature for feature, choices in ISA_FLAGS.items() if any(flags <= common for flags in choices))


def _max_clock_mhz(root: Path) -> int | None:
    """The highest `cpuinfo_max_freq` (kHz) of cpufreq, which virtual machines do not have."""
    texts = (_text(path) for path in root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq"))
    return max((int(text) // 1000 for text in texts if text and text.isdecimal()), default=0) or None


def _accelerators(root: Path) -> tuple[str, ...]:
    return tuple(name for name, patterns in ACCELERATORS.items() if any(next(root.glob(it), None) for it in patterns))


def _system(root: Path) -> str:
    """Name of the operating system; Android has no os-release, but always its zygote."""
    release = _field((_text(root / "etc/os-release") or "").replace("=", ":"), "PRETTY_NAME")
    if release is None and next(root.glob("system/bin/app_process*"), None):
        return "Android"
    return (release or "unknown").strip('"')


def _architecture(machine: str) -> str:
    """OCI name; a 32-bit userland on a 64-bit kernel runs 32-bit files."""
    found = OCI_ARCHITECTURES.get(machine, machine)
    return "arm" if found == "arm64" and sys.maxsize < 2**32 else found


def _device_tree(root: Path, name: str) -> str | None:
    """A property of the device tree's root; containers often have the one path without the other."""
    return _text(root / "proc/device-tree" / name) or _text(root / "sys/firmware/devicetree/base" / name)


def detect(root: Path = Path("/")) -> MachineFacts:
    """Read this machine's facts below `root` (the host's own `/`, or a recorded tree); never raises OSError."""
    cpuinfo = _text(root / "proc/cpuinfo") or ""
    memory = _field(_text(root / "proc/meminfo") or "", "MemTotal") or "0 kB"
    device_tree = _device_tree(root, "model")
    return MachineFacts(
        architecture=_architecture(platform.machine()),
        cpu_model=_field(cpuinfo, "model name", "Model", "Hardware") or "unknown",
        cores=max(1, sum(line.startswith("processor") for line in cpuinfo.splitlines())),
        memory_mib=int(memory.split()[0]) // 1024,
        board=device_tree or _text(root / "sys/class/dmi/id/product_name"),
        serial=_field(cpuinfo, "Serial") or _device_tree(root, "serial-number"),
        os=_system(root),
        python=platform.python_version(),
        runtimes=installed_runtimes(),
        isa=_isa(cpuinfo),
        max_clock_mhz=_max_clock_mhz(root),
        accelerators=_accelerators(root),
    )


def accepted_board(board: BoardMatch, facts: MachineFacts) -> bool:
    """Whether the machine names one of the boards: the device tree's first words, or the DMI product's beginning."""
    said = facts.board or ""
    # By words: a Raspberry Pi 500 is no Raspberry Pi 5.
    return any(f"{said} ".startswith(f"{model} ") for model in board.device_tree_models) or any(
        said.startswith(product) for product in board.dmi_products
    )


def mismatch(profile: Profile, facts: MachineFacts) -> str | None:
    """Why this machine is not of the profile's kind, or None when it is.

    The architecture, the system and the accelerators that the profile asks for must be there. A machine that names the
    board is one; else a processor of the profile's class may stand for it; a profile that names neither takes all.
    Instruction sets count where the board is not named and the machine tells its own.
    """
    board = profile.board
    if facts.architecture != profile.cpu.architecture:
        return f"the processor is {facts.architecture}, the profile's is {profile.cpu.architecture}"
    if board.systems and not facts.os.startswith(board.systems):
        return f"the system is {facts.os}, the profile's is {board.systems[0]}"
    if absent := [name for name in board.accelerators if name not in facts.accelerators]:
        return f"no {absent[0]} accelerator is there, the profile has one"
    return None if accepted_board(board, facts) else _stranger(profile, facts)


def _stranger(profile: Profile, facts: MachineFacts) -> str | None:
    """Why a machine that does not name the profile's board cannot stand for it, or None."""
    board = profile.board
    if not any(model in facts.cpu_model for model in board.cpu_models):
        if boards := board.device_tree_models + board.dmi_products:
            return f"the board says {facts.board or 'nothing'}, the profile's says {boards[0]}"
        if board.cpu_models:
            return f"the processor is {facts.cpu_model}, the profile's is {board.cpu_models[0]}"
    lacking = [feature for feature in profile.cpu.isa if feature not in facts.isa]
    return f"the processor lacks {', '.join(lacking)}" if facts.isa and lacking else None
