"""Table of enrolments: which identity a device's name belongs to now, and why it is not served, where it is not.

Certificates are made and revoked in `edgefleet.trust`; the table remembers what was done.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgefleet.server.store.database import Database

SCHEMA = """
CREATE TABLE IF NOT EXISTS enrolments (
  device TEXT PRIMARY KEY, enrolment_id TEXT NOT NULL, serial_number TEXT NOT NULL, not_after REAL NOT NULL,
  enrolled_at REAL NOT NULL, revoked_at REAL, hardware_serial TEXT, flag TEXT) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class EnrolmentRow:
    """Who a device is; times are wall clock, seconds since 1970."""

    device: str
    enrolment_id: str
    serial_number: str
    """Of its certificate, hexadecimal."""
    not_after: float
    enrolled_at: float
    revoked_at: float | None
    hardware_serial: str | None
    """Of the first board that was seen with this enrolment, or of the one that it was enrolled for."""
    flag: str | None
    """Why it gets no deployments, in one line."""


class Enrolments(Database):
    """Every device that was ever enrolled."""

    def add_enrolment(
        self,
        device: str,
        enrolment_id: str,
        not_after: float,
        serial_number: str,
        now: float,
        hardware_serial: str | None = None,
    ) -> None:
        """Record an enrolment. The same enrolment again is a renewal: only its certificate changes."""
        known = self.enrolment(device)
        if known is not None and known.enrolment_id == enrolment_id:
            self._db.execute(
                "UPDATE enrolments SET not_after = ?, serial_number = ? WHERE device = ?",
                (not_after, serial_number, device),
            )
            return
        self._db.execute(
            "INSERT OR REPLACE INTO enrolments VALUES (?, ?, ?, ?, ?, NULL, ?, NULL)",
            (device, enrolment_id, serial_number, not_after, now, hardware_serial),
        )

    def enrolment(self, device: str) -> EnrolmentRow | None:
        """The device's enrolment, revoked or not; None when it never had one."""
        row = self._db.execute("SELECT * FROM enrolments WHERE device = ?", (device,)).fetchone()
        return None if row is None else EnrolmentRow(**dict(row))

    def enrolments(self) -> list[EnrolmentRow]:
        """All of them, by name."""
        return [EnrolmentRow(**dict(row)) for row in self._db.execute("SELECT * FROM enrolments ORDER BY device")]

    def revoke_enrolment(self, device: str, now: float) -> None:
        """The device is no longer one of the fleet; a first revocation keeps its date."""
        self._db.execute("UPDATE enrolments SET revoked_at = coalesce(revoked_at, ?) WHERE device = ?", (now, device))

    def set_hardware_serial(self, device: str, serial: str) -> None:
        """Remember the board that an enrolment was first seen with."""
        self._db.execute("UPDATE enrolments SET hardware_serial = ? WHERE device = ?", (serial, device))

    def set_flag(self, device: str, reason: str) -> None:
        """Take a device out of deployments until it is enrolled anew."""
        self._db.execute("UPDATE enrolments SET flag = ? WHERE device = ?", (reason, device))

    def denied(self) -> dict[str, str]:
        """Device → why it is served nothing: it was removed, or it is flagged."""
        rows = self._db.execute(
            "SELECT device, flag FROM enrolments WHERE revoked_at IS NOT NULL OR flag IS NOT NULL ORDER BY device"
        )
        return {row["device"]: row["flag"] or "it was removed from the fleet" for row in rows}
