"""Tables of telemetry windows and events, and how far each device's spool is stored without a gap.

Measured and estimated power are never averaged together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgefleet.protocol.messages import EstimatedPower, Event, Telemetry
from edgefleet.server.store.database import Database

SCHEMA = """
CREATE TABLE IF NOT EXISTS spools (
  device TEXT NOT NULL, spool_id TEXT NOT NULL, contiguous INTEGER NOT NULL,
  PRIMARY KEY (device, spool_id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS telemetry (
  device TEXT NOT NULL, spool_id TEXT NOT NULL, seq INTEGER NOT NULL, enrolment_id TEXT NOT NULL,
  boot_id TEXT NOT NULL, received_at REAL NOT NULL, started_at REAL NOT NULL, duration_s REAL NOT NULL,
  digest TEXT NOT NULL, count INTEGER NOT NULL, errors INTEGER NOT NULL, p50_ms REAL, p90_ms REAL,
  latency_reason TEXT, correct INTEGER, labelled INTEGER, watts REAL NOT NULL, low_w REAL, high_w REAL,
  power_source TEXT NOT NULL, power_scope TEXT NOT NULL, power_reason TEXT,
  PRIMARY KEY (device, spool_id, seq)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (
  device TEXT NOT NULL, spool_id TEXT NOT NULL, seq INTEGER NOT NULL, enrolment_id TEXT NOT NULL,
  boot_id TEXT NOT NULL, received_at REAL NOT NULL, at REAL NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL,
  PRIMARY KEY (device, spool_id, seq)) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class DeviceTelemetry:
    """What the store knows of one device running one variant; power is the mean over the windows of its source."""

    windows: int
    inferences: int
    errors: int
    correct: int
    labelled: int
    p50_ms: float | None
    p90_ms: float | None
    latency_reason: str | None
    watts: float | None
    low_w: float | None
    high_w: float | None
    power_source: str | None
    power_scope: str | None
    power_reason: str | None


class TelemetryTables(Database):
    """What devices measured and what happened on them."""

    def add_telemetry(self, device: str, message: Telemetry, now: float) -> None:
        """Store a window; the same (device, spool, seq) again changes nothing."""
        window, power = message.window, message.window.power
        estimate = power if isinstance(power, EstimatedPower) else None
        self._db.execute(
            f"INSERT OR IGNORE INTO telemetry VALUES (?{', ?' * 21})",  # noqa: S608 - literal text
            (
                device, message.spool_id, message.seq, message.enrolment_id, message.boot_id, now,
                window.started_at, window.duration_s, window.digest, window.count, window.errors,
                window.latency.p50_ms, window.latency.p90_ms, window.latency.reason,
                window.accuracy and window.accuracy.correct, window.accuracy and window.accuracy.labelled,
                power.watts, estimate and estimate.low_w, estimate and estimate.high_w, power.source, power.scope,
                estimate and estimate.reason,
            ),
        )  # fmt: skip

    def add_event(self, device: str, message: Event, now: float) -> None:
        """Store an event; the same (device, spool, seq) again changes nothing."""
        self._db.execute(
            "INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                device, message.spool_id, message.seq, message.enrolment_id, message.boot_id, now, message.at,
                message.kind, message.text,
            ),
        )  # fmt: skip

    def advance(self, device: str, spool_id: str, oldest_seq: int) -> int:
        """Highest seq up to which everything is stored (or was given up by the device); recorded and returned."""
        row = self._db.execute(
            "SELECT contiguous FROM spools WHERE device = ? AND spool_id = ?", (device, spool_id)
        ).fetchone()
        contiguous = max(row["contiguous"] if row else 0, oldest_seq - 1)
        key = (device, spool_id, contiguous)
        stored = self._db.execute(
            """SELECT seq FROM telemetry WHERE device = ? AND spool_id = ? AND seq > ?
               UNION SELECT seq FROM events WHERE device = ? AND spool_id = ? AND seq > ? ORDER BY seq""",
            (*key, *key),
        )
        for (seq,) in stored:
            if seq != contiguous + 1:
                break
            contiguous = seq
        self._db.execute("INSERT OR REPLACE INTO spools VALUES (?, ?, ?)", (device, spool_id, contiguous))
        return contiguous

    def telemetry(self, device: str, digest: str) -> DeviceTelemetry:
        """Totals of one device running one variant; percentiles are those of its newest complete window."""
        where = "FROM telemetry WHERE device = ? AND digest = ?"
        key = (device, digest)
        totals = self._db.execute(
            f"""SELECT count(*) AS windows, coalesce(sum(count), 0) AS inferences,
                  coalesce(sum(errors), 0) AS errors, coalesce(sum(correct), 0) AS correct,
                  coalesce(sum(labelled), 0) AS labelled {where}""",
            key,
        ).fetchone()
        latency = self._db.execute(
            f"""SELECT p50_ms, p90_ms, latency_reason {where}
                ORDER BY p90_ms IS NULL, received_at DESC, seq DESC LIMIT 1""",
            key,
        ).fetchone()
        # Measured and estimated are never averaged together: the measured windows win where there are any.
        power = self._db.execute(
            f"""SELECT power_source, power_scope, avg(watts) AS watts, avg(low_w) AS low_w, avg(high_w) AS high_w,
                  max(power_reason) AS power_reason {where}
                GROUP BY power_source, power_scope ORDER BY power_source = 'measured' DESC LIMIT 1""",
            key,
        ).fetchone()
        found: dict[str, Any] = dict.fromkeys(DeviceTelemetry.__slots__)
        for row in (totals, latency, power):
            found |= {} if row is None else dict(row)
        return DeviceTelemetry(**found)

    def events(self, device: str) -> list[tuple[str, str]]:
        """(kind, text) of a device's events, in the order in which they came."""
        rows = self._db.execute("SELECT kind, text FROM events WHERE device = ? ORDER BY received_at, seq", (device,))
        return [(row["kind"], row["text"]) for row in rows]
