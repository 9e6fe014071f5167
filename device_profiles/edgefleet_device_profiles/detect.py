"""What this machine is: processor, memory, board and installed runtimes, read from /proc, /sys and package metadata.

Imports no runtime and starts nothing; every path lies below a root that tests can replace.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from edgefleet_device_profiles.profile import Profile, Runtime

# uname -m → the architecture names of OCI (and Go).
OCI_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "armv6l": "arm"}

# Runtime → (distribution, form of its version). The first one found decides: LiteRT succeeded tflite-runtime and began
# to count anew, so that its 2.3 is newer than the other's 2.14; as a local version the old number sorts below all.
RUNTIME_DISTRIBUTIONS: dict[Runtime, tuple[tuple[str, str], ...]] = {
    Runtime.LITERT: (("ai-edge-litert", "{}"), ("tflite-runtime", "0+tflite.{}")),
    Runtime.ONNXRUNTIME: (("onnxruntime", "{}"),),
    Runtime.OPENVINO: (("openvino", "{}"),),
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


def _architecture(machine: str) -> str:
    """OCI name; a 32-bit userland on a 64-bit kernel runs 32-bit files."""
    found = OCI_ARCHITECTURES.get(machine, machine)
    return "arm" if found == "arm64" and sys.maxsize < 2**32 else found


def detect(root: Path = Path("/")) -> MachineFacts:
    """Read this machine's facts below `root` (the host's own `/`, or a recorded tree); never raises OSError."""
    cpuinfo = _text(root / "proc/cpuinfo") or ""
    memory = _field(_text(root / "proc/meminfo") or "", "MemTotal") or "0 kB"
    release = _field((_text(root / "etc/os-release") or "").replace("=", ":"), "PRETTY_NAME")
    device_tree = _text(root / "proc/device-tree/model")
    return MachineFacts(
        architecture=_architecture(platform.machine()),
        cpu_model=_field(cpuinfo, "model name", "Model", "Hardware") or "unknown",
        cores=max(1, sum(line.startswith("processor") for line in cpuinfo.splitlines())),
        memory_mib=int(memory.split()[0]) // 1024,
        board=device_tree or _text(root / "sys/class/dmi/id/product_name"),
        serial=_field(cpuinfo, "Serial") or _text(root / "proc/device-tree/serial-number"),
        os=(release or "unknown").strip('"'),
        python=platform.python_version(),
        runtimes=installed_runtimes(),
    )


def mismatch(profile: Profile, facts: MachineFacts) -> str | None:
    """Why this machine is not the profile's board, or None when it is.

    A generic profile names no board, so only the processor's architecture counts.
    """
    if facts.architecture != profile.cpu.architecture:
        return f"the processor is {facts.architecture}, the profile's is {profile.cpu.architecture}"
    wanted = profile.board.device_tree_models + profile.board.dmi_products
    if wanted and not any((facts.board or "").startswith(prefix) for prefix in wanted):
        return f"the board says {facts.board or 'nothing'}, the profile's says {wanted[0]}"
    return None
