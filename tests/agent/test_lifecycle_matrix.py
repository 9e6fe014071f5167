"""Every state with everything that may happen in it: where the device ends, and that it infers or says why not."""

from __future__ import annotations

import errno
import os
from itertools import product
from pathlib import Path

import pytest

from agent.installer_lab import DEADLINE_S, FAILED, PASSED, House
from agent.lifecycle_matrix import COMES_TO, Happening
from edgefleet import durable
from edgefleet.protocol.messages import TERMINAL_STATES, State
from edgefleet_agent.journal import Entry, Journal
from edgefleet_agent.lifecycle import INSTALLING, UNINTERRUPTIBLE
from edgefleet_agent.slots import SlotDamagedError

AT_REST = TERMINAL_STATES | {State.IDLE}


def test_the_table_has_every_row() -> None:
    assert set(COMES_TO) == set(product(State, Happening))


@pytest.mark.parametrize(("state", "happening"), COMES_TO, ids=lambda value: value.name.lower())
def test_a_device_comes_to(state: State, happening: Happening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(tmp_path)
    if happening is not Happening.NO_PREVIOUS:
        house.commit_old()
    if not (happening is Happening.NO_PREVIOUS and state is State.ROLLING_BACK):
        house.bring_to(state)
        assert house.state is state
    else:
        house.bring_to(State.PROBATION)
    HAPPENS[happening](house, state, monkeypatch)
    assert house.state is COMES_TO[state, happening], house.journal.entry.reason
    assert_sound(house, state)


def assert_sound(house: House, before: State) -> None:
    """It infers with a verified variant that stays on the disk, or has none and says why; the disk knows it all."""
    for _ in range(3):
        house.turn()
    entry = house.journal.entry
    assert Journal(house.folder, Entry(enrolment=entry.enrolment)).entry == entry
    if entry.active is not None:
        house.slots.check(entry.active.digest)
        assert house.current == house.slots.path(entry.active.digest)
    elif house.state is not State.IDLE:
        assert entry.reason is not None or house.state in INSTALLING or before in (State.IDLE, State.NO_MODEL)
    if entry.previous is not None and entry.restored_to is None:
        assert house.slots.path(entry.previous.active.digest).exists()


def supersede(house: House, state: State, _patch: pytest.MonkeyPatch) -> None:
    house.installer.begin(house.desired(3))
    if state in UNINTERRUPTIBLE:
        assert house.state is state
        house.runner.prepared = True
        house.turn(0.0)
        house.turn()
    assert house.installs[-1].desired == house.desired(3) == house.journal.entry.desired
    assert house.active in (house.old, None)


def deadline(house: House, state: State, _patch: pytest.MonkeyPatch) -> None:
    limit_s = house.desired().install_timeout_s
    house.pass_time(DEADLINE_S + 10 if state is State.PROBATION else 20.0 if state in UNINTERRUPTIBLE else limit_s + 20)
    if state not in (State.PROBATION, *AT_REST, *UNINTERRUPTIBLE):
        assert "not finished within" in str(house.journal.entry.reason)


def kill(house: House, state: State, _patch: pytest.MonkeyPatch) -> None:
    house.again()
    house.turn()
    if state in INSTALLING:
        assert house.installs[-1].resumed
        assert house.active == house.old


def disk_full(house: House, state: State, patch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with patch.context() as during:
        during.setattr(durable, "write_file", full)
        during.setattr(Path, "symlink_to", full)
        house.runner.prepared = True
        if state in INSTALLING and state is not State.ACTIVATING:
            house.installs[-1].failure = "insufficient_storage: No space left on device"
        if state is State.PROBATION:
            house.watch.verdict = PASSED
        for _ in range(3):
            house.turn()
    if state in INSTALLING:
        assert "insufficient_storage" in str(house.journal.entry.reason)
    house.slots.settle(house.active or house.old)


def no_previous(house: House, state: State, _patch: pytest.MonkeyPatch) -> None:
    fail(house, state)


def corrupt_previous(house: House, state: State, _patch: pytest.MonkeyPatch) -> None:
    house.damage(house.old)
    if house.active == house.old:
        # Its worker is about to be started, and finds it out.
        with pytest.raises(SlotDamagedError) as found:
            house.slots.check(house.old)
        house.installer.slot_damaged(str(found.value))
    fail(house, state)
    if state not in (State.IDLE, State.NO_MODEL):
        assert (house.installs[-1].only, house.active) == (house.old, None)
        assert "damaged, and is pulled again" in str(house.installer.state().reason)


def fail(house: House, state: State) -> None:
    if state in INSTALLING:
        house.installs[-1].failure = "self-test: it ended with exit code 1"
    house.watch.verdict = FAILED
    house.turn()
    house.turn()


HAPPENS = {
    Happening.SUPERSEDE: supersede,
    Happening.DEADLINE: deadline,
    Happening.KILL: kill,
    Happening.DISK_FULL: disk_full,
    Happening.NO_PREVIOUS: no_previous,
    Happening.CORRUPT_PREVIOUS: corrupt_previous,
}
