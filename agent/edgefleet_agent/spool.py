"""The spool: windows and events on disk until the server says that they are in its store.

It decides what is sent when: in order, so many in flight, so many a second, all again after a silence. The broker's
own acknowledgement counts for nothing here. A disk that refuses costs telemetry, never the inference.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from edgefleet.protocol.messages import Event, Spooled, Telemetry, Window
from edgefleet_agent.spool_file import EVENT, WINDOW, Lost, Row, SpoolFile

IN_FLIGHT = 100
RESEND_AFTER_S = 10.0
# Longer texts are cut: events are never dropped, so none may fill the spool. The record of 16 candidates fits.
MOST_EVENT_BYTES = 16_384
# Where the disk cannot be used the spool is in memory, of which there is less.
MEMORY_BYTES = 2_000_000

T = TypeVar("T")

log = logging.getLogger("edgefleet.agent")


class Spool:
    """The unacknowledged messages of one device; within one file a number is never used twice."""

    def __init__(self, path: Path, enrolment_id: str, boot_id: str, *, limit_bytes: int, replay_per_s: float) -> None:
        """Open or create; a damaged file is set aside, and a new one with an id of its own begun.

        `replay_per_s` bounds what is sent, also when a day's messages wait.
        """
        self._path = path
        self._enrolment_id = enrolment_id
        self._boot_id = boot_id
        self._limit_bytes = limit_bytes
        self._replay_per_s = replay_per_s
        self._refused = 0
        """Messages that the disk did not take; what the file itself lost is counted in there."""
        self._refusal = ""
        """What the disk said last; empty once it has taken something."""
        self._begin()

    @property
    def id(self) -> str:
        """Random, made with the file."""
        return self._file.id

    def _begin(self) -> None:
        """Open the file, a new one in a damaged one's place, or one in memory."""
        self._begin_numbers()
        try:
            self._file = SpoolFile(str(self._path), self._limit_bytes)
        except sqlite3.OperationalError as error:
            log.warning("the telemetry spool cannot be kept on disk (%s); it is kept in memory", error)
            self._file = SpoolFile(":memory:", MEMORY_BYTES)
        except sqlite3.DatabaseError as error:
            self._begin_anew(error)

    def _begin_numbers(self) -> None:
        self._settled_seq = self._forgotten_seq = self._sent_seq = self._told_seq = 0
        self._progress_at = self._paced_at = 0.0
        self._allowance = self._replay_per_s

    def _begin_anew(self, damage: sqlite3.DatabaseError) -> None:
        """A new file in a damaged one's place, also where that can still be opened; or one in memory."""
        self._begin_numbers()
        log.warning("the telemetry spool could not be read (%s); it is kept as spool.damaged", damage)
        try:
            self._set_aside()
            self._file = SpoolFile(str(self._path), self._limit_bytes)
        except (OSError, sqlite3.Error) as refusal:
            log.warning("no new spool can be begun on disk (%s); it is kept in memory", refusal)
            self._file = SpoolFile(":memory:", MEMORY_BYTES)
        self.add_event("damage", f"the telemetry spool could not be read ({damage}); what it held is lost")

    def _set_aside(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            part = self._path.with_name(self._path.name + suffix)
            if part.exists():
                part.replace(self._path.with_name(f"spool.damaged{suffix}"))

    def close(self) -> None:
        """Close the file."""
        self._guarded(lambda: self._file.settle(self._settled_seq), default=None)
        self._file.close()

    # In ----------------------------------------------------------------------------------------------

    def add_window(self, window: Window) -> None:
        """Keep a window."""
        self._add(WINDOW, zlib.compress(window.model_dump_json().encode()))

    def add_event(self, kind: str, text: str) -> None:
        """Keep an event; its text is cut to MOST_EVENT_BYTES."""
        self._add(EVENT, _event(kind, text))

    def _add(self, kind: str, body: bytes | str) -> None:
        def append() -> bool:
            return self._file.append(kind, self._boot_id, body, self._settled_seq)

        # None: the file cannot even count it.
        file, added = self._file, self._guarded(append, default=None)
        if added is None and self._file is not file:
            # It was damaged: a new one was begun.
            added = self._guarded(append, default=None)
        if added is None:
            self._refused += 1
        else:
            self._forgotten_seq, self._refusal = self._settled_seq, ""

    def acknowledged(self, spool_id: str, seq: int, now: float) -> None:
        """Forget what the server has committed; answers to another spool are nobody's."""
        if spool_id != self.id or seq <= self._settled_seq:
            return
        if seq > self._file.newest_seq:
            self._renumber(seq)
            return
        self._settled_seq, self._progress_at = seq, now
        # The next message's transaction does it, unless none comes.
        if seq - self._forgotten_seq >= IN_FLIGHT:
            self._guarded(lambda: self._file.settle(seq), default=None)
            self._forgotten_seq = seq
        self._guarded(self._say_what_was_lost, default=None)

    def _renumber(self, above: int) -> None:
        """The server has numbers that this file does not know: it had lost its end, and used some of them again."""
        self._guarded(lambda: self._file.renumber(above), default=None)
        # A disk that refuses is asked again at the next acknowledgement.
        if self._file.newest_seq >= above:
            log.warning("the telemetry spool had lost numbers that it had used, up to %d: it goes on above them", above)
            self._settled_seq = self._sent_seq = above

    def _say_what_was_lost(self) -> None:
        """Not before the server answers: said at once, it would push out what is left."""
        if self._refused or self._file.lost():
            self._file.append_lost(self._boot_id, self._lost_event, self._settled_seq)
            self._refused = 0

    def _lost_event(self, lost: Lost) -> str:
        said = []
        if lost.dropped:
            numbers = f"between the numbers {lost.first_seq} and {lost.last_seq}"
            said.append(f"{lost.dropped} messages {numbers} were given up")
        if refused := lost.refused + self._refused:
            said.append(f"{refused} messages were refused by the disk, or by a spool full of events")
        return _event("telemetry_lost", "; ".join(said))

    # Out ---------------------------------------------------------------------------------------------

    def restart(self) -> None:
        """After a reconnect everything that is left is sent again, in order."""
        self._sent_seq, self._told_seq = self._settled_seq, 0
        self._allowance = self._replay_per_s

    def due(self, now: float) -> Iterator[Spooled]:
        """Messages to send now: at most IN_FLIGHT unacknowledged, `replay_per_s`; all again after 10 s of silence.

        A message counts as sent once the next one is asked for.
        """
        file = self._file
        if file.newest_seq <= self._settled_seq:
            return
        oldest_seq, rows = self._guarded(partial(self._choose, now), default=(0, list[Row]()))
        for seq, message in self._read(rows, oldest_seq):
            # What is read or added meanwhile may show damage: these rows are then nobody's.
            if self._file is not file:
                return
            if message is not None:
                yield message
                self._allowance -= 1
            self._sent_seq, self._told_seq = max(self._sent_seq, seq), oldest_seq

    def _read(self, rows: list[Row], oldest_seq: int) -> list[tuple[int, Spooled | None]]:
        """Numbers and messages; None, and given up, is what this version cannot read: many, after an update."""
        found: list[tuple[int, Spooled | None]] = []
        reason = ""
        for row in rows:
            try:
                found.append((row.seq, self._message(row, oldest_seq)))
            except (ValueError, TypeError, zlib.error) as error:
                found.append((row.seq, None))
                reason = reason or str(error).partition("\n")[0]
        strange = [seq for seq, message in found if message is None]
        if strange:
            log.warning("the telemetry spool: %d messages cannot be read: %s", len(strange), reason)
            self._guarded(lambda: self._file.drop(strange), default=None)
        return found

    def _choose(self, now: float) -> tuple[int, list[Row]]:
        """(lowest number that is held, what to send next)."""
        file, settled_seq = self._file, self._settled_seq
        oldest_seq = file.oldest_seq(settled_seq) or 0
        waiting = file.count(settled_seq, self._sent_seq)
        if waiting and now - self._progress_at > RESEND_AFTER_S:
            self._sent_seq, waiting = settled_seq, 0
        if not waiting:
            self._progress_at = now
        most = min(IN_FLIGHT - waiting, self._paced(now))
        if most <= 0:
            return oldest_seq, []
        rows = file.next(self._sent_seq, most)
        # The server waits for numbers that were dropped: the first message behind them says that none will come.
        if max(settled_seq + 1, self._told_seq) < oldest_seq <= self._sent_seq:
            rows = [*file.next(oldest_seq - 1, 1), *rows]
        return oldest_seq, rows

    def _paced(self, now: float) -> int:
        """How many messages may be sent now (a token bucket of one second)."""
        earned = max(0.0, now - self._paced_at) * self._replay_per_s
        self._paced_at, self._allowance = now, min(self._replay_per_s, self._allowance + earned)
        return int(self._allowance)

    def _message(self, row: Row, oldest_seq: int) -> Spooled:
        """Raises ValueError, TypeError or zlib.error for what this version did not write."""
        who: dict[str, Any] = {
            "enrolment_id": self._enrolment_id, "spool_id": self.id, "boot_id": row.boot_id, "seq": row.seq,
            "oldest_seq": oldest_seq,
        }  # fmt: skip
        if row.kind == EVENT:
            return Event(**who, **json.loads(row.body))
        return Telemetry(**who, window=Window.model_validate_json(zlib.decompress(row.body)))

    def _guarded(self, work: Callable[[], T], default: T) -> T:
        """Use the file; a full disk gives `default`, a damaged file a new spool and `default`."""
        try:
            return work()
        except sqlite3.OperationalError as error:
            # Once: a disk may refuse for weeks, ten times a minute.
            if str(error) != self._refusal:
                self._refusal = str(error)
                log.warning("the telemetry spool: %s; what comes is lost until the disk takes it", error)
        except sqlite3.DatabaseError as error:
            self._file.close()
            self._begin_anew(error)
        return default


def _event(kind: str, text: str) -> str:
    cut = text.encode(errors="replace")[:MOST_EVENT_BYTES].decode(errors="ignore")
    return json.dumps({"at": time.time(), "kind": kind, "text": cut}, ensure_ascii=False)
