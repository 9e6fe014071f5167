"""An agent killed at each step of an installation that must survive a power cut, with strace's help.

The step's own call never happens; the next start finds what lies on the disk then. Errors of a disk are elsewhere.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgefleet.package.layout import Package
from faults.matrix import sampled
from faults.patient import Patient, meddled

STAGED = "staging/{digest}"
SLOT = "slots/{digest}"
# (call, file below the state folder, how often somebody comes by it). A rename is known by what is renamed; the trust
# process's own temporary files have names by chance, and are left out.
STEPS: tuple[tuple[str, str, int], ...] = (
    ("fsync", ".journal.json.tmp", 7),
    ("rename", ".journal.json.tmp", 7),
    ("fsync", ".", 7),
    ("fdatasync", "spool.sqlite-wal", 8),
    ("unlink", "trust/metadata/root.json", 1),
    ("fsync", "trust/.clock-floor.tmp", 1),
    ("rename", "trust/.clock-floor.tmp", 1),
    ("fsync", "trust", 1),
    ("fallocate", f"{STAGED}/model.onnx.part", 1),
    ("fallocate", f"{STAGED}/golden.npz.part", 1),
    ("pwrite64", f"{STAGED}/model.onnx.part", 5),
    ("fsync", f"{STAGED}/model.onnx.part", 1),
    ("fsync", f"{STAGED}/golden.npz.part", 1),
    ("rename", f"{STAGED}/model.onnx.part", 1),
    ("rename", f"{STAGED}/golden.npz.part", 1),
    ("fsync", f"{STAGED}/.blocks.sha256.tmp", 1),
    ("rename", f"{STAGED}/.blocks.sha256.tmp", 1),
    ("fsync", STAGED, 2),
    ("fsync", f"{STAGED}/.manifest.json.tmp", 1),
    ("rename", f"{STAGED}/.manifest.json.tmp", 1),
    ("rename", STAGED, 1),
    ("fsync", "slots", 1),
    ("fsync", "staging", 1),
    ("fsync", f"{SLOT}/..installed.json.tmp", 1),
    ("rename", f"{SLOT}/..installed.json.tmp", 1),
    ("fsync", SLOT, 1),
    ("rename", ".current.new", 1),
)


@dataclass(frozen=True, slots=True)
class Cut:
    """The n-th call of a kind on one file."""

    call: str
    file: str
    number: int

    def __str__(self) -> str:
        return f"{self.call} {self.file} {self.number}"

    def command(self, state: Path, digest: str) -> list[str]:
        """strace, which kills whoever makes that call before it is made."""
        path = state / self.file.format(digest=digest)
        return meddled(path, self.call, f"signal=KILL:when={self.number}")


CUTS = [Cut(call, file, number + 1) for call, file, times in STEPS for number in range(times)]


@pytest.fixture(autouse=True)
def _strace(need: Callable[[bool, str], None]) -> None:
    need(shutil.which("strace") is not None, "strace (a system package)")


@pytest.mark.parametrize("cut", sampled("syscalls", CUTS))
def test_a_power_cut_at(cut: Cut, package: Package, patient: Patient) -> None:
    digest = package.index.manifests[0].digest.removeprefix("sha256:")[:32]
    patient.prepare()
    agent = patient.start(*cut.command(patient.state, digest))
    generation = patient.deploy(package) if agent.exit_code is None else None
    if cut.file.startswith("trust"):
        # strace ends every trust process at its first call: the agent goes on without, and says so.
        assert generation is not None
        assert patient.outcome(generation) == "no_model"
        assert agent.exit_code is None
        patient.stop()
        generation = None
    else:
        assert patient.wait_for_end(generation) == -signal.SIGKILL
    patient.start()
    if generation is None:
        generation = patient.deploy(package)
    assert patient.outcome(generation) == "committed"
    patient.assert_committed(package)
