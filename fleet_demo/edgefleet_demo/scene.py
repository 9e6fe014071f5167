"""What the demo shows: a fleet of three devices, and the files that they and the packager need.

It writes settings and data; nothing is started here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgefleet_demo import digits

FLEET = "demo"
WINDOW_S = 2.0
RATE_PER_S = 200.0
PROBATION_S = 10.0
UNMEASURED = "candidates = 1\nthreads = [1]\n"
"""The first choice of the profile in one setting: there is nothing to benchmark."""
CALIBRATION_SAMPLES = 256


@dataclass(frozen=True, slots=True)
class DemoDevice:
    """One device of the demo."""

    name: str
    profile: str


DEVICES = (
    DemoDevice("pi-kitchen", "raspberry-pi-5"),
    DemoDevice("nuc-office", "intel-nuc"),
    DemoDevice("pc-hall", "generic-x86-64"),
)


@dataclass(frozen=True, slots=True)
class DataFiles:
    """.npz files in the model's own layout: x float32 [N, 1, 8, 8], y labels [N]."""

    calibration: Path
    heldout: Path


def write_data(folder: Path) -> DataFiles:
    """Write calibration inputs (from the training part) and the held-out digits."""
    folder.mkdir(parents=True, exist_ok=True)
    data = digits.load()
    files = DataFiles(folder / "calibration.npz", folder / "heldout.npz")
    np.savez(files.calibration, x=data.train_x[:CALIBRATION_SAMPLES])
    np.savez(files.heldout, x=data.heldout_x, y=data.heldout_y)
    return files


def write_settings(
    folder: Path,
    device: DemoDevice,
    source: Path,
    *,
    window_s: float = WINDOW_S,
    rate_per_s: float = RATE_PER_S,
    probation_s: float = PROBATION_S,
    selection: str = UNMEASURED,
    more: str = "",
) -> Path:
    """Write an agent's settings file, beside its identity folder and a state folder of its own.

    `selection` is TOML of that section, `more` comes last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "agent.toml"
    # A JSON string is a TOML basic string.
    path.write_text(
        f"profile = {json.dumps(device.profile)}\n"
        'identity = "identity"\n'
        'state_folder = "state"\n'
        f'[source]\nkind = "replay"\npath = {json.dumps(str(source.resolve()))}\nrate_per_s = {rate_per_s}\n'
        f"[telemetry]\nwindow_s = {window_s}\n[selection]\n{selection}"
        f"[probation]\ndeadline_s = {probation_s}\n{more}",
        encoding="utf-8",
    )
    return path
