"""Tables of telemetry windows and events, and how far each device's spool is stored without a gap.

Sketches and joules, as they came: what a span of them amounts to is computed in `spans`.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import Any

from edgefleet import spans
from edgefleet.protocol.measurements import (
    Accuracy,
    Durations,
    Energy,
    EstimatedEnergy,
    Latency,
    MeasuredEnergy,
    Memory,
    Stamp,
    Statistics,
    Thermal,
)
from edgefleet.protocol.messages import Event, Telemetry, Window
from edgefleet.server.store.database import Database
from edgefleet.spans import SPAN_S, Span

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
  PRIMARY KEY (device, spool_id, seq)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS telemetry_by_arrival ON telemetry (device, digest, received_at, seq);
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


@dataclass(frozen=True, slots=True)
class DeviceTelemetry:
    """What the store knows of one device running one variant: totals of all its windows, and its newest span."""

    windows: int
    inferences: int
    errors: int
    correct: int
    labelled: int
    span: Span


class TelemetryTables(Database):
    """What devices measured and what happened on them."""

    def add_telemetry(self, device: str, message: Telemetry, now: float) -> None:
        """Store a window; the same (device, spool, seq) again changes nothing."""
        values = {"device": device, "spool_id": message.spool_id, "seq": message.seq, "received_at": now}
        row = values | {"enrolment_id": message.enrolment_id} | _columns(message.window)
        names = ", ".join(row)
        stored = self._db.execute(
            f"INSERT OR IGNORE INTO telemetry ({names}) VALUES (:{names.replace(', ', ', :')})",  # noqa: S608 - our names
            row,
        )
        if stored.rowcount:
            self._add_tensors((device, message.spool_id, message.seq), message.window.statistics)

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
        """Totals of one device running one variant, and the span of the windows that came last."""
        key = (device, digest)
        # total() and not sum(): what a device says must not overflow it.
        totals = self._db.execute(
            """SELECT count(*), total(count), total(errors), total(correct), total(labelled)
               FROM telemetry WHERE device = ? AND digest = ?""",
            key,
        ).fetchone()
        # By arrival: a device's clock may have jumped, and a spool begun anew counts from 1 again.
        newest = self._db.execute(
            """SELECT * FROM telemetry WHERE device = ? AND digest = ?
               ORDER BY received_at DESC, seq DESC LIMIT ?""",
            (*key, MAX_SPAN_WINDOWS),
        )
        windows, inferences, errors, correct, labelled = (int(total) for total in totals)
        span = spans.merge(map(_window, newest))
        return DeviceTelemetry(windows, inferences, errors, correct, labelled, span)

    def events(self, device: str) -> list[tuple[str, str]]:
        """(kind, text) of a device's events, in the order in which they came."""
        rows = self._db.execute("SELECT kind, text FROM events WHERE device = ? ORDER BY received_at, seq", (device,))
        return [(row["kind"], row["text"]) for row in rows]


def _columns(window: Window) -> dict[str, Any]:
    """A window's row, without its statistics."""
    started, latency, energy, accuracy = window.started, window.latency, window.energy, window.accuracy
    thermal = window.thermal.model_dump()
    estimate = energy if isinstance(energy, EstimatedEnergy) else None
    return {
        "boot_id": started.boot_id, "monotonic_s": started.monotonic_s, "wall_s": started.wall_s,
        "clock": started.clock.value, "duration_s": window.duration_s, "digest": window.digest, "count": window.count,
        "errors": window.errors, "preprocess": latency.preprocess.model_dump_json(),
        "inference": latency.inference.model_dump_json(), "end_to_end": latency.end_to_end.model_dump_json(),
        "correct": accuracy and accuracy.correct, "labelled": accuracy and accuracy.labelled,
        "energy_source": energy.source, "energy_scope": energy.scope, "joules": energy.joules,
        "low_j": estimate and estimate.low_j, "high_j": estimate and estimate.high_j, "energy_s": energy.duration_s,
        "energy_samples": None if isinstance(energy, EstimatedEnergy) else energy.samples,
        "energy_reason": estimate and estimate.reason, "thermal_reason": thermal.pop("reason"), **thermal,
        "cpu_share": window.cpu_share, "agent_bytes": window.memory.agent_bytes,
        "worker_bytes": window.memory.worker_bytes,
    }  # fmt: skip


def _window(row: sqlite3.Row) -> Window:
    """A stored window, without its statistics; it was checked when it came."""
    latency = {name: Durations.model_construct(**json.loads(row[name])) for name in Latency.model_fields}
    names = ("temperature_c", "frequency_mhz", "throttled", "undervoltage")
    thermal = Thermal.model_construct(**{name: row[name] for name in names}, reason=row["thermal_reason"])
    accuracy = {name: row[name] for name in ("correct", "labelled")}
    return Window.model_construct(
        started=Stamp.model_construct(**{name: row[name] for name in Stamp.model_fields}),
        **{name: row[name] for name in ("duration_s", "digest", "count", "errors", "cpu_share")},
        latency=Latency.model_construct(None, **latency),
        energy=_energy(row),
        thermal=thermal,
        memory=Memory.model_construct(agent_bytes=row["agent_bytes"], worker_bytes=row["worker_bytes"]),
        accuracy=None if row["labelled"] is None else Accuracy.model_construct(**accuracy),
    )


def _energy(row: sqlite3.Row) -> Energy:
    found = {"joules": row["joules"], "duration_s": row["energy_s"], "scope": row["energy_scope"]}
    if row["energy_source"] == "measured":
        return MeasuredEnergy.model_construct(**found, samples=row["energy_samples"])
    return EstimatedEnergy.model_construct(
        **found, low_j=row["low_j"], high_j=row["high_j"], reason=row["energy_reason"]
    )
