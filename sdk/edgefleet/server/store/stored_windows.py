"""A telemetry window and its row: the columns that it is kept in, and what a span takes of them again.

Read without checks, which were made when it came, and sketches only when they are asked for. It knows no database.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import Any

from edgefleet.protocol.measurements import Accuracy, Energy, EstimatedEnergy, MeasuredEnergy, Thermal
from edgefleet.protocol.messages import Window
from edgefleet.sketch import Sketch

_THERMAL = tuple(name for name in Thermal.model_fields if name != "reason")


@dataclass(frozen=True, slots=True)
class StoredDurations:
    """A column with a sketch in it."""

    text: str

    def sketch(self) -> Sketch:
        """A sketch of one's own, to be merged into."""
        return Sketch.restored(json.loads(self.text))


@dataclass(frozen=True, slots=True)
class StoredLatency:
    """The three columns of durations."""

    preprocess: StoredDurations
    inference: StoredDurations
    end_to_end: StoredDurations


@dataclass(frozen=True, slots=True)
class StoredWindow:
    """`spans.Measured` of a row."""

    duration_s: float
    count: int
    errors: int
    accuracy: Accuracy | None
    latency: StoredLatency
    energy: Energy
    thermal: Thermal


def columns(window: Window) -> dict[str, Any]:
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


def read(row: sqlite3.Row) -> StoredWindow:
    """The window of a row."""
    counts = {name: row[name] for name in ("correct", "labelled")}
    return StoredWindow(
        row["duration_s"], row["count"], row["errors"],
        None if row["labelled"] is None else Accuracy.model_construct(**counts),
        StoredLatency(*(StoredDurations(row[name]) for name in ("preprocess", "inference", "end_to_end"))),
        _energy(row), _thermal(row),
    )  # fmt: skip


def _energy(row: sqlite3.Row) -> Energy:
    found = {"joules": row["joules"], "duration_s": row["energy_s"], "scope": row["energy_scope"]}
    if row["energy_source"] == "measured":
        return MeasuredEnergy.model_construct(**found, samples=row["energy_samples"])
    return EstimatedEnergy.model_construct(
        **found, low_j=row["low_j"], high_j=row["high_j"], reason=row["energy_reason"]
    )


def _thermal(row: sqlite3.Row) -> Thermal:
    return Thermal.model_construct(**{name: row[name] for name in _THERMAL}, reason=row["thermal_reason"])
