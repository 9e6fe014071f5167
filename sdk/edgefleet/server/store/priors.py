"""Table of decisions: what each device chose by its benchmark, and which of them others found not to hold.

What they come to for the next device is `edgefleet.prior`'s business.
"""

from __future__ import annotations

from edgefleet.prior import FRESH_S, Decided
from edgefleet.protocol.decisions import DecisionRecord, Objective
from edgefleet.server.store.database import Database

SCHEMA = """
CREATE TABLE IF NOT EXISTS decisions (
  index_digest TEXT NOT NULL, hardware_class TEXT NOT NULL, objective TEXT NOT NULL, device TEXT NOT NULL,
  at REAL NOT NULL, record BLOB, PRIMARY KEY (index_digest, hardware_class, objective, device)) WITHOUT ROWID;
"""

Key = tuple[str, str, Objective]
"""(index digest, hardware class, objective)."""


class Decisions(Database):
    """One row for each device, package version and objective: its last word, or that the prior did not hold there."""

    def add_decision(self, device: str, record: DecisionRecord, now: float) -> Key:
        """Record what a device decided, instead of what it said before; the key that this bears on."""
        self._put((record.index_digest, record.hardware_class, record.objective), device, now, record.encode())
        return record.index_digest, record.hardware_class, record.objective

    def add_contradiction(self, device: str, key: Key, now: float) -> None:
        """Record that what others decided did not hold on a device."""
        self._put(key, device, now, None)

    def decisions(self, key: Key) -> tuple[list[Decided], int]:
        """(decisions on a key, how many devices found them not to hold)."""
        rows = self._db.execute(
            """SELECT device, at, record FROM decisions
               WHERE index_digest = ? AND hardware_class = ? AND objective = ?""",
            key,
        ).fetchall()
        decided = [
            Decided(row["device"], DecisionRecord.decode(row["record"]), row["at"]) for row in rows if row["record"]
        ]
        return decided, len(rows) - len(decided)

    def _put(self, key: Key, device: str, now: float, record: bytes | None) -> None:
        self._db.execute("DELETE FROM decisions WHERE at < ?", (now - FRESH_S,))
        self._db.execute("INSERT OR REPLACE INTO decisions VALUES (?, ?, ?, ?, ?, ?)", (*key, device, now, record))
