"""The server's online key: it signs snapshot and timestamp, desired states and commands, and nothing else.

Its thief can withhold and repeat, and can choose among signed deployments; he cannot make a device install anything
that no operator signed. Which key that is, the root metadata says: the file only holds its private half.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from securesystemslib.signer import CryptoSigner, Signer

from edgefleet.errors import TrustError
from edgefleet.protocol.signed import COMMAND_TYPE, DESIRED_TYPE, Command, Envelope, SignedDesired
from edgefleet.trust.envelope import sign
from edgefleet.trust.keys import NEXT_SUFFIX, KeyFolder, load_signer, read_private
from edgefleet.trust.repository import Repository

TRUST: Final = "trust"
METADATA: Final = "metadata"
ONLINE: Final = "online"


def metadata_folder(data: Path) -> Path:
    """Where the server keeps the TUF repository."""
    return data / TRUST / METADATA


def online_keys(data: Path) -> KeyFolder:
    """The folder of the online key, which is never encrypted: the server starts without a person."""
    return KeyFolder(data / TRUST)


def load_online(data: Path) -> CryptoSigner:
    """The online key that the newest root names; raises InputError, TrustError.

    Cheap (one small file and one root): load it anew for each use, then a rotation needs no restart. A rotation that
    was cut off between the new root and the new file is finished here.
    """
    repository, keys = Repository(metadata_folder(data)), online_keys(data)
    waiting = keys.path(ONLINE + NEXT_SUFFIX)
    if waiting.exists():
        with repository.locked():
            if waiting.exists() and _read(waiting).public_key.keyid in repository.online_keyids():
                keys.promote(ONLINE)
    named = repository.online_keyids()
    signer = _read(keys.path(ONLINE))
    if signer.public_key.keyid not in named:
        raise TrustError(
            "loading the server's online key",
            f"{keys.path(ONLINE)} is not the key that the root metadata names",
            "run: edgefleet keys rotate online",
        )
    return signer


def sign_desired(desired: SignedDesired, signer: Signer) -> Envelope:
    """A desired state in its envelope."""
    return sign(desired.encode(), DESIRED_TYPE, signer)


def sign_command(command: Command, signer: Signer) -> Envelope:
    """A command in its envelope."""
    return sign(command.encode(), COMMAND_TYPE, signer)


def _read(path: Path) -> CryptoSigner:
    return load_signer(read_private(path, "server's online key"), None, ONLINE, path)
