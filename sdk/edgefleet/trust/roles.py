"""The roles of the fleet's TUF metadata: their names, how long each lasts, and what delegates to what.

It reads no file and signs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Root, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError

from edgefleet.errors import TrustError

ROOT: Final = "root"
TARGETS: Final = "targets"
PACKAGES: Final = "packages"
DEPLOYMENTS: Final = "deployments"
SNAPSHOT: Final = "snapshot"
TIMESTAMP: Final = "timestamp"

EXPIRY_DAYS: Final = {ROOT: 365, TARGETS: 365, PACKAGES: 365, SNAPSHOT: 30, TIMESTAMP: 7}
"""What a person signs lasts a year: one ceremony a year, warned of from 60 days before. What the server signs anew
every day lasts a week: the longest that somebody who repeats old files can hide a revocation, and long enough for a
bundle that travels on a stick. A server that was off for weeks signs when it starts; until then nothing new is
installed, and what runs goes on."""
RESIGN_AFTER_S: Final = 86_400.0
"""The server signs snapshot and timestamp anew after this."""

T = TypeVar("T", Root, Targets, Snapshot, Timestamp)


def expiry(role: str, now: float) -> datetime:
    """When metadata of a role that is signed now expires."""
    return datetime.fromtimestamp(int(now), UTC) + timedelta(days=EXPIRY_DAYS[role])


def delegations() -> Delegations:
    """What `targets` delegates, without a key yet."""
    roles = {
        PACKAGES: DelegatedRole(PACKAGES, [], 1, True, ["packages/*"]),
        # It only names the operators' keys: there never is a file of this role.
        DEPLOYMENTS: DelegatedRole(DEPLOYMENTS, [], 1, True, ["deployments/*"]),
    }
    return Delegations(keys={}, roles=roles)


def parsed(kind: type[T], content: bytes, name: str) -> Metadata[T]:
    """Metadata of one kind, nothing verified; raises TrustError naming `name`."""
    try:
        metadata: Metadata[T] = Metadata.from_bytes(content)
    except DeserializationError as error:
        raise TrustError(f"reading {name}", "it is not TUF metadata", "restore the file") from error
    if metadata.signed.type != kind.type:
        raise TrustError(f"reading {name}", f"it is {metadata.signed.type} metadata", "restore the file")
    return metadata


def verify_role(delegator: Root | Targets, role: str, metadata: Metadata[Any], name: str) -> None:
    """Check that enough keys of the role signed it; raises TrustError naming `name`."""
    try:
        delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, ValueError) as error:
        remedy = "sign it with the keys that the metadata names"
        raise TrustError(f"verifying {name}", str(error), remedy) from error


def check_signer(keyids: Sequence[str], signer: Signer, doing: str, role: str) -> None:
    """Refuse a key that may not sign for the role; raises TrustError."""
    if signer.public_key.keyid not in keyids:
        raise TrustError(
            doing,
            f"the key {signer.public_key.keyid[:8]} may not sign {role}",
            "use the key that the newest metadata names",
        )


def check_signed_by(signer: Signer, metadata: Metadata[Any], doing: str, role: str) -> None:
    """Refuse to sign a next version of what this key did not sign itself; raises TrustError.

    The metadata come from the server's folder: whoever broke into it may have put his own there.
    """
    key = signer.public_key
    try:
        key.verify_signature(metadata.signatures[key.keyid], metadata.signed_bytes)
    except (KeyError, UnverifiedSignatureError) as error:
        raise TrustError(
            doing,
            f"the {role} metadata there were not signed by this key",
            "find out who changed the server's folder, then restore it",
        ) from error
