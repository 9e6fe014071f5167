"""What may happen to a device in each state of its lifecycle: the journal or a slot damaged, a full disk, the clock.

In this process, on a clock set by hand. Afterwards it infers with a verified variant, or has none and says why.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.installer_lab import FAILED, OWN, PASSED, House
from edgefleet.protocol.messages import State
from edgefleet_agent import supervise
from edgefleet_agent.lifecycle import INSTALLING
from edgefleet_agent.slots import SlotDamagedError
from edgefleet_agent.state_folder import open_folder
from faults.matrix import sampled
from faults.pulling import PULLED, PassedSelfTest, PullingHouse, fill

AT_REST = (State.IDLE, State.COMMITTED, State.ROLLED_BACK, State.FAILED, State.NO_MODEL)
RUNS_ALONE = (State.COMMITTED, State.ROLLED_BACK, State.FAILED)
JUMPS_S = {"forward": 365 * 86400.0, "back": -365 * 86400.0}


@dataclass(frozen=True, slots=True)
class Case:
    """What happens, and in which state."""

    state: State
    what: str

    def __str__(self) -> str:
        return f"{self.what} in {self.state}"


def _flipped(content: bytes, seed: str) -> bytes:
    rng, changed = random.Random(seed), bytearray(content)
    changed[rng.randrange(len(content.rstrip(b"\n")))] ^= 1 << rng.randrange(8)
    return bytes(changed)


DAMAGE: dict[str, Callable[[bytes, str], bytes]] = {
    "cut": lambda content, _: content[: len(content.rstrip(b"\n")) // 2],
    "flipped": _flipped,
    "empty": lambda _content, _: b"",
    "zeros": lambda content, _: bytes(len(content)),
}


def infers_or_says_why(house: House) -> None:
    """What runs is verified, and `current` leads to it; or the device says why nothing does."""
    entry = house.journal.entry
    if entry.active is not None:
        house.slots.check(entry.active.digest)
        assert house.current == house.slots.path(entry.active.digest)
    elif house.state is not State.IDLE:
        assert house.installer.state().reason is not None


# The journal ------------------------------------------------------------------------------------------

JOURNALS = [Case(state, what) for state in State for what in DAMAGE]


@pytest.mark.parametrize("case", sampled("journal", JOURNALS))
@pytest.mark.parametrize("first", [False, True], ids=["", "first install"])
def test_a_damaged_journal(case: Case, first: bool, tmp_path: Path) -> None:
    house = House(tmp_path)
    if not first:
        house.commit_old()
    # Nothing but what lies on the disk: a first install has nothing to go back to.
    reached = case.state if not (first and case.state is State.ROLLING_BACK) else State.PROBATION
    house.bring_to(reached)
    house._leave_the_disk()
    path = house.folder / "journal.json"
    path.write_bytes(DAMAGE[case.what](path.read_bytes(), str(case)))
    opened = open_folder(house.folder, OWN)
    opened.lock.close()
    assert opened.said[0][0] == "damage"
    house.again()
    house.turn()
    infers_or_says_why(house)
    runs = house.new if first and reached is State.PROBATION else None if first else house.old
    assert house.active == runs
    if runs is None:
        assert house.state is State.NO_MODEL
        assert "the journal could not be read" in str(house.journal.entry.reason)


# The slot ---------------------------------------------------------------------------------------------

SLOTS = [
    Case(state, f"{name} {what}")
    for state in (*RUNS_ALONE, *INSTALLING, State.PROBATION, State.ROLLING_BACK)
    for name in ("manifest.json", "model", "variant.json", "golden.npz")
    for what in (*DAMAGE, "gone")
]


@pytest.mark.parametrize("case", sampled("slot", SLOTS))
def test_a_damaged_slot(case: Case, tmp_path: Path) -> None:
    """Found when its worker is to be started: what runs is pulled again, or gone back from."""
    house = House(tmp_path)
    house.commit_old(case.state if case.state in RUNS_ALONE else State.COMMITTED)
    if case.state not in RUNS_ALONE:
        house.bring_to(case.state)
    digest = str(house.active)
    name, _, what = case.what.partition(" ")
    file = next(house.slots.path(digest).glob("*.bin" if name == "model" else name))
    before = file.read_bytes()
    if what == "gone":
        file.unlink()
    else:
        file.write_bytes(DAMAGE[what](before, str(case)))
    with pytest.raises(SlotDamagedError) as found:
        house.slots.check(digest)
    house.installer.slot_damaged(str(found.value))
    house.runner.prepared = True
    if case.state in INSTALLING:
        house.installs[-1].failure = "self-test: it ended with exit code 1"
    for _ in range(3):
        house.turn()
    infers_or_says_why(house)
    if house.state is State.RESOLVING:
        assert (house.installs[-1].only, digest) == (house.old, house.old)
        house.put(house.old)
        house.installs[-1].state = State.ACTIVATING
        house.turn()
    infers_or_says_why(house)
    ends = State.FAILED if case.state in INSTALLING else case.state
    assert house.state is (State.ROLLED_BACK if digest == house.new else ends)
    assert house.active == house.old


# The disk ---------------------------------------------------------------------------------------------

DISKS = [Case(state, "disk full") for state in State]


@pytest.mark.parametrize("case", sampled("full disk", DISKS))
def test_a_full_disk(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mount_disk: Callable[[Path, int], Path]
) -> None:
    """Not a byte is free on it; then it is freed, and the device goes on without a restart."""
    monkeypatch.setattr(supervise, "self_test", lambda *_: PassedSelfTest())
    mount_disk(tmp_path / "state", 1)
    state = case.state
    house = PullingHouse(tmp_path) if state in PULLED else House(tmp_path)
    house.commit_old()
    house.bring_to(state)
    filler = fill(house.folder)
    house.runner.prepared = True
    if state is State.BENCHMARKING:
        house.installs[-1].state = State.ACTIVATING
    house.watch.verdict = PASSED if state is State.PROBATION else house.watch.verdict
    if isinstance(house, PullingHouse):
        house.until(State.FAILED)
    for _ in range(3):
        house.turn()
    ends = {State.PROBATION: State.COMMITTED, State.ROLLING_BACK: State.ROLLED_BACK}
    assert house.state is (State.FAILED if state in INSTALLING else ends.get(state, state))
    if state in INSTALLING:
        assert any(said in str(house.journal.entry.reason) for said in ("insufficient_storage", "No space left"))
    # The disk knows it all although it is full.
    assert house.journal.is_written
    infers_or_says_why(house)
    filler.unlink()
    house.again()
    infers_or_says_why(house)
    if isinstance(house, PullingHouse):
        house.installer.begin(house.desired(3))
        house.until(State.PROBATION)
        assert house.active == house.new


# The clock --------------------------------------------------------------------------------------------

CLOCKS = [Case(state, jump) for state in (*INSTALLING, State.PROBATION) for jump in JUMPS_S]


@pytest.mark.parametrize("case", sampled("clock", CLOCKS))
def test_the_clock_jumps_in(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every limit is on running time: a jump neither ends a state nor draws it out."""
    house = House(tmp_path)
    house.commit_old()
    house.bring_to(case.state)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + JUMPS_S[case.what])
    house.runner.prepared = False
    for _ in range(5):
        house.turn(1.0)
    assert house.state is case.state
    house.installer.close()
    house.again()
    if case.state is State.PROBATION:
        assert house.state is State.PROBATION
        assert house.journal.entry.probation_s <= 10.0
        house.watch.verdict = FAILED
        house.turn()
        house.turn()
        assert (house.state, house.active) == (State.ROLLED_BACK, house.old)
    else:
        assert house.installs[-1].resumed
        house.pass_time(house.desired().install_timeout_s + 20)
        assert (house.state, house.active) == (State.FAILED, house.old)
        assert "not finished within" in str(house.journal.entry.reason)
    infers_or_says_why(house)
