"""A disk that refuses a call once, or from then on, while a newer version is installed: the older one runs on.

strace returns the error in the disk's place. What is refused is said; what was refused once may also have been
tried again.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from edgefleet.package.layout import Package
from faults.matrix import sampled
from faults.patient import Patient, meddled
from faults.test_power_cuts import SLOT, STAGED

ONCE, ALWAYS = "1", "1+"


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error in answer to a call on one file."""

    call: str
    file: str
    error: str
    when: str
    """`n`: the n-th time; `n+`: from then on."""
    refused: bool = True
    """The installation must fail with the disk's reason; else it may also succeed."""

    def __str__(self) -> str:
        return f"{self.call} {self.file} {self.error} {self.when}"

    def command(self, patient: Patient, package: Package) -> list[str]:
        """What goes in front of the agent's command."""
        path = patient.state / self.file.format(digest=package.index.manifests[0].digest[7:39])
        return meddled(path, self.call, f"error={self.error}:when={self.when}")


_STAGED_CALLS = (
    ("fallocate", "model.onnx.part"),
    ("fallocate", "golden.npz.part"),
    ("pwrite64", "model.onnx.part"),
    ("fsync", "model.onnx.part"),
    ("fsync", "golden.npz.part"),
    ("rename", "model.onnx.part"),
    ("fsync", ".blocks.sha256.tmp"),
    ("fsync", ".manifest.json.tmp"),
    ("write", ".manifest.json.tmp"),
    ("rename", ".manifest.json.tmp"),
)
REFUSALS = [
    *(
        Refusal(call, f"{STAGED}/{file}", error, when)
        for call, file in _STAGED_CALLS
        for error in ("ENOSPC", "EIO")
        for when in (ONCE, ALWAYS)
    ),
    *(Refusal("rename", STAGED, error, when) for error in ("ENOSPC", "EIO") for when in (ONCE, ALWAYS)),
    *(
        Refusal(call, f"{SLOT}/..installed.json.tmp", error, ONCE)
        for call in ("fsync", "write", "rename")
        for error in ("ENOSPC", "EIO")
    ),
    # Those that the running variant has passed before: its own activation is the first of each.
    *(Refusal("rename", ".current.new", error, "2+") for error in ("ENOSPC", "EIO", "EROFS")),
    *(
        Refusal(call, ".journal.json.tmp", error, str(number), refused=False)
        for call in ("fsync", "write", "rename")
        for error in ("ENOSPC", "EIO")
        for number in (9, 11, 13)
    ),
    *(
        Refusal(call, "spool.sqlite-wal", error, str(number), refused=False)
        for call in ("fdatasync", "pwrite64")
        for error in ("ENOSPC", "EIO")
        for number in (12, 14)
    ),
    *(
        Refusal("fsync", ".", error, str(number), refused=False)
        for error in ("ENOSPC", "EIO")
        for number in range(10, 17)
    ),
]
# Refused until the disk is mended: calls, files, which of them on.
MENDED = [
    Refusal(call, file, error, when)
    for call, file, when in (
        ("fsync", "trust/.clock-floor.tmp", ALWAYS),
        ("fsync", ".journal.json.tmp", "3+"),
        ("fdatasync", "spool.sqlite-wal", "12+"),
        ("pwrite64", "spool.sqlite-wal", "24+"),
        ("pwrite64", "spool.sqlite-wal", ALWAYS),
    )
    for error in ("ENOSPC", "EIO")
]
SAYS = ("No space left on device", "Input/output error", "database or disk is full", "disk I/O error")


@pytest.fixture(autouse=True)
def _strace(need: Callable[[bool, str], None]) -> None:
    need(shutil.which("strace") is not None, "strace (a system package)")


@pytest.mark.parametrize("refusal", sampled("disk", REFUSALS))
def test_a_disk_refuses(refusal: Refusal, first: Package, package: Package, patient: Patient) -> None:
    patient.prepare()
    agent = patient.start(*refusal.command(patient, package))
    if patient.outcome(patient.deploy(first)) != "committed":
        # On a slow machine more is journalled: the one call that is refused came before.
        assert not refusal.refused
        assert patient.outcome(patient.deploy(first)) == "committed"
    generation = patient.deploy(package)
    outcome = patient.outcome(generation)
    assert agent.exit_code is None
    if refusal.refused or outcome == "failed":
        patient.assert_refused(first, os.strerror(getattr(errno, refusal.error)), generation)
    else:
        patient.assert_committed(package)


@pytest.mark.parametrize("refusal", sampled("mended", MENDED))
def test_a_disk_is_mended(refusal: Refusal, first: Package, patient: Patient) -> None:
    """While it refuses it costs what it must, and is said; afterwards all goes on, without a restart."""
    patient.prepare()
    agent = patient.start(*refusal.command(patient, first))
    generation = patient.deploy(first)

    def said() -> list[str]:
        lines = agent.log_file.read_text().splitlines()
        return [line for line in lines if any(text in line for text in SAYS)]

    patient.lab.wait(lambda: bool(said()), "a word of the disk")
    if "spool" in refusal.file:
        assert patient.outcome(generation) == "committed"
        assert len(said()) == 1
    else:
        assert patient.lab.store.outcome(patient.name, generation) is None
    patient.mend()
    assert patient.outcome(generation) == "committed"
    patient.assert_committed(first)
