"""What is signed by whom until when: the rows of `edgefleet keys status`, and warnings before anything expires.

It changes nothing and asks for no passphrase.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from securesystemslib.signer import Key

from edgefleet.trust.keys import KeyFolder, key_name
from edgefleet.trust.online import ONLINE, metadata_folder, online_keys
from edgefleet.trust.repository import Repository
from edgefleet.trust.roles import (
    DEPLOYMENTS,
    EXPIRY_DAYS,
    PACKAGES,
    RESIGN_AFTER_S,
    ROOT,
    SNAPSHOT,
    TARGETS,
    TIMESTAMP,
)

DAY_S: Final = 86_400.0
WARNING_DAYS: Final = (7, 30, 60)
REMEDIES: Final = {
    ROOT: "run: edgefleet keys rotate dates",
    TARGETS: "run: edgefleet keys rotate dates",
    PACKAGES: "run: edgefleet keys rotate dates",
    SNAPSHOT: "start the server: it signs every day",
    TIMESTAMP: "start the server: it signs every day",
    "root authority": "found a fleet with new keys and enrol every device there",
    "issuing authority": "run: edgefleet keys rotate issuing, and enrol each device --again",
    "revocation list": "run: edgefleet keys rotate issuing, and enrol each device --again",
}
ELSE_REMEDY: Final = "start the server: it renews its own certificates and the broker's"


@dataclass(frozen=True, slots=True)
class RoleRow:
    """One role of the metadata: who may sign it, where those private keys are, and until when it holds."""

    role: str
    keyids: tuple[str, ...]
    key_names: tuple[str, ...]
    threshold: int
    private_keys: tuple[str, ...]
    """For each key: the path of its private half as found here, or `not here`."""
    version: int | None
    """None for `deployments`, which only names keys."""
    expires: float | None
    """Unix time."""


def rows(data: Path, keys: KeyFolder) -> list[RoleRow]:
    """One row for each role, root first; raises InputError, TrustError."""
    repository = Repository(metadata_folder(data))
    root, targets = repository.root().signed, repository.targets().signed
    versions = {
        ROOT: root.version,
        TARGETS: targets.version,
        PACKAGES: repository.packages().signed.version,
        SNAPSHOT: repository.snapshot().signed.version,
        TIMESTAMP: repository.timestamp().signed.version,
    }
    expires = dict(repository.expiries())
    table = []
    for role in (ROOT, TARGETS, PACKAGES, DEPLOYMENTS, SNAPSHOT, TIMESTAMP):
        delegator = targets if role in (PACKAGES, DEPLOYMENTS) else root
        signers = delegator.get_delegated_role(role)
        public = [delegator.get_key(keyid) for keyid in signers.keyids]
        where = tuple(_where(key, keys, online_keys(data)) for key in public)
        table.append(
            RoleRow(
                role,
                tuple(signers.keyids),
                tuple(key_name(key) for key in public),
                signers.threshold,
                where,
                versions.get(role),
                expires.get(role),
            )
        )
    return table


def warnings(expiries: Iterable[tuple[str, float]], now: float) -> list[str]:
    """One line for each thing that has expired or will within 60, 30 or 7 days; the soonest first. Pure.

    Snapshot and timestamp, which the server signs every day, are worth a line when it has missed two days.
    """
    lines = []
    for what, at in sorted(expiries, key=lambda one: one[1]):
        left_s = at - now
        day = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")
        remedy = REMEDIES.get(what, ELSE_REMEDY)
        if left_s <= 0:
            lines.append(f"{what} has expired (on {day}): {remedy}")
        elif what in (SNAPSHOT, TIMESTAMP):
            if left_s < EXPIRY_DAYS[what] * DAY_S - 2 * RESIGN_AFTER_S:
                lines.append(f"{what} was not signed for two days and expires on {day}: {remedy}")
        else:
            within = next((days for days in WARNING_DAYS if left_s <= days * DAY_S), None)
            if within is not None:
                lines.append(f"{what} expires within {within} days (on {day}): {remedy}")
    return lines


def _where(key: Key, keys: KeyFolder, online: KeyFolder) -> str:
    name = key_name(key)
    folder = online if name == ONLINE else keys
    path = folder.path(name)
    return str(path) if path.exists() else "not here"
