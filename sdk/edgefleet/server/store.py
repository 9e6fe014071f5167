"""The server's store: SQLite in WAL mode, columns rather than documents, one file.

Several processes may open it (the server writes, commands read and record deployments). It holds no rules.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgefleet.errors import StorageError
from edgefleet.protocol.messages import (
    TERMINAL_STATES,
    Deployment,
    Desired,
    DeviceState,
    EstimatedPower,
    Event,
    Facts,
    Online,
    State,
    Telemetry,
)

LOCK_PATIENCE_S = 10.0

SCHEMA = """
CREATE TABLE IF NOT EXISTS server (
  one INTEGER PRIMARY KEY CHECK (one = 1), fleet TEXT NOT NULL, broker TEXT NOT NULL,
  connected INTEGER NOT NULL, failure TEXT);
CREATE TABLE IF NOT EXISTS devices (
  device TEXT PRIMARY KEY, enrolment_id TEXT NOT NULL, boot_id TEXT NOT NULL, seen_at REAL NOT NULL,
  agent_version TEXT, profile TEXT, simulated INTEGER, simulated_reason TEXT, architecture TEXT, cpu_model TEXT,
  memory_mib INTEGER, board TEXT, serial TEXT, os TEXT, runtimes TEXT, state TEXT, reason TEXT,
  online INTEGER NOT NULL DEFAULT 0, connection INTEGER NOT NULL DEFAULT 0,
  generation INTEGER NOT NULL DEFAULT 0, digest TEXT, index_digest TEXT, variant TEXT, runtime TEXT, precision TEXT,
  verified_bytes INTEGER, total_bytes INTEGER, pulled_bytes INTEGER NOT NULL DEFAULT 0,
  bad_blocks INTEGER NOT NULL DEFAULT 0, sent_bytes INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS deployments (
  deployment_id TEXT PRIMARY KEY, package TEXT NOT NULL, version TEXT NOT NULL, release INTEGER NOT NULL,
  index_digest TEXT NOT NULL, selector TEXT NOT NULL, created_at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS desired (
  device TEXT PRIMARY KEY, generation INTEGER NOT NULL, deployment_id TEXT NOT NULL, message BLOB NOT NULL,
  outcome TEXT, outcome_reason TEXT) WITHOUT ROWID;
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
class DeviceRow:
    """What the fleet table shows of one device."""

    device: str
    enrolment_id: str
    online: bool
    seen_at: float
    profile: str | None
    simulated: bool
    simulated_reason: str | None
    state: State | None
    reason: str | None
    generation: int
    digest: str | None
    index_digest: str | None
    variant: str | None
    runtime: str | None
    precision: str | None
    verified_bytes: int | None
    total_bytes: int | None
    pulled_bytes: int
    bad_blocks: int
    sent_bytes: int


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


class Store:
    """One connection to the store; not shared between threads."""

    def __init__(self, path: Path) -> None:
        """Open or create; raises StorageError."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=LOCK_PATIENCE_S, isolation_level=None)
            self._db.row_factory = sqlite3.Row
            _use_wal(self._db)
            # FULL: what was acknowledged to a device survives a power cut of the server.
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise StorageError(
                f"opening the store {path}", str(error), "check the disk, or name another --data folder"
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is committed together or not at all."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            # A COMMIT that failed may have ended the transaction itself.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Inside a transaction: everything inside happens or not, and the transaction goes on either way."""
        self._db.execute("SAVEPOINT one")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK TO one")
            raise
        finally:
            self._db.execute("RELEASE one")

    def changed(self) -> int:
        """A number that changes whenever another process commits (PRAGMA data_version)."""
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    # The server itself -------------------------------------------------------------------------------

    def set_server(self, fleet: str, broker: str, *, connected: bool, failure: str | None) -> None:
        """Say which fleet is served through which broker, and whether the connection stands."""
        self._db.execute("INSERT OR REPLACE INTO server VALUES (1, ?, ?, ?, ?)", (fleet, broker, connected, failure))

    def server(self) -> sqlite3.Row | None:
        """Row of `set_server`, or None when no server ever ran on this store."""
        row: sqlite3.Row | None = self._db.execute("SELECT * FROM server").fetchone()
        return row

    # Devices -----------------------------------------------------------------------------------------

    def add_facts(self, device: str, facts: Facts, now: float) -> None:
        """Record a hello. Another enrolment is another device: its presence and state begin anew."""
        machine = facts.machine
        runtimes = ", ".join(f"{name.value} {version}" for name, version in sorted(machine.runtimes.items()))
        columns = {
            "enrolment_id": facts.enrolment_id, "boot_id": facts.boot_id, "seen_at": now,
            "agent_version": facts.agent_version, "profile": facts.profile, "simulated": facts.simulated,
            "simulated_reason": facts.simulated_reason, "architecture": machine.architecture,
            "cpu_model": machine.cpu_model, "memory_mib": machine.memory_mib, "board": machine.board,
            "serial": machine.serial, "os": machine.os, "runtimes": runtimes, "connection": facts.connection,
        }  # fmt: skip
        known = self.device(device)
        if known is not None and known.enrolment_id != facts.enrolment_id:
            self._db.execute("DELETE FROM devices WHERE device = ?", (device,))
        names = ", ".join(columns)
        updates = ", ".join(f"{name} = excluded.{name}" for name in columns)
        self._db.execute(
            f"""INSERT INTO devices (device, {names}) VALUES (?{", ?" * len(columns)})
                ON CONFLICT (device) DO UPDATE SET {updates}""",  # noqa: S608 - literal names
            (device, *columns.values()),
        )

    def set_seen(self, device: str, now: float) -> None:
        """Record that a device was heard of."""
        self._db.execute("UPDATE devices SET seen_at = ? WHERE device = ?", (now, device))

    def set_online(self, device: str, message: Online) -> bool:
        """Record presence; False when it is of an older connection or another enrolment, and changes nothing."""
        return bool(
            self._db.execute(
                """UPDATE devices SET online = ?, connection = ?
                   WHERE device = ? AND enrolment_id = ? AND connection <= ?""",
                (message.online, message.connection, device, message.enrolment_id, message.connection),
            ).rowcount
        )

    def set_all_offline(self) -> None:
        """Nothing is known of anyone's presence: the broker tells it again."""
        self._db.execute("UPDATE devices SET online = 0")

    def set_state(self, device: str, state: DeviceState, now: float) -> None:
        """Record a device's state, and the outcome of its generation when it is terminal."""
        active, progress = state.active, state.progress
        changed = self._db.execute(
            """UPDATE devices SET seen_at = ?, state = ?, reason = ?, generation = ?, digest = ?, index_digest = ?,
                 variant = ?, runtime = ?, precision = ?, verified_bytes = ?, total_bytes = ?, pulled_bytes = ?,
                 bad_blocks = ? WHERE device = ? AND enrolment_id = ?""",
            (
                now, state.state, state.reason, state.generation,
                active and active.digest, active and active.index_digest, active and active.name,
                active and active.runtime, active and active.precision,
                progress and progress.verified_bytes, progress and progress.total_bytes,
                state.pulled_bytes, state.bad_blocks, device, state.enrolment_id,
            ),
        ).rowcount  # fmt: skip
        if changed and state.state in TERMINAL_STATES:
            self._db.execute(
                "UPDATE desired SET outcome = ?, outcome_reason = ? WHERE device = ? AND generation = ?",
                (state.state, state.reason, device, state.generation),
            )

    def add_sent_bytes(self, sent: Iterable[tuple[str, int]]) -> None:
        """Add to the bytes of blocks that the hub has sent to each device."""
        self._db.executemany(
            "UPDATE devices SET sent_bytes = sent_bytes + ? WHERE device = ?",
            [(size, device) for device, size in sent],
        )

    def devices(self) -> list[DeviceRow]:
        """All devices, by name."""
        rows = self._db.execute("SELECT * FROM devices ORDER BY device").fetchall()
        return [_device_row(row) for row in rows]

    def device(self, device: str) -> DeviceRow | None:
        """One device, or None when it never said hello."""
        row = self._db.execute("SELECT * FROM devices WHERE device = ?", (device,)).fetchone()
        return None if row is None else _device_row(row)

    # Desired states ----------------------------------------------------------------------------------

    def add_deployment(self, deployment: Deployment, now: float) -> None:
        """Record what an operator decided."""
        self._db.execute(
            "INSERT INTO deployments VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                deployment.deployment_id, deployment.package, deployment.version, deployment.release,
                deployment.index_digest, deployment.selector, now,
            ),
        )  # fmt: skip

    def set_desired(self, desired: Desired) -> None:
        """Replace what a device shall run; its outcome is open."""
        self._db.execute(
            "INSERT OR REPLACE INTO desired VALUES (?, ?, ?, ?, NULL, NULL)",
            (desired.device, desired.generation, desired.deployment.deployment_id, desired.encode()),
        )

    def desired(self, device: str) -> Desired | None:
        """What a device shall run, or None."""
        row = self._db.execute("SELECT message FROM desired WHERE device = ?", (device,)).fetchone()
        return None if row is None else Desired.decode(row["message"])

    def desired_generations(self) -> dict[str, int]:
        """Device → generation of its desired state."""
        return dict(self._db.execute("SELECT device, generation FROM desired").fetchall())

    def open_devices(self) -> list[str]:
        """Online devices whose desired state has no outcome yet."""
        rows = self._db.execute(
            "SELECT device FROM desired JOIN devices USING (device) WHERE outcome IS NULL AND online"
        )
        return [device for (device,) in rows]

    def outcome(self, device: str, generation: int) -> tuple[State, str | None] | None:
        """How a generation ended on a device, or None while it is open or was replaced."""
        row = self._db.execute(
            "SELECT outcome, outcome_reason FROM desired WHERE device = ? AND generation = ?",
            (device, generation),
        ).fetchone()
        return None if row is None or row["outcome"] is None else (State(row["outcome"]), row["outcome_reason"])

    # Telemetry ---------------------------------------------------------------------------------------

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


def _use_wal(db: sqlite3.Connection) -> None:
    """Switch to WAL; SQLite does not wait for a lock there, and another process may be doing the same now."""
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _device_row(row: sqlite3.Row) -> DeviceRow:
    fields = {name: row[name] for name in DeviceRow.__slots__}
    state = None if row["state"] is None else State(row["state"])
    return DeviceRow(**{**fields, "online": bool(row["online"]), "simulated": bool(row["simulated"]), "state": state})
