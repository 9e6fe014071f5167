"""An agent killed at each step of an installation that must survive a power cut, with strace's help.

The step's own call never happens; the next start finds what lies on the disk then. Errors of a disk are elsewhere.
"""

from __future__ import annotations

import re
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgefleet.package.layout import Package
from edgefleet.protocol.messages import State
from edgefleet_agent import lifecycle
from edgefleet_agent.lifecycle import Trigger
from faults.matrix import sampled
from faults.patient import Patient, meddled

STAGED = "staging/{digest}"
SLOT = "slots/{digest}"


def way(*triggers: Trigger) -> list[State]:
    """The states of an installation after `idle`: each is journalled when it is entered."""
    states = [State.IDLE]
    for trigger in triggers:
        states.append(lifecycle.after(states[-1], trigger))
    return states[1:]


_TO_PROBATION = (
    Trigger.ACCEPTED, *(Trigger.DONE,) * 4, Trigger.NOTHING_TO_COMPARE, Trigger.DONE,
)  # fmt: skip
# Before them the journal itself, and in each start the number of its connection.
WRITES = 2 + len(way(*_TO_PROBATION, Trigger.DEADLINE))
WRITES_BACK = 1 + len(way(*_TO_PROBATION, Trigger.DEGRADED, Trigger.DONE))
# (call, file below the state folder, how often somebody comes by it). A rename is known by what is renamed; the trust
# process's own temporary files have names by chance, and are left out.
STEPS: tuple[tuple[str, str, int], ...] = (
    ("fsync", ".journal.json.tmp", WRITES),
    ("rename", ".journal.json.tmp", WRITES),
    # On its way to become the room for the next.
    ("rename", ".journal.json.old", WRITES),
    # Of each journal, of the link and of the history.
    ("fsync", ".", WRITES + 2),
    ("fsync", ".history.json.tmp", 1),
    ("rename", ".history.json.tmp", 1),
    ("fdatasync", ".", 1),
    ("fdatasync", "spool.sqlite", 1),
    ("fdatasync", "spool.sqlite-journal", 2),
    ("fdatasync", "spool.sqlite-wal", 8),
    ("unlink", "trust/metadata/root.json", 1),
    ("fsync", "trust/.clock-floor.tmp", 1),
    ("rename", "trust/.clock-floor.tmp", 1),
    ("fsync", "trust", 1),
    ("fallocate", f"{STAGED}/model.onnx.part", 1),
    ("fallocate", f"{STAGED}/variant.json.part", 1),
    ("fallocate", f"{STAGED}/golden.npz.part", 1),
    ("pwrite64", f"{STAGED}/model.onnx.part", 5),
    ("pwrite64", f"{STAGED}/variant.json.part", 1),
    ("pwrite64", f"{STAGED}/golden.npz.part", 1),
    ("fsync", f"{STAGED}/model.onnx.part", 1),
    ("fsync", f"{STAGED}/variant.json.part", 1),
    ("fsync", f"{STAGED}/golden.npz.part", 1),
    ("rename", f"{STAGED}/model.onnx.part", 1),
    ("rename", f"{STAGED}/variant.json.part", 1),
    ("rename", f"{STAGED}/golden.npz.part", 1),
    ("fsync", f"{STAGED}/.blocks.sha256.tmp", 1),
    ("rename", f"{STAGED}/.blocks.sha256.tmp", 1),
    ("fsync", STAGED, 2),
    ("fsync", f"{STAGED}/.manifest.json.tmp", 1),
    ("rename", f"{STAGED}/.manifest.json.tmp", 1),
    ("rename", STAGED, 1),
    ("fsync", "slots", 1),
    ("fsync", "staging", 1),
    ("fsync", f"{SLOT}/..installed.json.tmp", 2),
    ("rename", f"{SLOT}/..installed.json.tmp", 2),
    ("fsync", SLOT, 2),
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

    def command(self, state: Path, digest: str, before: str = "") -> list[str]:
        """strace, which kills whoever makes that call before it is made."""
        path = state / self.file.format(digest=digest, before=before)
        return meddled(path, self.call, f"signal=KILL:when={self.number}")


TRACED = ("fsync", "fdatasync", "rename", "fallocate", "pwrite64", "unlink")
NOT_CUT = {
    # It means nothing after a restart.
    ("rename", ".status.json.tmp"),
    # What SQLite writes before the fdatasync that makes it count.
    *(("pwrite64", f"spool.sqlite{suffix}") for suffix in ("", "-journal", "-shm", "-wal")),
}
"""Of the calls on the state folder but unlink."""
TIME_ADDS = {
    ("fsync", ".journal.json.tmp"), ("rename", ".journal.json.tmp"), ("rename", ".journal.json.old"), ("fsync", "."),
    ("fdatasync", "spool.sqlite-wal"), ("fdatasync", "."),
}  # fmt: skip
"""A slow machine journals the time that passed, and closes more windows."""
CUTS = [Cut(call, file, number + 1) for call, file, times in STEPS for number in range(times)]
BEFORE = "slots/{before}"
"""Of the variant that is gone back to."""
WAY_BACK: tuple[tuple[str, str, int], ...] = (
    ("fsync", ".journal.json.tmp", WRITES_BACK),
    ("rename", ".journal.json.tmp", WRITES_BACK),
    ("rename", ".journal.json.old", WRITES_BACK),
    ("fsync", ".", WRITES_BACK + 3),
    ("fsync", f"{SLOT}/..installed.json.tmp", 1),
    ("rename", ".current.new", 2),
    ("fsync", ".history.json.tmp", 1),
    ("fsync", f"{BEFORE}/..installed.json.tmp", 1),
    ("rename", f"{BEFORE}/..installed.json.tmp", 1),
    ("fsync", BEFORE, 1),
)
CUTS_BACK = [Cut(call, file, number + 1) for call, file, times in WAY_BACK for number in range(times)]
PROBATION_S = 60.0
"""Long enough for a verdict on any machine."""


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


@pytest.mark.full
def test_the_steps_are_those_of_a_traced_installation(package: Package, patient: Patient, tmp_path: Path) -> None:
    """None is missing, and none is gone by less often than it is cut."""
    log = tmp_path / "calls"
    patient.prepare()
    patient.start("strace", "-D", "-I1", "-f", "-qq", "-y", "-s0", "-o", str(log), "-e", f"trace={','.join(TRACED)}")
    assert patient.outcome(patient.deploy(package)) == "committed"
    traced = calls_in(log, patient.state)
    steps = {(call, file.format(digest=slot_of(package))): times for call, file, times in STEPS}
    assert {step for step in set(traced) - set(steps) if step[0] != "unlink"} == NOT_CUT
    assert {step: traced[step] for step, times in steps.items() if traced[step] < times} == {}
    assert {step for step, times in steps.items() if traced[step] > times and step[0] != "unlink"} <= TIME_ADDS


def calls_in(log: Path, state: Path) -> Counter[tuple[str, str]]:
    """(call, file) → how often a thread made it, of the one that did so most: strace counts for each thread."""
    threads: Counter[tuple[str, str, str]] = Counter()
    line = re.compile(r'(\d+) +(\w+)\((?:\d+<|")([^>"]*)')
    for thread, call, path in line.findall(log.read_text()):
        # The trust process's own temporary files have names by chance.
        if (path == str(state) or path.startswith(f"{state}/")) and "/trust/metadata/tmp" not in path:
            threads[thread, call, str(Path(path).relative_to(state))] += 1
    found: Counter[tuple[str, str]] = Counter()
    for (_, call, file), times in threads.items():
        found[call, file] = max(found[call, file], times)
    return found


def slot_of(package: Package) -> str:
    """Name of the folder of its only variant."""
    return package.index.manifests[0].digest.removeprefix("sha256:")[:32]


@pytest.mark.parametrize("cut", sampled("way back", CUTS_BACK))
def test_a_power_cut_on_the_way_back(cut: Cut, first: Package, degrading: Package, patient: Patient) -> None:
    """From the deployment of a variant that fails at work to the return of the one before."""
    patient.start()
    assert patient.outcome(patient.deploy(first)) == "committed"
    patient.stop()
    patient.probation_s = PROBATION_S
    agent = patient.start(*cut.command(patient.state, slot_of(degrading), slot_of(first)))
    bad = patient.deploy(degrading) if agent.exit_code is None else None
    assert patient.wait_for_end(bad) == -signal.SIGKILL
    patient.start()
    if bad is None:
        bad = patient.deploy(degrading)
    assert patient.outcome(bad) == "rolled_back"
    patient.assert_rolled_back(first, bad)


def test_an_agent_that_is_killed_three_times_on_probation_goes_back(
    first: Package, package: Package, patient: Patient
) -> None:
    """As a device does that a new variant makes reboot for ever."""
    patient.start()
    assert patient.outcome(patient.deploy(first)) == "committed"
    patient.stop()
    patient.probation_s = 3600.0
    patient.start()
    generation = patient.deploy(package)
    for _ in range(3):
        patient.lab.wait(lambda: patient.state_of(generation) == "probation", "the probation")
        patient.stop()
        patient.start()
    assert patient.outcome(generation) == "rolled_back"
    patient.assert_rolled_back(first, generation)
