"""The spool: windows and events on disk until the server says that they are in its store.

Bounded: the oldest windows go first, events only when nothing else is left. The broker's own acknowledgement counts
for nothing here. A disk that refuses costs telemetry, never the inference.
"""

from __future__ import annotations

import json
import logging
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from edgefleet.protocol.messages import Event, Spooled, Telemetry, Window

IN_FLIGHT = 100
RESEND_AFTER_S = 10.0

T = TypeVar("T")

log = logging.getLogger("edgefleet.agent")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS spool (one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS messages (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, boot_id TEXT NOT NULL, body TEXT NOT NULL);
"""


class Spool:
    """A ring of unacknowledged messages in SQLite; within one file a number is never used twice."""

    def __init__(self, path: Path, enrolment_id: str, boot_id: str, limit: int) -> None:
        """Open or create; a damaged file is set aside, and a new one with an id of its own begun."""
        self._path = path
        self._enrolment_id = enrolment_id
        self._boot_id = boot_id
        self._limit = limit
        self._lost = 0
        self._refusal = ""
        """What the disk said last; empty once it has taken something."""
        self._begin()

    def _begin(self) -> None:
        self._sent_to = 0
        self._progress_at = 0.0
        try:
            self._db, self.id = _open(str(self._path))
        except sqlite3.OperationalError as error:
            log.warning("the telemetry spool cannot be kept on disk (%s); it is kept in memory", error)
            self._db, self.id = _open(":memory:")
        except sqlite3.DatabaseError as error:
            log.warning("the telemetry spool could not be read (%s); it is kept as spool.damaged", error)
            try:
                for suffix in ("", "-wal", "-shm"):
                    part = self._path.with_name(self._path.name + suffix)
                    if part.exists():
                        part.replace(self._path.with_name(f"spool.damaged{suffix}"))
                self._db, self.id = _open(str(self._path))
            except (OSError, sqlite3.Error) as refusal:
                log.warning("no new spool can be begun on disk (%s); it is kept in memory", refusal)
                self._db, self.id = _open(":memory:")
            self.add_event("damage", f"the telemetry spool could not be read ({error}); what it held is lost")

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def add_window(self, window: Window) -> None:
        """Keep a window."""
        self._add("window", window.model_dump_json())

    def add_event(self, kind: str, text: str) -> None:
        """Keep an event."""
        self._add("event", json.dumps({"at": time.time(), "kind": kind, "text": text}))

    def _add(self, kind: str, body: str) -> None:
        if not self._guarded(lambda: self._insert(kind, body), default=False):
            self._lost += 1

    def _insert(self, kind: str, body: str) -> bool:
        self._db.execute("INSERT INTO messages (kind, boot_id, body) VALUES (?, ?, ?)", (kind, self._boot_id, body))
        (held,) = self._db.execute("SELECT count(*) FROM messages").fetchone()
        if held > self._limit:
            self._lost += self._db.execute(
                "DELETE FROM messages WHERE seq IN (SELECT seq FROM messages ORDER BY kind = 'event', seq LIMIT ?)",
                (held - self._limit,),
            ).rowcount
        self._refusal = ""
        return True

    def acknowledged(self, spool_id: str, seq: int, now: float) -> None:
        """Delete what the server has committed; answers to another spool are nobody's."""
        if spool_id != self.id or not self._guarded(lambda: self._delete(seq), default=0):
            return
        self._progress_at = now
        if self._lost:
            lost, self._lost = self._lost, 0
            self.add_event("telemetry_lost", f"{lost} windows or events did not fit the spool")

    def _delete(self, seq: int) -> int:
        return self._db.execute("DELETE FROM messages WHERE seq <= ?", (seq,)).rowcount

    def _drop(self, seq: int) -> int:
        self._lost += 1
        return self._db.execute("DELETE FROM messages WHERE seq = ?", (seq,)).rowcount

    def restart(self) -> None:
        """After a reconnect everything that is left is sent again, in order."""
        self._sent_to = 0

    def due(self, now: float) -> Iterator[Spooled]:
        """Messages to send now: at most IN_FLIGHT unacknowledged; all again after 10 s without progress."""
        nothing: tuple[int | None, int] = (None, 0)
        oldest, waiting = self._guarded(self._unacknowledged, default=nothing)
        if waiting and now - self._progress_at > RESEND_AFTER_S:
            self._sent_to, waiting = 0, 0
        if not waiting:
            self._progress_at = now
        none: list[tuple[int, str, str, str]] = []
        for seq, kind, boot_id, body in self._guarded(lambda: self._next(IN_FLIGHT - waiting), default=none):
            oldest = oldest or seq
            self._sent_to = seq
            try:
                message = self._message(kind, {"seq": seq, "oldest_seq": oldest, "boot_id": boot_id}, body)
            except (ValueError, TypeError) as error:
                log.warning("the telemetry spool: message %d cannot be read: %s", seq, error)
                self._guarded(partial(self._drop, seq), default=0)
                continue
            yield message

    def _unacknowledged(self) -> tuple[int | None, int]:
        row: tuple[int | None, int] = self._db.execute(
            "SELECT min(seq), count(*) FROM messages WHERE seq <= ?", (self._sent_to,)
        ).fetchone()
        return row

    def _next(self, most: int) -> list[tuple[int, str, str, str]]:
        return self._db.execute(
            "SELECT seq, kind, boot_id, body FROM messages WHERE seq > ? ORDER BY seq LIMIT ?",
            (self._sent_to, max(0, most)),
        ).fetchall()

    def _message(self, kind: str, numbers: dict[str, Any], body: str) -> Spooled:
        who = {"enrolment_id": self._enrolment_id, "spool_id": self.id}
        if kind == "event":
            return Event(**who, **numbers, **json.loads(body))
        return Telemetry(**who, **numbers, window=Window.model_validate_json(body))

    def _guarded(self, work: Callable[[], T], default: T) -> T:
        """Run a query; a full disk gives `default`, a damaged file a new spool and `default`."""
        try:
            return work()
        except sqlite3.OperationalError as error:
            # Once: a disk may refuse for weeks, ten times a minute.
            if str(error) != self._refusal:
                self._refusal = str(error)
                log.warning("the telemetry spool: %s; what comes is lost until the disk takes it", error)
        except sqlite3.DatabaseError:
            self._db.close()
            self._begin()
        return default


def _open(path: str) -> tuple[sqlite3.Connection, str]:
    """Open a spool and check it; raises sqlite3.DatabaseError."""
    db = sqlite3.connect(path, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        # FULL: a number that was sent must not come again because a power cut took the row back.
        db.execute("PRAGMA synchronous = FULL")
        db.executescript(_SCHEMA)
        _check(db)
        db.execute("INSERT OR IGNORE INTO spool VALUES (1, ?)", (secrets.token_hex(8),))
        (spool_id,) = db.execute("SELECT id FROM spool").fetchone()
    except BaseException:
        db.close()
        raise
    return db, str(spool_id)


def _check(db: sqlite3.Connection) -> None:
    (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)
