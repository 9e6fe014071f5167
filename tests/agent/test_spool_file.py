"""The spool's file: bounded in bytes, the oldest windows make room, events stay, and losses are counted."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgefleet_agent.spool_file import EVENT, LEAST_BYTES, WINDOW, Lost, SpoolFile

BODY = random.Random(1).randbytes(4000)
MORE_THAN_FIT = 2 * LEAST_BYTES // len(BODY)


def open_file(path: Path, limit_bytes: int = LEAST_BYTES) -> SpoolFile:
    """As the agent does, but that no call waits for the disk."""
    file = SpoolFile(str(path), limit_bytes)
    file._db.execute("PRAGMA synchronous = OFF")
    return file


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    return tmp_path / "spool.sqlite"


@pytest.fixture(name="file")
def _file(path: Path) -> Iterator[SpoolFile]:
    file = open_file(path)
    yield file
    file.close()


def on_disk(path: Path) -> int:
    """Bytes of the file and of what SQLite keeps beside it."""
    return sum(part.stat().st_size for part in path.parent.glob(f"{path.name}*"))


def held(file: SpoolFile) -> list[int]:
    return [row.seq for row in file.next(0, 10**6)]


def append_all(file: SpoolFile, kind: str, count: int, settled_seq: int = 0) -> list[bool]:
    return [file.append(kind, "b1", BODY, settled_seq) for _ in range(count)]


def test_it_never_outgrows_its_limit_and_the_newest_are_kept(file: SpoolFile, path: Path) -> None:
    largest = 0
    for _ in range(MORE_THAN_FIT):
        assert file.append(WINDOW, "b1", BODY, 0)
        largest = max(largest, on_disk(path))
    assert largest <= LEAST_BYTES
    kept = held(file)
    assert kept == list(range(kept[0], MORE_THAN_FIT + 1))
    assert len(kept) * len(BODY) > LEAST_BYTES / 3
    assert file.lost() == Lost(dropped=kept[0] - 1, first_seq=1, last_seq=kept[0] - 1, refused=0)


@pytest.mark.parametrize("events_at", [range(50), range(100, 600, 7)], ids=["first", "between"])
def test_events_stay_where_windows_go(file: SpoolFile, path: Path, events_at: range) -> None:
    events = []
    for number in range(MORE_THAN_FIT):
        kind = EVENT if number in events_at else WINDOW
        assert file.append(kind, "b1", BODY, 0)
        events += [number + 1] if kind == EVENT else []
    rows = file.next(0, 10**6)
    assert [row.seq for row in rows if row.kind == EVENT] == events
    windows = [row.seq for row in rows if row.kind == WINDOW]
    assert windows[-1] == MORE_THAN_FIT
    lost = file.lost()
    assert lost.dropped == MORE_THAN_FIT - len(rows)
    assert (lost.first_seq, lost.last_seq) == (1 if events_at.start else 51, max(set(range(windows[0])) - set(events)))
    assert on_disk(path) <= LEAST_BYTES


def test_when_only_events_are_left_the_newest_is_refused_and_counted(file: SpoolFile, path: Path) -> None:
    append_all(file, WINDOW, 20)
    taken = append_all(file, EVENT, MORE_THAN_FIT)
    fitted = taken.index(False)
    assert not any(taken[fitted:])
    assert held(file) == list(range(21, 21 + fitted))
    assert append_all(file, WINDOW, 1) == [False]
    assert file.lost() == Lost(20, 1, 20, refused=MORE_THAN_FIT - fitted + 1)
    assert on_disk(path) <= LEAST_BYTES
    assert file.append(EVENT, "b1", BODY, 20 + fitted)
    assert held(file) == [21 + fitted]


def test_what_is_settled_goes_first(file: SpoolFile) -> None:
    """A server that keeps up costs nothing of what it has not got."""
    for number in range(MORE_THAN_FIT):
        assert file.append(WINDOW, "b1", BODY, number - 5)
    assert held(file) == list(range(MORE_THAN_FIT - 5, MORE_THAN_FIT + 1))
    assert not file.lost()


def test_losses_are_said_once_and_survive_a_restart(path: Path) -> None:
    file = open_file(path)
    append_all(file, WINDOW, MORE_THAN_FIT)
    lost, last = file.lost(), held(file)[-1]
    assert lost
    file.close()
    file = open_file(path)
    assert file.lost() == lost
    file.append_lost("b1", str, last)
    (row,) = file.next(0, 10)
    assert (row.seq, row.kind, row.body) == (last + 1, EVENT, str(lost))
    assert not file.lost()
    file.close()


def test_a_message_that_is_given_up_is_counted(file: SpoolFile) -> None:
    append_all(file, WINDOW, 3)
    file.drop([2])
    assert held(file) == [1, 3]
    assert file.lost() == Lost(1, 2, 2, 0)


def test_a_lower_limit_gives_the_disk_back(path: Path) -> None:
    file = open_file(path, 4 * LEAST_BYTES)
    append_all(file, WINDOW, MORE_THAN_FIT)
    events = append_all(file, EVENT, 3)
    file.close()
    assert on_disk(path) > 2 * LEAST_BYTES
    file = open_file(path)
    assert on_disk(path) <= LEAST_BYTES
    assert held(file)[-4:] == [MORE_THAN_FIT, *range(MORE_THAN_FIT + 1, MORE_THAN_FIT + 1 + len(events))]
    assert append_all(file, WINDOW, MORE_THAN_FIT) == [True] * MORE_THAN_FIT
    assert on_disk(path) <= LEAST_BYTES
    file.close()


def test_numbers_are_never_used_again(path: Path) -> None:
    file = open_file(path)
    append_all(file, WINDOW, 5)
    file.settle(5)
    file.close()
    file = open_file(path)
    assert (file.newest_seq, held(file)) == (5, [])
    append_all(file, WINDOW, 1)
    assert held(file) == [6]
    file.close()


def test_a_number_is_on_disk_before_it_can_be_sent(path: Path) -> None:
    """In WAL mode with synchronous = NORMAL a power cut takes the last commits back (sqlite.org/wal.html): a number
    that the server has already stored would be given to another message, which the server would then drop."""
    file = SpoolFile(str(path), LEAST_BYTES)
    (synchronous,) = file._db.execute("PRAGMA synchronous").fetchone()
    assert synchronous >= 2
    file.close()


def test_a_refused_write_changes_nothing(file: SpoolFile) -> None:
    append_all(file, WINDOW, 5)
    (pages,) = file._db.execute("PRAGMA page_count").fetchone()
    file._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        append_all(file, WINDOW, 1000, settled_seq=2)
    assert held(file)[0] in (1, 3)
    assert held(file)[-1] == file.newest_seq
    assert not file._db.in_transaction
