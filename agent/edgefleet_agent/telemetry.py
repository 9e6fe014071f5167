"""The spool: windows and events on disk until the server says that they are in its store.

Bounded: the oldest windows go first, events never. The broker's own acknowledgement counts for nothing here.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from edgefleet.protocol.messages import Event, Spooled, Telemetry, Window

IN_FLIGHT = 100
RESEND_AFTER_S = 10.0
GAP_EVERY_S = 1.0

log = logging.getLogger("edgefleet.agent")


class Spool:
    """A ring of unacknowledged messages in SQLite; numbers are never used twice."""

    def __init__(self, path: Path, enrolment_id: str, boot_id: str, limit: int) -> None:
        """Open or create; a damaged file is set aside and a new one begun."""
        self._enrolment_id = enrolment_id
        self._boot_id = boot_id
        self._limit = limit
        self.damage: str | None = None
        try:
            self._db = self._open(path)
        except sqlite3.DatabaseError as error:
            self.damage = f"the telemetry spool could not be read ({error}); it was kept as spool.damaged"
            path.replace(path.with_suffix(".damaged"))
            self._db = self._open(path)
            # Numbers of the lost file must not come again: the clock is far above one a second.
            self._db.execute("INSERT INTO sqlite_sequence VALUES ('messages', ?)", (int(time.time()),))
        self._sent_to = 0
        self._progress_at = 0.0
        self._gap_at = 0.0
        self._lost = 0

    @staticmethod
    def _open(path: Path) -> sqlite3.Connection:
        db = sqlite3.connect(path, isolation_level=None)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute(
            """CREATE TABLE IF NOT EXISTS messages (seq INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL,
               boot_id TEXT NOT NULL, body TEXT NOT NULL)"""
        )
        return db

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def add_window(self, window: Window) -> None:
        """Keep a window."""
        self._add("window", window.model_dump_json())

    def add_event(self, kind: str, text: str) -> None:
        """Keep an event."""
        event = Event(
            enrolment_id=self._enrolment_id,
            boot_id=self._boot_id,
            seq=1,
            oldest_seq=1,
            at=time.time(),
            kind=kind,
            text=text,
        )
        self._add("event", event.model_dump_json())

    def _add(self, kind: str, body: str) -> None:
        try:
            self._db.execute("INSERT INTO messages (kind, boot_id, body) VALUES (?, ?, ?)", (kind, self._boot_id, body))
        except sqlite3.OperationalError as error:
            # A full disk must not stop the inference: the gap is counted and said once there is room again.
            self._lost += 1
            log.warning("a %s could not be kept (%s)", kind, error)
            return
        if self._lost:
            lost, self._lost = self._lost, 0
            self.add_event("telemetry_lost", f"{lost} windows or events could not be written to the spool")
        (held,) = self._db.execute("SELECT count(*) FROM messages").fetchone()
        if held > self._limit:
            self._db.execute(
                """DELETE FROM messages WHERE seq IN
                   (SELECT seq FROM messages WHERE kind = 'window' ORDER BY seq LIMIT ?)""",
                (held - self._limit,),
            )

    def acknowledged(self, seq: int, now: float) -> None:
        """Delete what the server has committed.

        An answer that does not move on means that it got a later message, but not the oldest one held here.
        """
        deleted = self._db.execute("DELETE FROM messages WHERE seq <= ?", (seq,)).rowcount
        if deleted:
            self._progress_at = now
        elif now - self._gap_at > GAP_EVERY_S:
            self._gap_at = now
            self.restart()

    def restart(self) -> None:
        """After a reconnect everything that is left is sent again, in order."""
        self._sent_to = 0

    def due(self, now: float) -> Iterator[Spooled]:
        """Messages to send now: at most IN_FLIGHT unacknowledged; all again after 10 s without an answer."""
        (oldest, waiting) = self._db.execute(
            "SELECT min(seq), count(*) FROM messages WHERE seq <= ?", (self._sent_to,)
        ).fetchone()
        if waiting and now - self._progress_at > RESEND_AFTER_S:
            self._sent_to, waiting = 0, 0
        if not waiting:
            self._progress_at = now
        rows = self._db.execute(
            "SELECT seq, kind, boot_id, body FROM messages WHERE seq > ? ORDER BY seq LIMIT ?",
            (self._sent_to, max(0, IN_FLIGHT - waiting)),
        ).fetchall()
        for seq, kind, boot_id, body in rows:
            oldest = oldest or seq
            self._sent_to = seq
            yield self._message(seq, oldest, kind, boot_id, body)

    def _message(self, seq: int, oldest: int, kind: str, boot_id: str, body: str) -> Spooled:
        if kind == "event":
            numbers = {"seq": seq, "oldest_seq": oldest, "boot_id": boot_id}
            return Event.model_validate_json(body).model_copy(update=numbers)
        return Telemetry(
            enrolment_id=self._enrolment_id,
            boot_id=boot_id,
            seq=seq,
            oldest_seq=oldest,
            window=Window.model_validate_json(body),
        )
