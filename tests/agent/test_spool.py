"""The spool: in order, paced, bounded, and no number used twice."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from edgefleet.protocol.decisions import (
    DECISION_EVENT,
    MAX_CANDIDATES,
    CandidateRecord,
    Conditions,
    DecisionRecord,
    Objective,
    Standing,
)
from edgefleet.protocol.messages import Event, Spooled, Telemetry
from edgefleet.server.store import Store
from edgefleet_agent import spool as spools
from edgefleet_agent.spool import IN_FLIGHT, MOST_EVENT_BYTES, RESEND_AFTER_S, Spool
from edgefleet_agent.spool_file import LEAST_BYTES, SpoolFile
from sdk.wire_examples import ESTIMATED_WINDOW, FACTS, MANIFEST, WINDOW

LONG = "x" * 4000


def open_spool(folder: Path, boot_id: str = "b1", replay_per_s: float = 1000.0) -> Spool:
    """As the agent does, but that no call waits for the disk."""
    spool = Spool(folder / "spool.sqlite", "e1", boot_id, limit_bytes=LEAST_BYTES, replay_per_s=replay_per_s)
    spool._file._db.execute("PRAGMA synchronous = OFF")
    return spool


@pytest.fixture(name="spool")
def _spool(tmp_path: Path) -> Iterator[Spool]:
    spool = open_spool(tmp_path)
    yield spool
    spool.close()


def windows(spool: Spool, count: int) -> None:
    for number in range(count):
        spool.add_window(WINDOW.model_copy(update={"duration_s": float(number)}))


def fill(spool: Spool) -> int:
    """Windows and long events until windows were dropped; returns how many events."""
    events = 0
    while not spool._file.lost():
        windows(spool, 4)
        spool.add_event("note", f"{events} {LONG}")
        events += 1
    return events


def seqs(messages: Iterator[Spooled]) -> list[int]:
    return [message.seq for message in messages]


def everything(spool: Spool, now: float = 0.0) -> list[Spooled]:
    """All that is held, sent to a server that acknowledges at once."""
    found: list[Spooled] = []
    spool.restart()
    while batch := list(spool.due(now)):
        found += batch
        now += 1.0
        spool.acknowledged(spool.id, batch[-1].seq, now)
    return found


def test_what_goes_in_comes_out_in_order_with_its_numbers(spool: Spool) -> None:
    spool.add_event("accepted", "größer")
    spool.add_window(ESTIMATED_WINDOW)
    spool.add_window(WINDOW)
    first, second, third = spool.due(0.0)
    assert isinstance(first, Event)
    assert (first.kind, first.text, first.seq, first.oldest_seq) == ("accepted", "größer", 1, 1)
    assert isinstance(second, Telemetry)
    assert second.window == ESTIMATED_WINDOW
    assert isinstance(third, Telemetry)
    assert (third.window, third.seq, third.enrolment_id, third.boot_id) == (WINDOW, 3, "e1", "b1")
    assert {first.spool_id, second.spool_id, third.spool_id} == {spool.id}
    assert list(spool.due(0.0)) == []


def test_in_flight_is_bounded(spool: Spool) -> None:
    windows(spool, 2 * IN_FLIGHT + 10)
    assert seqs(spool.due(0.0)) == list(range(1, IN_FLIGHT + 1))
    assert seqs(spool.due(0.1)) == []
    spool.acknowledged(spool.id, 30, 0.2)
    assert seqs(spool.due(0.2)) == list(range(IN_FLIGHT + 1, IN_FLIGHT + 31))
    assert seqs(spool.due(0.3)) == []


def test_everything_is_sent_again_after_a_silence_and_not_before(spool: Spool) -> None:
    windows(spool, 3)
    assert seqs(spool.due(0.0)) == [1, 2, 3]
    assert seqs(spool.due(RESEND_AFTER_S)) == []
    assert seqs(spool.due(RESEND_AFTER_S + 0.1)) == [1, 2, 3]


def test_progress_puts_the_repeat_off(spool: Spool) -> None:
    """A slow line with a hundred messages in flight is no reason to send them all twice."""
    windows(spool, IN_FLIGHT)
    seqs(spool.due(0.0))
    for number in range(1, 20):
        spool.acknowledged(spool.id, number, number * 9.0)
        assert seqs(spool.due(number * 9.0 + 8.9)) == []
    assert seqs(spool.due(19 * 9.0 + RESEND_AFTER_S + 0.1)) == list(range(20, IN_FLIGHT + 1))


def test_an_answer_that_deletes_nothing_is_no_progress(spool: Spool) -> None:
    windows(spool, 3)
    seqs(spool.due(0.0))
    for second in range(1, 11):
        spool.acknowledged(spool.id, 0, float(second))
    assert seqs(spool.due(RESEND_AFTER_S + 0.1)) == [1, 2, 3]


def test_an_answer_to_another_spool_is_nobodys(spool: Spool) -> None:
    windows(spool, 3)
    seqs(spool.due(0.0))
    spool.acknowledged("0000000000000000", 3, 0.1)
    spool.restart()
    assert seqs(spool.due(0.2)) == [1, 2, 3]


def test_a_lost_message_is_sent_again_while_newer_ones_flow(spool: Spool) -> None:
    """The server has 2, 3, 4 … and can acknowledge none of them before it has 1."""
    again_at = None
    for second in range(60):
        windows(spool, 1)
        sent = seqs(spool.due(float(second)))
        if 1 in sent and second > 0:
            again_at = second
            break
        spool.acknowledged(spool.id, 0, float(second))
    assert again_at is not None
    assert again_at <= 2 * RESEND_AFTER_S


def test_after_a_reconnect_all_is_sent_again_at_once(spool: Spool) -> None:
    windows(spool, 5)
    seqs(spool.due(0.0))
    spool.acknowledged(spool.id, 2, 0.1)
    spool.restart()
    assert seqs(spool.due(0.1)) == [3, 4, 5]


def test_each_message_says_the_lowest_number_that_may_still_come(spool: Spool) -> None:
    windows(spool, 4)
    assert {message.oldest_seq for message in spool.due(0.0)} == {1}
    spool.acknowledged(spool.id, 2, 0.0)
    windows(spool, 1)
    assert [message.oldest_seq for message in spool.due(0.1)] == [3]
    spool.acknowledged(spool.id, 5, 0.2)
    windows(spool, 1)
    assert [(message.seq, message.oldest_seq) for message in spool.due(0.3)] == [(6, 6)]


def test_an_acknowledgement_of_numbers_never_heard_of_has_the_next_ones_above_them(spool: Spool) -> None:
    """The server has them from this spool: its file has lost its end, and what it holds has numbers of others."""
    windows(spool, 2)
    assert seqs(spool.due(0.0)) == [1, 2]
    spool.acknowledged(spool.id, 60, 0.0)
    windows(spool, 1)
    assert seqs(spool.due(0.0)) == [61, 62, 63]
    spool.acknowledged(spool.id, 0, 0.0)
    spool.acknowledged(spool.id, 63, 0.1)
    windows(spool, 1)
    assert seqs(spool.due(0.2)) == [64]


def test_no_more_are_sent_in_a_second_than_allowed(tmp_path: Path) -> None:
    """A fleet that comes back after a day must not send its day at once."""
    spool = open_spool(tmp_path, replay_per_s=20)
    windows(spool, 300)
    sent = []
    for turn in range(50):
        now = 7.0 + turn / 10
        batch = seqs(spool.due(now))
        sent += batch
        spool.acknowledged(spool.id, sent[-1], now)
    assert sent == list(range(1, 20 + 20 * 49 // 10 + 1))
    windows(spool, 1)
    spool.restart()
    assert len(seqs(spool.due(12.0))) == 20
    spool.close()


def test_what_could_not_be_handed_over_is_not_taken_for_sent(spool: Spool) -> None:
    windows(spool, 5)
    taken = []
    for message in spool.due(0.0):
        if message.seq == 3:
            break
        taken.append(message.seq)
    assert taken == [1, 2]
    assert seqs(spool.due(0.1)) == [3, 4, 5]


# Bounds -----------------------------------------------------------------------------------------------


def test_windows_make_room_and_every_event_stays(spool: Spool) -> None:
    events = fill(spool)
    held = everything(spool)
    assert [message.text for message in held if isinstance(message, Event) and message.kind == "note"] == [
        f"{number} {LONG}" for number in range(events)
    ]
    numbers = [message.seq for message in held]
    assert numbers == sorted(set(numbers))


def test_a_text_without_end_is_cut(spool: Spool) -> None:
    spool.add_event("note", "ß" * MOST_EVENT_BYTES)
    spool.add_event("note", "a lone half \ud800 of a character")
    long, half = spool.due(0.0)
    assert isinstance(long, Event)
    assert isinstance(half, Event)
    assert long.text == "ß" * (MOST_EVENT_BYTES // 2)
    assert half.text == "a lone half ? of a character"


def test_the_largest_record_of_a_benchmark_is_not_cut(spool: Spool) -> None:
    candidate = CandidateRecord(
        digest=MANIFEST, name="n" * 63, threads=1024, size_bytes=2**53 - 1, standing=Standing.OVER_BUDGET,
        reason="r" * 300, runs=2**53 - 1, memory_bytes=2**53 - 1,
        **dict.fromkeys(("p50_s", "p90_s", "low_s", "high_s", "inference_p90_s", "energy_j"), 1.2345678901234567e-5),
    )  # fmt: skip
    record = DecisionRecord(
        hardware_class="h" + "0" * 16, index_digest=MANIFEST, objective=Objective.LATENCY, conditions=Conditions.IDLE,
        throttled_share=0.123456789, complete=True, chosen=MANIFEST, threads=1024, reason="r" * 1000,
        command="c" * 300, agent_version="v" * 64, candidates=(candidate,) * MAX_CANDIDATES,
    )  # fmt: skip
    spool.add_event(DECISION_EVENT, record.encode().decode())
    (event,) = spool.due(0.0)
    assert isinstance(event, Event)
    assert DecisionRecord.decode(event.text.encode()) == record


def test_a_loss_is_said_once_when_the_server_answers_again_and_not_before(spool: Spool) -> None:
    """Said at once, the word of the loss would push out what is left."""
    while not spool._file.lost():
        windows(spool, 50)
    lost = spool._file.lost()
    assert not any(isinstance(message, Event) for message in spool.due(0.0))
    spool.acknowledged(spool.id, 0, 0.5)
    assert not any(isinstance(message, Event) for message in spool.due(1.6))
    said = [message for message in everything(spool, 3.0) if isinstance(message, Event)]
    assert [(event.kind, event.text) for event in said] == [
        ("telemetry_lost", f"{lost.dropped} messages between the numbers 1 and {lost.last_seq} were given up")
    ]
    windows(spool, 1)
    assert not any(isinstance(message, Event) for message in everything(spool, 100.0))


def drain(spool: Spool, store: Store) -> float:
    """Send all that is held to a store that answers ten times a second; returns the seconds that it took."""
    store.add_facts("pi", FACTS, 0.0)
    now = 0.0
    while spool._file.newest_seq > spool._settled_seq:
        now += 0.1
        contiguous = 0
        with store.transaction():
            for message in spool.due(now):
                if isinstance(message, Telemetry):
                    store.add_telemetry("pi", message, now)
                elif isinstance(message, Event):
                    store.add_event("pi", message, now)
                contiguous = store.advance("pi", spool.id, message.oldest_seq)
        spool.acknowledged(spool.id, contiguous, now)
    return now


def test_dropped_windows_do_not_stop_the_acknowledgements(tmp_path: Path, spool: Spool) -> None:
    events, store = fill(spool), Store(tmp_path / "store.sqlite")
    drain(spool, store)
    said = [kind for kind, _ in store.events("pi")]
    assert (said.count("note"), said.count("telemetry_lost")) == (events, 1)
    store.close()


def test_holes_hold_nothing_up(tmp_path: Path, spool: Spool) -> None:
    """The server waits for numbers that will never come. The device tells it at its next turn: ten seconds of silence
    for every hole would be minutes."""
    for number in range(30):
        spool.add_event("note", str(number))
        windows(spool, 2)
    spool._file._db.execute("UPDATE messages SET body = x'00' WHERE kind = 'window'")
    store = Store(tmp_path / "store.sqlite")
    assert drain(spool, store) < RESEND_AFTER_S
    assert [text for kind, text in store.events("pi") if kind == "note"] == [str(number) for number in range(30)]
    store.close()


# Numbers ----------------------------------------------------------------------------------------------


def test_numbers_are_never_used_again(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    windows(spool, 5)
    spool.acknowledged(spool.id, 5, 0.0)
    spool.close()
    spool = open_spool(tmp_path, boot_id="b2")
    windows(spool, 1)
    (message,) = spool.due(0.0)
    assert (message.seq, message.boot_id) == (6, "b2")
    spool.close()


def test_what_was_not_acknowledged_survives_a_restart_with_its_boot(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    windows(spool, 2)
    spool.add_event("note", "before")
    seqs(spool.due(0.0))
    spool.close()
    spool = open_spool(tmp_path, boot_id="b2")
    windows(spool, 1)
    assert [(message.seq, message.boot_id) for message in spool.due(0.0)] == [
        (1, "b1"),
        (2, "b1"),
        (3, "b1"),
        (4, "b2"),
    ]
    spool.close()


@pytest.mark.parametrize("damage", [b"this is no database at all" * 400, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_spool_is_set_aside_and_the_new_one_has_another_name(tmp_path: Path, damage: bytes) -> None:
    spool = open_spool(tmp_path)
    before = spool.id
    windows(spool, 5)
    spool.close()
    (tmp_path / "spool.sqlite").write_bytes(damage)
    spool = open_spool(tmp_path)
    assert (tmp_path / "spool.damaged").read_bytes() == damage
    windows(spool, 2)
    said, *others = spool.due(0.0)
    assert isinstance(said, Event)
    assert said.kind == "damage"
    assert len(said.text.splitlines()) == 1
    assert [message.seq for message in (said, *others)] == [1, 2, 3]
    assert spool.id != before
    spool.close()
    again = open_spool(tmp_path)
    assert again.id == spool.id
    assert len(list(again.due(0.0))) == 3
    again.close()


def test_spools_have_names_of_their_own(tmp_path: Path) -> None:
    names = set()
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        spool = open_spool(tmp_path / folder)
        names.add(spool.id)
        spool.close()
    assert len(names) == 3


@pytest.mark.parametrize("log_bytes", [None, 5000, 40])
def test_a_log_left_beside_a_damaged_spool_gives_no_number_away(tmp_path: Path, log_bytes: int | None) -> None:
    """SQLite may replay the log, or not: either way a new message gets a name that was never used."""
    crashed = open_spool(tmp_path)
    windows(crashed, 5)
    used = {(crashed.id, seq) for seq in range(1, 6)}
    (tmp_path / "copy").mkdir()
    log = (tmp_path / "spool.sqlite-wal").read_bytes()
    (tmp_path / "copy" / "spool.sqlite-wal").write_bytes(log[:log_bytes])
    (tmp_path / "copy" / "spool.sqlite").write_bytes(b"damaged" * 1000)
    crashed.close()
    spool = open_spool(tmp_path / "copy")
    windows(spool, 1)
    *_, newest = spool.due(0.0)
    assert (newest.spool_id, newest.seq) not in used
    spool.close()


# The disk ---------------------------------------------------------------------------------------------


def test_a_full_disk_stops_neither_the_agent_nor_the_next_window(
    spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    db = spool._file._db
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    db.execute(f"PRAGMA max_page_count = {pages}")
    windows(spool, 60)
    held = seqs(spool.due(0.0))
    assert 0 < len(held) < 60
    assert seqs(spool.due(20.0)) == held
    assert len(caplog.messages) == 1
    db.execute("PRAGMA max_page_count = 1000000")
    windows(spool, 1)
    assert seqs(spool.due(21.0)) == [held[-1] + 1]
    spool.acknowledged(spool.id, held[-1] + 1, 22.0)
    (said,) = spool.due(22.0)
    assert isinstance(said, Event)
    assert said.text == f"{60 - len(held)} messages were refused by the disk, or by a spool full of events"


def test_a_disk_that_cannot_be_written_keeps_telemetry_in_memory(tmp_path: Path) -> None:
    (tmp_path / "spool.sqlite").mkdir()
    spool = open_spool(tmp_path)
    windows(spool, 3)
    spool.add_event("note", "kept")
    assert len(everything(spool)) == 4
    spool.close()
    assert open_spool(tmp_path).id != spool.id


def test_a_spool_damaged_inside_does_not_end_the_agent(tmp_path: Path) -> None:
    """A header that is whole says nothing of the pages behind it."""
    spool = open_spool(tmp_path)
    before = spool.id
    windows(spool, 2000)
    spool.close()
    path = tmp_path / "spool.sqlite"
    content = bytearray(path.read_bytes())
    content[4096 * 2 :] = b"\xa5" * (len(content) - 4096 * 2)
    path.write_bytes(content)
    spool = open_spool(tmp_path)
    windows(spool, 1)
    assert [message.seq for message in spool.due(0.0)] == [1, 2]
    assert spool.id != before
    spool.close()


def test_damage_that_shows_in_use_costs_what_was_held_and_no_more(spool: Spool, tmp_path: Path) -> None:
    windows(spool, 5)
    before, healthy = spool.id, spool._file._db

    class Damaged:
        """A connection on a file that was whole when it was opened."""

        def execute(self, *_: object) -> None:
            raise sqlite3.DatabaseError("database disk image is malformed")

        def close(self) -> None:
            healthy.close()
            (tmp_path / "spool.sqlite").write_bytes(b"damaged" * 1000)

    spool._file._db = cast("sqlite3.Connection", Damaged())
    assert list(spool.due(0.0)) == []
    (said,) = spool.due(0.1)
    assert isinstance(said, Event)
    assert said.kind == "damage"
    windows(spool, 1)
    assert seqs(spool.due(0.0)) == [2]
    assert spool.id != before


def test_what_another_version_wrote_is_given_up_and_said_once(spool: Spool, caplog: pytest.LogCaptureFixture) -> None:
    """An update in the middle of a long silence: the disk is not asked, nor the log written, once for each."""
    windows(spool, 80)
    spool._file._db.execute("UPDATE messages SET body = x'00'")
    windows(spool, 1)
    assert seqs(spool.due(0.0)) == [81]
    assert len(caplog.messages) == 1
    spool.acknowledged(spool.id, 81, 0.1)
    (said,) = spool.due(0.2)
    assert isinstance(said, Event)
    assert said.text == "80 messages between the numbers 1 and 80 were given up"


def test_a_row_that_this_version_cannot_read_costs_only_itself(spool: Spool) -> None:
    """Another version wrote it, or its text was damaged: raised in the loop, it would end every start from now on."""
    windows(spool, 3)
    spool._file._db.execute("UPDATE messages SET body = '{}' WHERE seq = 2")
    assert [seq for seq in seqs(spool.due(0.0)) if seq != 2] == [1, 3]


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_a_damaged_spool_on_a_disk_that_refuses_does_not_end_the_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    (tmp_path / "spool.sqlite").write_bytes(b"damaged" * 1000)
    opened: list[str] = []

    def open_(path: str, limit_bytes: int) -> SpoolFile:
        opened.append(path)
        if path != ":memory:" and len(opened) > 1:
            raise sqlite3.OperationalError("database or disk is full")
        return SpoolFile(path, limit_bytes)

    def replace(_self: Path, _target: Path) -> Path:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    if how == "full":
        monkeypatch.setattr(spools, "SpoolFile", open_)
    else:
        monkeypatch.setattr(Path, "replace", replace)
    spool = open_spool(tmp_path)
    windows(spool, 1)
    assert len(everything(spool)) >= 1
