"""The fingerprint of this machine, kept with every latency that was measured on it.

Reads /proc and /sys only; measures nothing.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from edgefleet_device_profiles.detect import detect
from edgefleet_device_profiles.fit import Evidence, fits
from edgefleet_device_profiles.profile import Profile

_GOVERNOR = Path("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


class Host(BaseModel):
    """The machine on which something was measured; only figures with the same digest may be compared."""

    model_config = ConfigDict(frozen=True)

    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    """sha256 of all that stands below, `profile` not counted."""
    architecture: str
    cpu_model: str
    cores: int = Field(ge=1)
    isa: tuple[str, ...] = ()
    board: str | None = None
    kernel: str
    governor: str | None = None
    """How cpufreq chooses the clock; None where the machine does not say, as virtual ones do not."""
    profile: str | None = None
    """The device profile whose own hardware this is; None where only a generic one fits."""


def fingerprint(profiles: Iterable[Profile], root: Path = Path("/")) -> Host:
    """What decides how fast a file runs here; `profiles` are those that it may be of, `root` is for tests."""
    facts = detect(root)
    path = root / _GOVERNOR
    known = {
        "architecture": facts.architecture,
        "cpu_model": facts.cpu_model,
        "cores": facts.cores,
        "isa": facts.isa,
        "board": facts.board,
        "kernel": platform.release(),
        "governor": path.read_text(encoding="ascii").strip() if path.exists() else None,
    }
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
    # That a generic profile fits says little of how fast another machine of its kind is.
    near = [fit.profile for fit in fits(profiles, facts) if fit.evidence in (Evidence.BOARD, Evidence.CLASS)]
    return Host.model_validate({"digest": digest, **known, "profile": near[0] if near else None})
