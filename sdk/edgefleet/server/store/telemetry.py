"""Tables of telemetry windows and events, and how far each device's spool is stored without a gap.

Sketches and joules, as they came: what a span of them amounts to is computed in `spans`. How long they are kept is
`retention`'s business; totals stay.
"""

from __future__ import annotations

import math
import sqlite3
from dataclasses import dataclass
from itertools import takewhile

from edgefleet import spans
from edgefleet.protocol.measurements import Statistics
from edgefleet.protocol.messages import Event, Telemetry, Window
from edgefleet.server.store import stored_windows
from edgefleet.server.store.database import Database
from edgefleet.spans import SPAN_S, Span

# `telemetry` has row numbers: without, a row of more than a quarter page takes a page of its own, three times as much
# (sqlite.org/fileformat2.html, cell payload overflow pages).
SCHEMA = """
CREATE TABLE IF NOT EXISTS spools (
  device TEXT NOT NULL, spool_id TEXT NOT NULL, contiguous INTEGER NOT NULL,
  PRIMARY KEY (device, spool_id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS telemetry (
  device TEXT NOT NULL, spool_id TEXT NOT NULL, seq INTEGER NOT NULL, enrolment_id TEXT NOT NULL,
  received_at REAL NOT NULL, boot_id TEXT NOT NULL, monotonic_s REAL NOT NULL, wall_s REAL NOT NULL,
  clock TEXT NOT NULL, duration_s REAL NOT NULL, digest TEXT NOT NULL, count INTEGER NOT NULL, errors INTEGER NOT NULL,
  preprocess TEXT NOT NULL, inference TEXT NOT NULL, end_to_end TEXT NOT NULL, correct INTEGER, labelled INTEGER,
  energy_source TEXT NOT NULL, energy_scope TEXT NOT NULL, joules REAL NOT NULL, low_j REAL, high_j REAL,
  energy_s REAL NOT NULL, energy_samples INTEGER, energy_reason TEXT, temperature_c REAL, frequency_mhz REAL,
  throttled INTEGER, undervoltage INTEGER, throttled_since_boot INTEGER, undervoltage_since_boot INTEGER,
  thermal_reason TEXT, cpu_share REAL NOT NULL, agent_bytes INTEGER, worker_bytes INTEGER,
  PRIMARY KEY (device, spool_id, seq));
CREATE INDEX IF NOT EXISTS telemetry_by_arrival ON telemetry (device, digest, received_at, seq);
CREATE TABLE IF NOT EXISTS totals (
  device TEXT NOT NULL, digest TEXT NOT NULL, windows INTEGER NOT NULL, inferences INTEGER NOT NULL,
  errors INTEGER NOT NULL, correct INTEGER NOT NULL, labelled INTEGER NOT NULL,
  PRIMARY KEY (device, digest)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tensors (
  device TEXT NOT NULL, spool_id TEXT NOT NULL, seq INTEGER NOT NULL, side TEXT NOT NULL, place INTEGER NOT NULL,
  name TEXT NOT NULL, "values" INTEGER NOT NULL, not_finite INTEGER NOT NULL, mean REAL, std REAL, min REAL, max REAL,
  PRIMARY KEY (device, spool_id, seq, side, place)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (
  device TEXT NOT NULL, spool_id TEXT NOT NULL, seq INTEGER NOT NULL, enrolment_id TEXT NOT NULL,
  boot_id TEXT NOT NULL, received_at REAL NOT NULL, at REAL NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL,
  PRIMARY KEY (device, spool_id, seq)) WITHOUT ROWID;
"""


# The newest windows that are looked at for a span: of the shortest length that an agent can be set to.
MAX_SPAN_WINDOWS = round(SPAN_S / 0.5)


# A number that the device knows to be settled is stored, or was given up: it may be forgotten here by now.
_IS_NEW = "NOT EXISTS (SELECT 1 FROM spools WHERE device = :device AND spool_id = :spool_id AND contiguous >= :seq)"


@dataclass(frozen=True, slots=True)
class DeviceTelemetry:
    """What the store knows of one device running one variant: totals of all windows ever, and its newest span."""

    windows: int
    inferences: int
    errors: int
    correct: int
    labelled: int
    span: Span


@dataclass(frozen=True, slots=True)
class TensorTotals:
    """Values of one input or output over several windows; None: none of them was finite."""

    side: str
    """input or output."""
    name: str
    values: int
    not_finite: int
    mean: float | None
    std: float | None
    low: float | None
    high: float | None


class TelemetryTables(Database):
    """What devices measured and what happened on them."""

    def add_telemetry(self, device: str, message: Telemetry, now: float) -> None:
        """Store a window; the same (device, spool, seq) again changes nothing, though it be forgotten by now."""
        values = {"device": device, "spool_id": message.spool_id, "seq": message.seq, "received_at": now}
        row = values | {"enrolment_id": message.enrolment_id} | stored_windows.columns(message.window)
        names = ", ".join(row)
        stored = self._db.execute(
            f"INSERT OR IGNORE INTO telemetry ({names}) SELECT :{names.replace(', ', ', :')} WHERE {_IS_NEW}",
            row,
        )
        if stored.rowcount:
            self._add_tensors((device, message.spool_id, message.seq), message.window.statistics)
            self._add_to_totals(device, message.window)

    def _add_to_totals(self, device: str, window: Window) -> None:
        accuracy = window.accuracy
        # What a device says must not overflow them: SQLite's + goes on with floats, and so does its column.
        self._db.execute(
            """INSERT INTO totals VALUES (?, ?, 1, ?, ?, ?, ?) ON CONFLICT (device, digest) DO UPDATE SET
               windows = windows + 1, inferences = inferences + excluded.inferences, errors = errors + excluded.errors,
               correct = correct + excluded.correct, labelled = labelled + excluded.labelled""",
            (
                device, window.digest, window.count, window.errors,
                accuracy.correct if accuracy else 0, accuracy.labelled if accuracy else 0,
            ),
        )  # fmt: skip

    def _add_tensors(self, key: tuple[str, str, int], statistics: Statistics) -> None:
        sides = (("input", statistics.inputs), ("output", statistics.outputs))
        self._db.executemany(
            "INSERT INTO tensors VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (*key, side, place, t.name, t.values, t.not_finite, t.mean, t.std, t.min, t.max)
                for side, tensors in sides
                for place, t in enumerate(tensors)
            ],
        )

    def add_event(self, device: str, message: Event, now: float) -> None:
        """Store an event; the same (device, spool, seq) again changes nothing, though it be forgotten by now."""
        row = {
            "device": device, "spool_id": message.spool_id, "seq": message.seq, "enrolment_id": message.enrolment_id,
            "boot_id": message.boot_id, "received_at": now, "at": message.at, "kind": message.kind,
            "text": message.text,
        }  # fmt: skip
        names = ", ".join(row)
        self._db.execute(
            f"INSERT OR IGNORE INTO events ({names}) SELECT :{names.replace(', ', ', :')} WHERE {_IS_NEW}",
            row,
        )

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
        """Totals of one device running one variant, and the span of the windows that came last."""
        key = (device, digest)
        totals = self._db.execute(
            "SELECT windows, inferences, errors, correct, labelled FROM totals WHERE device = ? AND digest = ?", key
        ).fetchone()
        # By arrival: a device's clock may have jumped, and a spool begun anew counts from 1 again.
        newest = self._db.execute(
            """SELECT * FROM telemetry WHERE device = ? AND digest = ?
               ORDER BY received_at DESC, seq DESC LIMIT ?""",
            (*key, MAX_SPAN_WINDOWS),
        )
        span = spans.merge(map(stored_windows.read, newest))
        windows, inferences, errors, correct, labelled = (int(total) for total in totals or (0,) * 5)
        return DeviceTelemetry(windows, inferences, errors, correct, labelled, span)

    def tensors(self, device: str, digest: str, last_s: float | None = None) -> list[TensorTotals]:
        """What inputs and outputs looked like in all windows that are kept, or in those that came in the last seconds.

        The last seconds end with the newest window of this variant on this device.
        """
        rows = self._db.execute(
            """WITH chosen AS (SELECT spool_id, seq FROM telemetry WHERE device = :device AND digest = :digest
                 AND (:last_s IS NULL OR received_at > :last_s * -1 +
                   (SELECT max(received_at) FROM telemetry WHERE device = :device AND digest = :digest)))
               SELECT side, name, total("values") AS n, total(not_finite) AS bad, total("values" * mean) AS summed,
                 total("values" * (std * std + mean * mean)) AS squared, min(min) AS low, max(max) AS high
               FROM chosen CROSS JOIN tensors USING (spool_id, seq) WHERE device = :device
               GROUP BY side, place, name ORDER BY side, place""",
            {"device": device, "digest": digest, "last_s": last_s},
        )
        return [_tensor_totals(row) for row in rows]

    def events(self, device: str) -> list[tuple[str, str]]:
        """(kind, text) of a device's events, in the order in which they came."""
        rows = self._db.execute("SELECT kind, text FROM events WHERE device = ? ORDER BY received_at, seq", (device,))
        return [(row["kind"], row["text"]) for row in rows]

    # Forgetting --------------------------------------------------------------------------------------

    def spools(self) -> list[tuple[str, str]]:
        """(device, spool) of all that ever sent anything."""
        return [(row["device"], row["spool_id"]) for row in self._db.execute("SELECT device, spool_id FROM spools")]

    def forget_windows(self, device: str, spool_id: str, before: float, most: int) -> int:
        """Forget the oldest windows that came before `before`, `most` at once; returns how many. Totals stay."""
        last, count = self._oldest("telemetry", (device, spool_id), before, most)
        if count:
            for table in ("telemetry", "tensors"):
                self._forget(table, (device, spool_id), last)
        return count

    def forget_events(self, device: str, spool_id: str, before: float, most: int) -> int:
        """Forget the oldest events that came before `before`, `most` at once; returns how many."""
        last, count = self._oldest("events", (device, spool_id), before, most)
        if count:
            self._forget("events", (device, spool_id), last)
        return count

    def _oldest(self, table: str, spool: tuple[str, str], before: float, most: int) -> tuple[int, int]:
        """(highest number, count) of those that may go: settled ones, so that `advance` misses none of them."""
        rows = self._db.execute(
            f"""SELECT seq, received_at FROM {table} WHERE device = ?1 AND spool_id = ?2 AND seq <=
                (SELECT contiguous FROM spools WHERE device = ?1 AND spool_id = ?2) ORDER BY seq LIMIT ?3""",  # noqa: S608 - our names
            (*spool, most),
        )
        seqs = [row["seq"] for row in takewhile(lambda row: row["received_at"] < before, rows)]
        return (seqs[-1], len(seqs)) if seqs else (0, 0)

    def _forget(self, table: str, spool: tuple[str, str], last: int) -> None:
        self._db.execute(f"DELETE FROM {table} WHERE device = ? AND spool_id = ? AND seq <= ?", (*spool, last))  # noqa: S608 - our names


def _tensor_totals(row: sqlite3.Row) -> TensorTotals:
    """Means and deviations of several windows as those of all their values."""
    mean = row["summed"] / row["n"] if row["n"] else None
    std = None if mean is None else math.sqrt(max(0.0, row["squared"] / row["n"] - mean * mean))
    return TensorTotals(row["side"], row["name"], int(row["n"]), int(row["bad"]), mean, std, row["low"], row["high"])
