"""From a switch to its outcome: what is kept until when, what a power cut leaves, and what is never tried twice."""

from __future__ import annotations

import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest

from agent.installer_lab import DEADLINE_S, FAILED, OWN, PASSED, House
from edgefleet.errors import StorageError
from edgefleet.protocol.messages import Evidence, State
from edgefleet_agent.installer import MAX_CUT_OFF
from edgefleet_agent.journal import Entry, Journal
from edgefleet_agent.state_folder import StateFolder, open_folder
from edgefleet_agent.watch import FILE_NAME


@pytest.fixture(name="house")
def _house(tmp_path: Path) -> House:
    house = House(tmp_path)
    house.commit_old()
    return house


@pytest.fixture(name="first")
def _first(tmp_path: Path) -> House:
    """Nothing was ever installed."""
    return House(tmp_path)


def reopened(house: House) -> StateFolder:
    """The state folder as the next start finds it when the journal cannot be read."""
    (house.folder / "journal.json").write_bytes(b"\0" * 100)
    state = open_folder(house.folder, OWN)
    state.lock.close()
    return state


@pytest.mark.parametrize("disk_refuses", [False, True])
def test_at_no_moment_does_the_journal_name_a_slot_that_is_gone(
    house: House, monkeypatch: pytest.MonkeyPatch, disk_refuses: bool
) -> None:
    """After a power cut the journal says what runs, and there may be no network to pull anything."""
    gone: list[Path] = []

    def remove(path: Path, **_: object) -> None:
        entry = Journal(house.folder, Entry(enrolment=OWN)).entry
        named = [entry.active, entry.previous and entry.previous.active]
        assert path not in [house.slots.path(one.digest) for one in named if one]
        gone.append(path)

    monkeypatch.setattr(shutil, "rmtree", remove)
    house.bring_to(State.PROBATION)
    house.turn()
    assert gone == []
    house.watch.verdict = PASSED
    with monkeypatch.context() as patch:
        if disk_refuses:
            patch.setattr(Journal, "_write", Mock(side_effect=StorageError("writing", "no space", "free some")))
        house.turn()
        house.turn()
        assert (house.slots.path(house.old) in gone) is not disk_refuses
    house.journal.retry()
    house.turn()
    assert gone == [house.slots.path(house.old)]


def test_the_committed_one_stays_beside_the_one_on_probation_and_goes_with_its_commitment(house: House) -> None:
    house.bring_to(State.PROBATION)
    state = house.installer.state()
    assert state.active is not None
    assert state.previous is not None
    assert (state.active.digest, state.previous.digest, state.evidence) == (house.new, house.old, None)
    assert house.current == house.slots.path(house.new)
    house.watch.verdict = PASSED
    house.turn()
    house.turn()
    state = house.installer.state()
    assert (state.state, state.previous, state.evidence) == (State.COMMITTED, None, Evidence.SUFFICIENT)
    assert not house.slots.path(house.old).exists()
    assert [kind for kind, _ in house.noted] == ["accepted", "activated", "committed"]


def test_at_its_deadline_it_is_committed_with_evidence_insufficient(house: House) -> None:
    house.bring_to(State.PROBATION)
    house.pass_time(DEADLINE_S + 20)
    assert (house.state, house.journal.entry.evidence) == (State.COMMITTED, Evidence.INSUFFICIENT)


def test_the_time_on_probation_goes_on_after_a_restart(house: House) -> None:
    house.bring_to(State.PROBATION)
    house.pass_time(DEADLINE_S - 60)
    assert house.is_in(State.PROBATION)
    house.installer.close()
    house.again()
    house.pass_time(90)
    assert house.state is State.COMMITTED


@pytest.mark.parametrize("state", [State.RESOLVING, State.COMMITTED])
def test_a_power_cut_after_the_last_word_on_a_probation_leaves_no_history(house: House, state: State) -> None:
    house.bring_to(State.PROBATION)
    house.journal.record(state=state, previous=None)
    assert (house.folder / FILE_NAME).exists()
    house.again()
    assert not (house.folder / FILE_NAME).exists()


def test_a_rollback_says_why_and_remembers_the_generation(house: House) -> None:
    house.bring_to(State.PROBATION)
    house.watch.verdict = FAILED
    house.turn()
    assert (house.state, house.active) == (State.ROLLING_BACK, house.new)
    house.turn()
    entry = house.journal.entry
    assert (house.state, house.active, entry.running) == (State.ROLLED_BACK, house.old, house.version(1))
    assert (entry.desired, entry.reason, entry.previous) == (house.desired(2), FAILED.reason, None)
    assert house.current == house.slots.path(house.old)
    house.turn()
    assert not house.slots.path(house.new).exists()
    assert [kind for kind, _ in house.noted] == ["accepted", "activated", "rolling_back", "rolled_back"]


def test_a_journal_lost_after_a_rollback_does_not_bring_the_bad_version_again(house: House) -> None:
    """What the device accepted last is in the slot of what it went back to: the same generation is known there."""
    house.bring_to(State.PROBATION)
    house.watch.verdict = FAILED
    for _ in range(3):
        house.turn()
    entry = reopened(house).journal.entry
    assert (entry.state, entry.desired, entry.reason) == (State.ROLLED_BACK, house.desired(2), FAILED.reason)
    assert entry.active is not None
    assert entry.active.digest == house.old


def test_a_journal_lost_on_probation_ends_it_as_one_that_failed(house: House) -> None:
    house.bring_to(State.PROBATION)
    state = reopened(house)
    entry = state.journal.entry
    assert entry.active is not None
    assert (entry.state, entry.active.digest, entry.desired) == (State.ROLLED_BACK, house.old, house.desired(2))
    assert "while wide was in probation" in str(entry.reason)
    assert entry.running == house.version(1)
    house.again()
    assert house.current == house.slots.path(house.old)
    house.turn()
    assert not house.slots.path(house.new).exists()


@pytest.mark.parametrize("before", ["none", "damaged"])
def test_a_journal_lost_on_probation_with_nothing_to_go_back_to(tmp_path: Path, before: str) -> None:
    house = House(tmp_path)
    if before == "damaged":
        house.commit_old()
    house.bring_to(State.PROBATION)
    if before == "damaged":
        house.damage(house.old)
    entry = reopened(house).journal.entry
    assert entry.active is not None
    assert (entry.state, entry.active.digest, entry.previous) == (State.PROBATION, house.new, None)
    house.again()
    house.watch.verdict = PASSED
    house.turn()
    assert house.state is State.COMMITTED


def test_a_power_cut_between_the_link_and_the_journal_runs_what_the_journal_says(house: House) -> None:
    house.bring_to(State.ACTIVATING)
    house.slots.activate(house.new)
    house.again()
    assert (house.state, house.active) == (State.RESOLVING, house.old)
    assert house.current == house.slots.path(house.old)
    assert house.installs[-1].resumed


# What cannot be interrupted ---------------------------------------------------------------------------


def test_of_several_that_come_while_it_activates_the_last_is_begun(house: House) -> None:
    house.bring_to(State.ACTIVATING)
    for number in (3, 4):
        house.installer.begin(house.desired(number))
    assert house.journal.entry.desired == house.desired(2)
    house.runner.prepared = True
    house.turn()
    assert (house.state, house.journal.entry.desired) == (State.RESOLVING, house.desired(4))
    assert house.active == house.old
    assert len(house.installs) == 2


def test_one_that_comes_while_a_first_install_is_on_probation_leaves_that_running(first: House) -> None:
    first.bring_to(State.PROBATION)
    first.installer.begin(first.desired(3))
    assert (first.state, first.active) == (State.RESOLVING, first.new)
    first.installs[-1].failure = "the server says gone"
    first.turn()
    assert (first.state, first.active) == (State.FAILED, first.new)
    assert first.slots.path(first.new).exists()


# What is damaged --------------------------------------------------------------------------------------


def damaged_way_back(house: House) -> None:
    house.bring_to(State.PROBATION)
    house.damage(house.old)
    house.watch.verdict = FAILED
    house.turn()
    house.turn()
    assert (house.state, house.active, house.installs[-1].only) == (State.RESOLVING, None, house.old)


def test_a_damaged_variant_to_go_back_to_is_pulled_again_and_ends_rolled_back(house: House) -> None:
    damaged_way_back(house)
    assert house.installs[-1].desired.wanted == house.version(1)
    house.put(house.old)
    house.installs[-1].state = State.ACTIVATING
    house.turn()
    entry = house.journal.entry
    assert (house.state, house.active, entry.restored_to, entry.previous) == (State.ROLLED_BACK, house.old, None, None)
    assert (entry.desired, entry.reason) == (house.desired(2), FAILED.reason)


def test_it_is_pulled_again_once(house: House) -> None:
    damaged_way_back(house)
    house.installs[-1].failure = "the server says gone"
    house.turn()
    entry = house.journal.entry
    assert (house.state, house.active, entry.restored_to, entry.previous) == (State.NO_MODEL, None, None, None)
    why = "the variant before it is damaged, and pulling that again failed: the server says gone"
    assert entry.reason == f"{FAILED.reason}; {why}"
    house.again()
    assert len(house.installs) == 2


def test_a_restart_goes_on_pulling_it_again(house: House) -> None:
    damaged_way_back(house)
    house.again()
    assert (house.installs[-1].only, house.installs[-1].resumed) == (house.old, True)
    assert house.journal.entry.desired == house.desired(2)


@pytest.mark.parametrize("state", [State.COMMITTED, State.ROLLED_BACK, State.FAILED])
def test_a_committed_variant_that_is_damaged_is_pulled_again_and_what_became_of_the_deployment_stands(
    house: House, state: State
) -> None:
    house.commit_old(state)
    house.journal.record(reason=None if state is State.COMMITTED else FAILED.reason)
    house.damage(house.old)
    house.installer.slot_damaged("small.bin does not match its digest")
    what = "variant before it" if state is State.ROLLED_BACK else "committed variant"
    assert house.installer.state().reason == f"the {what} is damaged, and is pulled again"
    install = house.installs[-1]
    assert (house.state, house.active, install.only) == (State.RESOLVING, None, house.old)
    assert install.desired.wanted == house.version(1)
    house.put(house.old)
    install.state = State.ACTIVATING
    house.turn()
    entry = house.journal.entry
    assert (house.state, house.active, entry.running) == (state, house.old, house.version(1))
    assert (entry.restored_to, entry.previous, entry.desired) == (None, None, house.desired(1))
    assert (entry.reason is None) == (state is State.COMMITTED)
    assert house.noted == [("restored", "small")]
    assert house.current == house.slots.path(house.old)


def test_a_committed_variant_that_cannot_be_pulled_again_is_no_model_and_says_why(house: House) -> None:
    house.damage(house.old)
    house.installer.slot_damaged("small.bin does not match its digest")
    house.again()
    assert (house.installs[-1].only, house.installs[-1].resumed) == (house.old, True)
    house.installs[-1].failure = "the server says gone"
    house.turn()
    why = "the committed variant is damaged, and pulling that again failed: the server says gone"
    assert (house.state, house.journal.entry.reason) == (State.NO_MODEL, why)
    house.again()
    assert len(house.installs) == 2


def test_of_a_damaged_variant_whose_package_is_not_known_it_is_said(house: House) -> None:
    """As after another enrolment: nothing that was accepted since says what to pull."""
    house.journal.record(desired=None)
    house.installer.slot_damaged("small.bin does not match its digest")
    why = "the committed variant is damaged: small.bin does not match its digest"
    assert (house.state, house.journal.entry.reason, house.installs) == (State.NO_MODEL, why, [])


def test_a_newer_generation_takes_the_place_of_what_is_pulled_again_until_that_fails(house: House) -> None:
    house.damage(house.old)
    house.installer.slot_damaged("small.bin does not match its digest")
    house.installer.begin(house.desired(2))
    assert (house.installs[-1].only, house.installs[-1].desired) == (None, house.desired(2))
    house.installs[-1].failure = "the server says gone"
    house.turn()
    assert (house.state, house.installs[-1].only) == (State.RESOLVING, house.old)
    house.put(house.old)
    house.installs[-1].state = State.ACTIVATING
    house.turn()
    entry = house.journal.entry
    assert (house.state, house.active, entry.reason) == (State.FAILED, house.old, "the server says gone")
    assert entry.desired == house.desired(2)


def test_files_damaged_on_probation_bring_the_one_before_back(house: House) -> None:
    house.bring_to(State.PROBATION)
    house.installer.slot_damaged("wide.bin does not match its digest")
    house.turn()
    house.turn()
    assert (house.state, house.active) == (State.ROLLED_BACK, house.old)
    assert house.journal.entry.reason == "its files are damaged: wide.bin does not match its digest"


# What crashes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [State.SELF_TEST, State.BENCHMARKING, State.PROBATION])
def test_a_device_that_reboots_for_ever_goes_back_to_what_ran(house: House, state: State) -> None:
    """Each time the variant has got as far as to run again, as an installation that is taken up does."""
    house.bring_to(state)
    for _ in range(MAX_CUT_OFF - 1):
        house.again()
        if state is not State.PROBATION:
            house.installs[-1].state = state
        house.turn()
        assert house.state is state
    house.again()
    house.turn()
    house.turn()
    assert house.state is (State.ROLLED_BACK if state is State.PROBATION else State.FAILED)
    assert house.active == house.old
    assert "cut off 3 times while the variant ran" in str(house.journal.entry.reason)


def test_a_device_that_reboots_while_it_pulls_goes_on_for_ever(house: House) -> None:
    house.bring_to(State.DOWNLOADING)
    for _ in range(3 * MAX_CUT_OFF):
        house.again()
        house.installs[-1].state = State.DOWNLOADING
        house.turn()
    assert house.state is State.DOWNLOADING


def test_a_service_that_is_restarted_often_is_no_device_that_reboots(house: House) -> None:
    house.bring_to(State.PROBATION)
    for _ in range(3 * MAX_CUT_OFF):
        house.installer.close()
        house.again()
    assert house.state is State.PROBATION


def test_three_strikes_count_for_the_variant_on_probation_alone(house: House) -> None:
    house.bring_to(State.PROBATION)
    house.installer.struck_out(house.old, "it ended with exit code 1")
    assert house.is_in(State.PROBATION)
    house.installer.struck_out(house.new, "it was ended by signal 11")
    assert (house.state, house.journal.entry.reason) == (State.ROLLING_BACK, "it was ended by signal 11")
    house.turn()
    assert house.state is State.ROLLED_BACK
    house.installer.struck_out(house.old, "it ended with exit code 1")
    assert house.state is State.ROLLED_BACK


def test_a_worker_that_ends_while_it_is_warmed_is_never_switched_to(house: House) -> None:
    house.bring_to(State.ACTIVATING)
    house.installer.struck_out(house.new, "it was ended by signal 9")
    assert (house.state, house.active) == (State.FAILED, house.old)
    assert house.journal.entry.reason == "its worker: it was ended by signal 9"
    assert house.current == house.slots.path(house.old)
    assert house.runner.abandoned == 1


# What waits, and what is nothing new ------------------------------------------------------------------


def test_while_it_waits_no_time_is_counted_and_it_says_for_what(house: House) -> None:
    house.bring_to(State.SELF_TEST)
    house.installs[-1].waits_for = "update lock: an operation is under way"
    house.pass_time(2 * house.desired().install_timeout_s)
    assert (house.state, house.installer.state().reason) == (
        State.SELF_TEST,
        "update lock: an operation is under way",
    )
    house.installs[-1].waits_for = None
    house.installs[-1].state = State.ACTIVATING
    house.runner.prepared = True
    house.turn()
    assert house.state is State.PROBATION


def test_what_runs_already_is_proven_by_its_self_test_and_keeps_its_place(house: House) -> None:
    house.installer.begin(house.desired(2))
    install = house.installs[-1]
    install.candidate = type(install.candidate)(house.old, "small", "onnxruntime", ">=1", "int8", "amd64", 1)
    install.state = State.ACTIVATING
    house.turn()
    assert (house.state, house.active, house.journal.entry.running) == (State.COMMITTED, house.old, house.version(2))
    house.turn()
    house.slots.check(house.old)


def test_a_worker_that_is_not_ready_in_time_is_switched_to_cold(house: House) -> None:
    house.bring_to(State.ACTIVATING)
    house.turn(5.0)
    assert (house.state, house.runner.asked) == (State.ACTIVATING, [house.new])
    house.turn(6.0)
    assert (house.state, house.active) == (State.PROBATION, house.new)
