"""Tables of deployments and of desired states, each as the signed envelope that goes over the wire.

Nothing is signed and no signature is checked here.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgefleet.protocol.messages import State
from edgefleet.protocol.signed import Deployment, Desired, Envelope
from edgefleet.server.store.database import Database

SCHEMA = """
CREATE TABLE IF NOT EXISTS deployments (
  deployment_id TEXT PRIMARY KEY, serial INTEGER NOT NULL, package TEXT NOT NULL, version TEXT NOT NULL,
  release INTEGER NOT NULL, index_digest TEXT NOT NULL, fallback_digest TEXT, selector TEXT NOT NULL,
  expires REAL NOT NULL, created_at REAL NOT NULL, envelope BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS desired (
  device TEXT PRIMARY KEY, generation INTEGER NOT NULL, enrolment_id TEXT NOT NULL, deployment_id TEXT NOT NULL,
  envelope BLOB NOT NULL, outcome TEXT, outcome_reason TEXT) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class DesiredRow:
    """What one device shall run, as it is published."""

    device: str
    generation: int
    enrolment_id: str
    envelope: bytes

    @property
    def signed(self) -> Envelope:
        """The envelope."""
        return Envelope.decode(self.envelope)

    @property
    def desired(self) -> Desired:
        """Its content, taken out of the envelopes."""
        return Desired.unwrap(self.signed)


class Deployments(Database):
    """What operators decided, and what each device was told of it."""

    def add_deployment(self, deployment: Deployment, envelope: Envelope, now: float) -> None:
        """Record what an operator decided and signed; the same one again changes nothing."""
        target = deployment.target
        self._db.execute(
            "INSERT OR IGNORE INTO deployments VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                deployment.deployment_id, deployment.serial, target.package, target.version, target.release,
                target.index_digest, deployment.fallback and deployment.fallback.index_digest, deployment.selector,
                deployment.expires, now, envelope.encode(),
            ),
        )  # fmt: skip

    def deployment(self, deployment_id: str) -> Envelope | None:
        """A deployment in its envelope, or None."""
        row = self._db.execute("SELECT envelope FROM deployments WHERE deployment_id = ?", (deployment_id,)).fetchone()
        return None if row is None else Envelope.decode(row["envelope"])

    def last_serial(self) -> int:
        """The highest serial of any deployment; 0 before the first."""
        return int(self._db.execute("SELECT coalesce(max(serial), 0) FROM deployments").fetchone()[0])

    def package_of(self, index_digest: str) -> tuple[str, str] | None:
        """(package, version) of an index that was ever deployed, or None."""
        row = self._db.execute(
            "SELECT package, version FROM deployments WHERE index_digest = ? LIMIT 1", (index_digest,)
        ).fetchone()
        return None if row is None else (row["package"], row["version"])

    def set_desired(self, envelope: Envelope) -> None:
        """Replace what a device shall run by the content of a signed desired state; its outcome is open."""
        desired = Desired.unwrap(envelope)
        self._db.execute(
            "INSERT OR REPLACE INTO desired VALUES (?, ?, ?, ?, ?, NULL, NULL)",
            (
                desired.device, desired.generation, desired.enrolment_id, desired.deployment.deployment_id,
                envelope.encode(),
            ),
        )  # fmt: skip

    def desired(self, device: str) -> DesiredRow | None:
        """What a device shall run, or None."""
        row = self._db.execute(
            "SELECT device, generation, enrolment_id, envelope FROM desired WHERE device = ?", (device,)
        ).fetchone()
        return None if row is None else DesiredRow(**dict(row))

    def forget_desired(self, device: str) -> None:
        """The device shall run nothing of ours any more."""
        self._db.execute("DELETE FROM desired WHERE device = ?", (device,))

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
