"""The spool's file: numbered messages in a SQLite ring that never outgrows its bytes.

The oldest windows make room, events never do; what was dropped is counted in the same transaction. It knows nothing
of what a message says, and of the server only the number up to which the file's user calls everything settled.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgefleet.transaction import transaction

PAGE_BYTES = 4096
# The log is written back into the file at so many pages; for an instant it may be longer by one transaction.
LOG_PAGES = 96
# sqlite.org/walformat.html: the log's index has 32 KiB for the first 4062 pages of the log.
INDEX_PAGES = 8
BESIDE_THE_FILE_PAGES = LOG_PAGES + LOG_PAGES // 2 + INDEX_PAGES
LEAST_BYTES = 2 * BESIDE_THE_FILE_PAGES * PAGE_BYTES
# Kept free, so that the next message always fits: the largest event, all of it quotation marks, is eight pages.
FREE_PAGES = 16
DROP_AT_ONCE = 16
# Measured: 2 MB, which is SQLite's own choice, make nothing here faster, and are never given back.
CACHE_KIB = 512
# A reader of the file may hold it for a moment, the agent's loop may not wait for long.
LOCK_PATIENCE_S = 0.5
WINDOW, EVENT = "window", "event"

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS spool (one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL)",
    # AUTOINCREMENT: a number is not used again when its row is gone.
    """CREATE TABLE IF NOT EXISTS messages (
       seq INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, boot_id TEXT NOT NULL, body BLOB NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS lost (
       one INTEGER PRIMARY KEY CHECK (one = 1), dropped INTEGER NOT NULL, first_seq INTEGER, last_seq INTEGER,
       refused INTEGER NOT NULL)""",
    "INSERT OR IGNORE INTO lost VALUES (1, 0, NULL, NULL, 0)",
)


@dataclass(frozen=True, slots=True)
class Lost:
    """What did not fit: numbered messages that were dropped, and ones that never got a number."""

    dropped: int
    first_seq: int
    last_seq: int
    refused: int

    def __bool__(self) -> bool:
        """Whether anything was lost."""
        return bool(self.dropped or self.refused)


@dataclass(frozen=True, slots=True)
class Row:
    """A message as it is kept."""

    seq: int
    kind: str
    boot_id: str
    body: Any
    """As it was appended: bytes or text."""


class SpoolFile:
    """One open file. Every method raises sqlite3.OperationalError where the disk refuses, sqlite3.DatabaseError where
    the file is damaged.
    """

    def __init__(self, path: str, limit_bytes: int) -> None:
        """Open or create; with the log beside it the file stays below `limit_bytes` (LEAST_BYTES at least)."""
        self._most_pages = max(limit_bytes, LEAST_BYTES) // PAGE_BYTES - BESIDE_THE_FILE_PAGES
        self._db = sqlite3.connect(path, isolation_level=None, timeout=LOCK_PATIENCE_S)
        try:
            self._lay_out()
            self._shrink()
            self.id: str = self._db.execute("SELECT id FROM spool").fetchone()[0]
            (newest,) = self._db.execute("SELECT max(seq) FROM sqlite_sequence WHERE name = 'messages'").fetchone()
            self.newest_seq: int = newest or 0
            self._found_seq = self.newest_seq
        except BaseException:
            self._db.close()
            raise

    def _lay_out(self) -> None:
        self._db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        self._db.execute("PRAGMA journal_mode = WAL")
        # FULL: a number that was sent must not come again because a power cut took the row back.
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._db.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
        self._db.execute(f"PRAGMA journal_size_limit = {LOG_PAGES * PAGE_BYTES}")
        with transaction(self._db):
            for statement in _SCHEMA:
                self._db.execute(statement)
            self._db.execute("INSERT OR IGNORE INTO spool VALUES (1, ?)", (secrets.token_hex(8),))

    def _shrink(self) -> None:
        """After the limit was lowered: drop windows, and give the pages back."""
        (pages,) = self._db.execute("PRAGMA page_count").fetchone()
        if pages > self._most_pages:
            with transaction(self._db):
                self._make_room()
            self._db.execute("VACUUM")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self._db.execute(f"PRAGMA max_page_count = {self._most_pages}")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    # Writing -----------------------------------------------------------------------------------------

    def append(self, kind: str, boot_id: str, body: bytes | str, settled_seq: int) -> bool:
        """Keep a message and forget what is settled, in one transaction; False when only events are left."""
        with transaction(self._db):
            seq = self._append((kind, boot_id, body), settled_seq)
        self.newest_seq = max(self.newest_seq, seq)
        return seq > 0

    def append_lost(self, boot_id: str, body_of: Callable[[Lost], str], settled_seq: int) -> None:
        """Make what was lost an event, and begin to count anew, in one transaction."""
        with transaction(self._db):
            body = body_of(self.lost())
            self._db.execute("UPDATE lost SET dropped = 0, first_seq = NULL, last_seq = NULL, refused = 0")
            seq = self._append((EVENT, boot_id, body), settled_seq)
        self.newest_seq = max(self.newest_seq, seq)

    def _append(self, row: tuple[str, str, bytes | str], settled_seq: int) -> int:
        """The new message's number, or 0 where it was refused."""
        self.settle(settled_seq)
        if not self._make_room():
            self._db.execute("UPDATE lost SET refused = refused + 1")
            return 0
        sql = "INSERT INTO messages (kind, boot_id, body) VALUES (?, ?, ?)"
        return int(self._db.execute(sql, row).lastrowid or 0)

    def _make_room(self) -> bool:
        """Drop the oldest windows until the next message fits; False when there are none to drop."""
        while self._free_pages() < FREE_PAGES:
            oldest = "SELECT seq FROM messages WHERE kind = ? ORDER BY seq LIMIT ?"
            seqs = [seq for (seq,) in self._db.execute(oldest, (WINDOW, DROP_AT_ONCE))]
            if not seqs:
                return False
            self._db.execute("DELETE FROM messages WHERE kind = ? AND seq <= ?", (WINDOW, seqs[-1]))
            self._count_dropped(len(seqs), seqs[0], seqs[-1])
        return True

    def _free_pages(self) -> int:
        (pages,) = self._db.execute("PRAGMA page_count").fetchone()
        (unused,) = self._db.execute("PRAGMA freelist_count").fetchone()
        return int(self._most_pages - pages + unused)

    def _count_dropped(self, count: int, first_seq: int, last_seq: int) -> None:
        self._db.execute(
            "UPDATE lost SET dropped = dropped + ?1, first_seq = min(coalesce(first_seq, ?2), ?2),"
            " last_seq = max(coalesce(last_seq, ?3), ?3)",
            (count, first_seq, last_seq),
        )

    def settle(self, seq: int) -> None:
        """Forget everything up to `seq`."""
        self._db.execute("DELETE FROM messages WHERE seq <= ?", (seq,))

    def drop(self, seqs: list[int]) -> None:
        """Give up some messages; `seqs` ascend."""
        with transaction(self._db):
            self._db.executemany("DELETE FROM messages WHERE seq = ?", [(seq,) for seq in seqs])
            self._count_dropped(len(seqs), seqs[0], seqs[-1])

    def renumber(self, above: int) -> None:
        """Give what was added since the opening numbers above `above`, in order: those that it has were used before."""
        added = self.newest_seq - self._found_seq
        with transaction(self._db):
            # By way of numbers below zero: none may meet another.
            self._db.execute("UPDATE messages SET seq = ?1 - seq WHERE seq > ?1", (self._found_seq,))
            self._db.execute("UPDATE messages SET seq = ? - seq WHERE seq < 0", (above,))
            self._db.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'messages'", (above + added,))
        self._found_seq, self.newest_seq = above, above + added

    # Reading -----------------------------------------------------------------------------------------

    def lost(self) -> Lost:
        """What was lost and not said yet."""
        row = self._db.execute("SELECT dropped, first_seq, last_seq, refused FROM lost").fetchone()
        return Lost(row[0], row[1] or 0, row[2] or 0, row[3])

    def oldest_seq(self, above: int) -> int | None:
        """The lowest number above `above` that is held."""
        (seq,) = self._db.execute("SELECT min(seq) FROM messages WHERE seq > ?", (above,)).fetchone()
        return None if seq is None else int(seq)

    def count(self, above: int, upto: int) -> int:
        """Messages held with above < number <= upto."""
        sql = "SELECT count(*) FROM messages WHERE seq > ? AND seq <= ?"
        return int(self._db.execute(sql, (above, upto)).fetchone()[0])

    def next(self, above: int, most: int) -> list[Row]:
        """At most `most` messages with numbers above `above`, in order."""
        sql = "SELECT seq, kind, boot_id, body FROM messages WHERE seq > ? ORDER BY seq LIMIT ?"
        return [Row(*row) for row in self._db.execute(sql, (above, most))]
