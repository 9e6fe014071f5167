"""The store: what is acknowledged is stored, once, and nothing measured is mixed with an estimate."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefleet import spans
from edgefleet.errors import StorageError
from edgefleet.protocol.measurements import Accuracy, Thermal
from edgefleet.protocol.messages import State, Window
from edgefleet.server.store import EnrolmentRow, Store
from sdk import wire_examples
from sdk.wire_examples import (
    COMMAND,
    DEPLOYMENT,
    DESIRED,
    ESTIMATED_WINDOW,
    FACTS,
    MANIFEST,
    SIGNED_DEPLOYMENT,
    SPOOL,
    STATE,
    WINDOW,
    desired_envelope,
    envelope,
    event,
    latency,
    telemetry,
)

PI = "pi-kitchen"
ANOTHER_SPOOL = "0b0b"


@pytest.fixture(name="store")
def _store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "data" / "store.sqlite")
    store.add_facts(PI, FACTS, 1000.0)
    return store


def take(store: Store, *seqs: int, oldest: int = 1) -> int:
    for seq in seqs:
        store.add_event(PI, event(seq, oldest), 5000.0)
    return store.advance(PI, SPOOL, oldest)


# Acknowledgement --------------------------------------------------------------------------------------


def test_acknowledged_is_what_has_no_gap_below(store: Store) -> None:
    assert take(store) == 0
    assert take(store, 1, 2) == 2
    assert take(store, 5, 4) == 2
    assert take(store, 3) == 5
    assert take(store, 3) == 5


def test_windows_and_events_share_their_numbers(store: Store) -> None:
    store.add_telemetry(PI, telemetry(1), 5000.0)
    store.add_telemetry(PI, telemetry(3), 5000.0)
    assert take(store, 2) == 3


def test_what_the_device_gave_up_is_no_gap(store: Store) -> None:
    assert take(store, 1, 7, 8) == 1
    assert take(store, oldest=7) == 8
    assert take(store, 9, oldest=9) == 9


def test_an_older_oldest_number_never_moves_it_back(store: Store) -> None:
    assert take(store, 50, oldest=50) == 50
    assert take(store, 51, oldest=1) == 51


def test_each_device_and_spool_counts_for_itself(store: Store) -> None:
    take(store, 1, 2, 3)
    assert store.advance("nuc", SPOOL, 1) == 0
    assert store.advance(PI, ANOTHER_SPOOL, 1) == 0
    store.add_event(PI, event(1, spool_id=ANOTHER_SPOOL), 5000.0)
    assert store.advance(PI, ANOTHER_SPOOL, 1) == 1
    assert store.advance(PI, SPOOL, 1) == 3


def test_a_spool_begun_anew_repeats_no_name(store: Store) -> None:
    """The disk lost the spool, not the enrolment: number 1 comes again, and is another message."""
    store.add_telemetry(PI, telemetry(1), 1.0)
    store.add_telemetry(PI, telemetry(1, spool_id=ANOTHER_SPOOL), 2.0)
    assert store.telemetry(PI, MANIFEST).windows == 2


def test_a_repeat_with_other_content_changes_nothing(store: Store) -> None:
    store.add_telemetry(PI, telemetry(1), 1.0)
    store.add_telemetry(PI, telemetry(1, window=WINDOW.model_copy(update={"errors": 7})), 2.0)
    assert store.telemetry(PI, MANIFEST).errors == 1


@settings(max_examples=40)
@given(st.permutations(range(1, 13)), st.sets(st.integers(1, 12)))
def test_in_any_order_with_repeats_the_number_is_the_lowest_missing_less_one(
    order: list[int], repeated: set[int]
) -> None:
    store = Store(Path(":memory:"))
    seen: set[int] = set()
    for seq in order:
        for _ in range(2 if seq in repeated else 1):
            seen.add(seq)
            acknowledged = take(store, seq)
            assert acknowledged == next(n for n in range(13) if n + 1 not in seen)
    store.close()


def test_a_repeated_window_is_counted_once(store: Store) -> None:
    for _ in range(3):
        store.add_telemetry(PI, telemetry(1), 5000.0)
        store.add_event(PI, event(2), 5000.0)
    assert store.telemetry(PI, MANIFEST).inferences == 200
    assert store.events(PI) == [("accepted", "event 2")]


# Totals -----------------------------------------------------------------------------------------------


def test_totals_add_up(store: Store) -> None:
    store.add_telemetry(PI, telemetry(1), 5000.0)
    unlabelled = WINDOW.model_copy(update={"accuracy": None, "errors": 0})
    store.add_telemetry(PI, telemetry(2, window=unlabelled), 5000.0)
    found = store.telemetry(PI, MANIFEST)
    assert (found.windows, found.inferences, found.errors) == (2, 400, 1)
    assert (found.correct, found.labelled) == (190, 200)


@pytest.mark.parametrize("window", [WINDOW, ESTIMATED_WINDOW], ids=["measured", "estimated"])
def test_a_span_from_the_store_is_the_span_of_the_windows_that_were_sent(store: Store, window: Window) -> None:
    throttled = window.model_copy(update={"thermal": Thermal(throttled=True)})
    for seq, sent in enumerate([window, throttled], start=1):
        store.add_telemetry(PI, telemetry(seq, window=sent), 5000.0)
    span, sent_span = store.telemetry(PI, MANIFEST).span, spans.merge([throttled, window])
    assert span == sent_span
    for name in ("preprocess", "inference", "end_to_end"):
        assert getattr(span, name) == getattr(sent_span, name)


def test_every_measurement_of_a_window_is_in_its_row(store: Store) -> None:
    store.add_telemetry(PI, telemetry(1), 5000.0)
    (row,) = store._db.execute("SELECT * FROM telemetry").fetchall()
    assert (row["boot_id"], row["monotonic_s"], row["wall_s"], row["clock"]) == (
        "b1", 512.5, 1_750_000_100.25, "synced"
    )  # fmt: skip
    assert (row["joules"], row["energy_s"], row["energy_samples"], row["low_j"]) == (36.75, 10.25, 10250, None)
    assert (row["temperature_c"], row["frequency_mhz"], row["throttled"], row["thermal_reason"]) == (
        61.5,
        2400,
        0,
        None,
    )
    assert (row["cpu_share"], row["agent_bytes"], row["worker_bytes"]) == (0.125, 32_000_000, 48_000_000)
    tensors = [tuple(row) for row in store._db.execute("SELECT * FROM tensors ORDER BY side, place")]
    assert tensors == [
        (PI, SPOOL, 1, "input", 0, "x", 6400, 0, 0.5, 0.25, 0.0, 1.0),
        (PI, SPOOL, 1, "output", 0, "y", 0, 1000, None, None, None, None),
    ]


def test_a_span_is_of_the_windows_that_came_last(store: Store) -> None:
    """By arrival: a device's clock may have jumped, and a spool begun anew counts from 1 again."""
    # Of windows that came together the last numbered is the newest.
    arrivals = [(1.0, 3, SPOOL, 0.1), (1.0, 4, SPOOL, 0.2), (2.0, 2, ANOTHER_SPOOL, 0.4), (2.0, 1, ANOTHER_SPOOL, 0.3)]
    for now, seq, spool_id, took_s in arrivals:
        changes = {"latency": latency(took_s, times=200), "duration_s": 100.0}
        window = WINDOW.model_copy(update=changes)
        store.add_telemetry(PI, telemetry(seq, window=window, spool_id=spool_id), now)
    found = store.telemetry(PI, MANIFEST)
    assert (found.windows, found.span.windows, found.span.duration_s) == (4, 3, 300.0)
    assert found.span.inference.quantile(0.0) == pytest.approx(0.2, rel=0.01)
    assert found.span.inference.quantile(1.0) == pytest.approx(0.4, rel=0.01)


def test_no_numbers_of_a_device_overflow_a_total(store: Store) -> None:
    most = 2**53 - 1
    window = WINDOW.model_copy(update={"errors": most, "accuracy": Accuracy(correct=most, labelled=most)})
    with store.transaction():
        for seq in range(1, 1100):
            store.add_telemetry(PI, telemetry(seq, window=window), 5000.0)
    assert store.telemetry(PI, MANIFEST).errors == pytest.approx(1099 * most)


def test_events_come_in_the_order_in_which_they_came(store: Store) -> None:
    for now, (seq, spool_id) in enumerate([(7, SPOOL), (1, ANOTHER_SPOOL), (8, SPOOL)]):
        store.add_event(PI, event(seq, spool_id=spool_id), float(now))
    assert [text for _, text in store.events(PI)] == ["event 7", "event 1", "event 8"]


def test_another_variant_or_device_is_not_mixed_in(store: Store) -> None:
    other = WINDOW.model_copy(update={"digest": "sha256:" + "9" * 64, "accuracy": Accuracy(correct=0, labelled=5)})
    store.add_telemetry(PI, telemetry(1), 5000.0)
    store.add_telemetry(PI, telemetry(2, window=other), 5000.0)
    store.add_telemetry("nuc", telemetry(1), 5000.0)
    assert store.telemetry(PI, MANIFEST).windows == 1
    nothing = store.telemetry(PI, "sha256:" + "8" * 64)
    assert (nothing.windows, nothing.inferences, nothing.span) == (0, 0, spans.Span())


# Presence and state -----------------------------------------------------------------------------------


def online(store: Store, device: str = PI) -> bool:
    row = store.device(device)
    assert row is not None
    return row.online


def say(store: Store, connection: int, enrolment_id: str = "e1", *, online: bool, device: str = PI) -> bool:
    return store.set_online(device, wire_examples.online(connection, enrolment_id, online=online))


def test_an_older_will_marks_no_newer_connection_offline(store: Store) -> None:
    assert say(store, 4, online=True)
    assert not say(store, 3, online=False)
    assert online(store)
    assert say(store, 4, online=False)
    assert not online(store)
    assert not say(store, 3, online=True)
    assert not online(store)
    assert say(store, 5, online=True)
    assert online(store)


def test_a_hello_says_nothing_of_presence_but_its_connection_outdates_older_wills(store: Store) -> None:
    """What is retained on the broker may be the hello of a device that is long gone."""
    assert not online(store)
    say(store, 3, online=True)
    store.add_facts(PI, FACTS.model_copy(update={"connection": 9}), 2000.0)
    assert online(store)
    assert not say(store, 8, online=False)
    assert online(store)


def test_presence_of_a_device_that_never_said_hello_changes_nothing(store: Store) -> None:
    assert not say(store, 9, online=True, device="nuc")
    assert store.device("nuc") is None
    store.add_facts("nuc", FACTS, 1.0)
    assert not online(store, "nuc")


def test_presence_of_another_enrolment_changes_nothing(store: Store) -> None:
    say(store, 5, online=True)
    assert not say(store, 1000, "e0", online=False)
    assert online(store)


def test_a_device_that_begins_anew_counts_its_connections_anew(store: Store) -> None:
    """A new enrolment (state folder lost, card swapped) counts its connections from 1 again."""
    say(store, 57, online=True)
    store.add_facts(PI, FACTS.model_copy(update={"enrolment_id": "e2", "connection": 1}), 2000.0)
    assert not online(store)
    assert say(store, 1, "e2", online=True)
    assert online(store)
    assert say(store, 1, "e2", online=False)
    assert not online(store)


def test_all_are_offline_until_the_broker_says_otherwise(store: Store) -> None:
    store.add_facts("nuc", FACTS, 1.0)
    for device in (PI, "nuc"):
        say(store, 4, online=True, device=device)
    store.set_all_offline()
    assert [row.online for row in store.devices()] == [False, False]
    assert say(store, 4, online=True)
    assert online(store)


def test_seen_is_when_it_was_heard_of(store: Store) -> None:
    store.set_seen(PI, 7777.0)
    store.set_seen("nobody", 7777.0)
    assert [(row.device, row.seen_at) for row in store.devices()] == [(PI, 7777.0)]


def test_open_are_the_devices_that_are_there_and_have_not_answered(store: Store) -> None:
    for device in ("gone", "done", "free"):
        store.add_facts(device, FACTS, 1.0)
    for device in (PI, "gone", "done"):
        store.set_desired(desired_envelope(device=device))
    for device in (PI, "done", "free"):
        say(store, 4, online=True, device=device)
    store.set_state("done", STATE, 1.0)
    store.set_state(PI, STATE.model_copy(update={"state": State.DOWNLOADING}), 1.0)
    assert store.open_devices() == [PI]


def test_state_is_shown(store: Store) -> None:
    store.set_state(PI, STATE, 1234.0)
    row = store.device(PI)
    assert row is not None
    assert (row.state, row.reason, row.generation) == (State.FAILED, STATE.reason, STATE.generation)
    assert (row.variant, row.digest, row.seen_at) == ("onnxruntime-int8", MANIFEST, 1234.0)
    assert (row.verified_bytes, row.total_bytes, row.pulled_bytes, row.bad_blocks) == (61440, 61441, 122_880, 1)
    store.set_state(PI, STATE.model_copy(update={"active": None, "progress": None}), 1235.0)
    row = store.device(PI)
    assert row is not None
    assert (row.variant, row.digest, row.verified_bytes) == (None, None, None)


def test_a_hello_of_a_new_enrolment_resets_the_generation(store: Store) -> None:
    store.set_state(PI, STATE, 1.0)
    store.add_facts(PI, FACTS, 2.0)
    assert [row.generation for row in store.devices()] == [STATE.generation]
    store.add_facts(PI, FACTS.model_copy(update={"enrolment_id": "e2"}), 3.0)
    (row,) = store.devices()
    assert (row.generation, row.state, row.reason, row.digest, row.variant) == (0, None, None, None, None)
    assert (row.verified_bytes, row.total_bytes, row.pulled_bytes, row.bad_blocks) == (None, None, 0, 0)
    assert (row.online, row.sent_bytes, row.enrolment_id) == (False, 0, "e2")


@pytest.mark.parametrize("state", State)
def test_only_a_terminal_state_of_that_generation_is_its_outcome(store: Store, state: State) -> None:
    store.set_desired(desired_envelope())
    generation = DESIRED.generation
    store.set_state(PI, STATE.model_copy(update={"state": state, "generation": generation - 1}), 1.0)
    assert store.outcome(PI, generation) is None
    store.set_state(PI, STATE.model_copy(update={"state": state}), 2.0)
    ended = state in {State.COMMITTED, State.ROLLED_BACK, State.FAILED, State.NO_MODEL}
    assert store.outcome(PI, generation) == ((state, STATE.reason) if ended else None)
    store.set_desired(desired_envelope(generation=generation + 1))
    assert store.outcome(PI, generation) is None
    assert store.outcome(PI, generation + 1) is None


def test_a_state_of_another_enrolment_changes_nothing(store: Store) -> None:
    """What a replaced device left behind on the broker says nothing about the one that is there now."""
    store.set_desired(desired_envelope())
    store.set_state(PI, STATE.model_copy(update={"enrolment_id": "e0"}), 1.0)
    row = store.device(PI)
    assert row is not None
    assert (row.state, row.generation, row.seen_at) == (None, 0, 1000.0)
    assert store.outcome(PI, DESIRED.generation) is None


def test_sent_bytes_add_up(store: Store) -> None:
    store.add_sent_bytes([(PI, 10), ("nobody", 5)])
    store.add_sent_bytes([(PI, 7)])
    assert [row.sent_bytes for row in store.devices()] == [17]


def test_desired_states_are_replaced_whole(store: Store) -> None:
    assert store.desired(PI) is None
    store.set_desired(desired_envelope())
    newer = desired_envelope(generation=9, enrolment_id="e2")
    store.set_desired(newer)
    found = store.desired(PI)
    assert found is not None
    assert (found.signed, found.envelope) == (newer, newer.encode())
    assert (found.generation, found.enrolment_id) == (9, "e2")
    assert found.desired == DESIRED.model_copy(update={"generation": 9, "enrolment_id": "e2"})
    assert store.desired_generations() == {PI: 9}
    store.forget_desired(PI)
    assert store.desired(PI) is None


def test_devices_come_by_name(store: Store) -> None:
    for name in ("zeta", "alpha"):
        store.add_facts(name, FACTS, 1.0)
    assert [row.device for row in store.devices()] == ["alpha", PI, "zeta"]
    assert store.device("nobody") is None


# Decisions and enrolments -----------------------------------------------------------------------------


def test_a_deployment_is_kept_as_it_was_signed(store: Store) -> None:
    assert (store.last_serial(), store.deployment(DEPLOYMENT.deployment_id)) == (0, None)
    store.add_deployment(DEPLOYMENT, SIGNED_DEPLOYMENT, 1.0)
    store.add_deployment(DEPLOYMENT, SIGNED_DEPLOYMENT, 2.0)
    assert store.deployment(DEPLOYMENT.deployment_id) == SIGNED_DEPLOYMENT
    assert store.last_serial() == DEPLOYMENT.serial


def test_an_enrolment_is_replaced_by_another_and_kept_by_a_renewal(store: Store) -> None:
    assert store.enrolment(PI) is None
    store.add_enrolment(PI, "e1", 100.0, "0a", 1.0)
    store.set_hardware_serial(PI, "board-1")
    store.add_enrolment(PI, "e1", 200.0, "0b", 2.0)
    row = store.enrolment(PI)
    assert row == EnrolmentRow(PI, "e1", "0b", 200.0, 1.0, None, "board-1", None)
    store.set_flag(PI, "two boards")
    store.revoke_enrolment(PI, 3.0)
    store.revoke_enrolment(PI, 4.0)
    row = store.enrolment(PI)
    assert row is not None
    assert (row.revoked_at, row.flag) == (3.0, "two boards")
    store.add_enrolment(PI, "e2", 300.0, "0c", 5.0, hardware_serial="board-2")
    assert store.enrolments() == [EnrolmentRow(PI, "e2", "0c", 300.0, 5.0, None, "board-2", None)]


def test_denied_are_those_that_were_removed_or_are_flagged(store: Store) -> None:
    for device in (PI, "gone", "odd"):
        store.add_enrolment(device, "e1", 100.0, "0a", 1.0)
    assert store.denied() == {}
    store.revoke_enrolment("gone", 2.0)
    store.set_flag("odd", "two boards")
    assert store.denied() == {"gone": "it was removed from the fleet", "odd": "two boards"}


def test_a_command_is_taken_once_and_never_after_its_time(store: Store) -> None:
    late = COMMAND.model_copy(update={"command_id": "late", "expires": COMMAND.expires - 30})
    for command in (COMMAND, late):
        store.add_command(command, envelope(command, "command"))
    assert store.take_commands(COMMAND.expires - 10) == [(PI, envelope(COMMAND, "command"))]
    assert store.take_commands(COMMAND.expires - 10) == []


def test_several_processes_may_open_a_new_store_at_the_same_time(tmp_path: Path) -> None:
    """A command looks as soon as the file is there."""
    path = tmp_path / "store.sqlite"
    code = (
        "import sys; from pathlib import Path; from edgefleet.server.store import Store\n"
        "print('ready', flush=True); sys.stdin.read(1); Store(Path(sys.argv[1])).server()"
    )
    command = [sys.executable, "-c", code, str(path)]
    openers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(4)]
    for opener in openers:
        assert opener.stdout is not None
        opener.stdout.readline()
    for opener in openers:
        assert opener.stdin is not None
        opener.stdin.write(b"x")
        opener.stdin.flush()
    for opener in openers:
        opener.communicate()
    assert [opener.returncode for opener in openers] == [0] * 4


def test_a_store_of_an_earlier_layout_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    with sqlite3.connect(path) as old:
        old.execute("CREATE TABLE desired (device TEXT PRIMARY KEY, generation INTEGER, message BLOB)")
    old.close()
    for _ in range(2):
        with pytest.raises(StorageError, match="layout is version 0"):
            Store(path)


# The file ---------------------------------------------------------------------------------------------


def test_a_transaction_is_all_or_nothing(store: Store) -> None:
    def half() -> None:
        with store.transaction():
            store.add_event(PI, event(1), 5000.0)
            store.set_desired(desired_envelope())
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        half()
    assert store.events(PI) == []
    assert store.desired(PI) is None
    with store.transaction():
        store.add_event(PI, event(1), 5000.0)
    assert len(store.events(PI)) == 1


def test_a_savepoint_costs_only_what_is_in_it(store: Store) -> None:
    def strange(seq: int) -> None:
        with store.savepoint():
            store.add_event(PI, event(seq), 1.0)
            raise ValueError("strange")

    with store.transaction():
        for seq in (1, 2, 3):
            if seq == 2:
                with pytest.raises(ValueError, match="strange"):
                    strange(seq)
            else:
                with store.savepoint():
                    store.add_event(PI, event(seq), 1.0)
    assert [text for _, text in store.events(PI)] == ["event 1", "event 3"]


def test_another_process_commits_and_this_one_sees_it(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    store = Store(path)
    before = store.changed()
    store.add_deployment(DEPLOYMENT, SIGNED_DEPLOYMENT, 1.0)
    assert store.changed() == before
    code = (
        "import sys; from pathlib import Path; from edgefleet.server.store import Store\n"
        "from edgefleet.protocol.signed import Envelope\n"
        "Store(Path(sys.argv[1])).set_desired(Envelope.decode(sys.argv[2].encode()))"
    )
    subprocess.run([sys.executable, "-c", code, str(path), desired_envelope().encode().decode()], check=True)
    assert store.changed() != before
    found = store.desired(PI)
    assert found is not None
    assert found.desired == DESIRED


def test_it_is_all_there_after_opening_again(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    first = Store(path)
    first.set_server("home", "127.0.0.1:1883", connected=True, failure=None)
    first.add_facts(PI, FACTS, 1.0)
    take(first, 1, 2)
    first.close()
    again = Store(path)
    row = again.server()
    assert row is not None
    assert (row["fleet"], row["connected"]) == ("home", 1)
    assert again.advance(PI, SPOOL, 1) == 2
    again.set_server("home", "127.0.0.1:1883", connected=False, failure="refused")
    assert again.server() is not None


def test_no_server_yet(tmp_path: Path) -> None:
    assert Store(tmp_path / "store.sqlite").server() is None


@pytest.mark.parametrize("kind", ["folder", "garbage", "below a file"])
def test_a_store_that_cannot_be_opened_is_a_storage_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "store.sqlite"
    if kind == "folder":
        path.mkdir()
    elif kind == "garbage":
        path.write_bytes(b"this is not a database, it is a text of some length\n" * 100)
    else:
        path.write_text("")
        path /= "store.sqlite"
    with pytest.raises(StorageError, match="opening the store"):
        Store(path)


def test_a_failing_commit_leaves_the_store_usable(store: Store) -> None:
    """A full disk shows at COMMIT as often as before it; the next transaction must be able to begin."""
    store._db.execute("PRAGMA foreign_keys = ON")
    store._db.execute("CREATE TABLE parent (id INTEGER PRIMARY KEY)")
    store._db.execute("CREATE TABLE child (id REFERENCES parent DEFERRABLE INITIALLY DEFERRED)")

    def failing() -> None:
        with store.transaction():
            store._db.execute("INSERT INTO child VALUES (1)")

    with pytest.raises((sqlite3.Error, StorageError)):
        failing()
    with store.transaction():
        store.add_event(PI, event(1), 5000.0)
    assert len(store.events(PI)) == 1
