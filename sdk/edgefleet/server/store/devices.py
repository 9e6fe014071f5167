"""Table of devices: what each said of itself last, its presence, and where it is in its lifecycle.

What it shall run is in `deployments`, who it is in `enrolments`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from edgefleet.protocol.messages import TERMINAL_STATES, DeviceState, Facts, Online, State
from edgefleet.server.store.database import Database

SCHEMA = """
CREATE TABLE IF NOT EXISTS devices (
  device TEXT PRIMARY KEY, enrolment_id TEXT NOT NULL, boot_id TEXT NOT NULL, seen_at REAL NOT NULL,
  agent_version TEXT, profile TEXT, simulated INTEGER, simulated_reason TEXT, architecture TEXT, cpu_model TEXT,
  memory_mib INTEGER, board TEXT, serial TEXT, os TEXT, runtimes TEXT, state TEXT, reason TEXT,
  online INTEGER NOT NULL DEFAULT 0, connection INTEGER NOT NULL DEFAULT 0,
  generation INTEGER NOT NULL DEFAULT 0, digest TEXT, index_digest TEXT, variant TEXT, runtime TEXT, precision TEXT,
  verified_bytes INTEGER, total_bytes INTEGER, pulled_bytes INTEGER NOT NULL DEFAULT 0,
  bad_blocks INTEGER NOT NULL DEFAULT 0, sent_bytes INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
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


class Devices(Database):
    """Devices that have said hello."""

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


def _device_row(row: sqlite3.Row) -> DeviceRow:
    fields = {name: row[name] for name in DeviceRow.__slots__}
    state = None if row["state"] is None else State(row["state"])
    return DeviceRow(**{**fields, "online": bool(row["online"]), "simulated": bool(row["simulated"]), "state": state})
