"""A fleet's trust on disk, a device's client, and somebody between them who changes what is served."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner, Signer
from tuf.api.metadata import Metadata, MetaFile, Snapshot, Targets, Timestamp

from edgefleet.package.digest import digest_of
from edgefleet.protocol.signed import (
    Action,
    Command,
    CommandName,
    Deployment,
    Envelope,
    PackageVersion,
    SignedDesired,
)
from edgefleet.trust.client import Client
from edgefleet.trust.deployments import sign_deployment
from edgefleet.trust.keys import KeyFolder
from edgefleet.trust.online import load_online, metadata_folder, sign_command, sign_desired
from edgefleet.trust.repository import Repository
from edgefleet.trust.roles import expiry
from edgefleet.trust.rotation import Ceremony
from edgefleet.trust.setup import init

# Long past: whatever went by the real clock would call everything expired.
NOW = 1_600_000_000.0
DAY_S = 86_400.0
FLEET, DEVICE, ENROLMENT = "home", "camera-1", "enrolment-1"
ME = {"fleet": FLEET, "device": DEVICE, "enrolment_id": ENROLMENT}


def index_of(package: str, version: str) -> bytes:
    """The index blob of a package version."""
    return f'{{"name": "{package}", "version": "{version}"}}'.encode()


_founded: dict[tuple[str, ...], dict[str, tuple[int, bytes]]] = {}


def _found(folder: Path, operators: tuple[str, ...]) -> None:
    """Found the fleet once a run, and copy it from then on: keys and certificates take their time."""
    if operators not in _founded:
        init(FLEET, KeyFolder(folder / "keys"), folder / "data", operators=operators, now=NOW)
        paths = [path for path in folder.rglob("*") if path.is_file()]
        _founded[operators] = {
            str(path.relative_to(folder)): (path.stat().st_mode, path.read_bytes()) for path in paths
        }
    for name, (mode, content) in _founded[operators].items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.write_bytes(content)
        path.chmod(mode)


class TrustLab:
    """One fleet, founded at NOW; `served` replaces files on their way to the device (None: not there)."""

    def __init__(self, folder: Path, operators: tuple[str, ...] = ("anna", "ben")) -> None:
        self.folder = folder
        self.keys = KeyFolder(folder / "keys")
        self.data = folder / "data"
        _found(folder, operators)
        self.repository = Repository(metadata_folder(self.data))
        self.bootstrap_root = self.repository.root_bytes()
        self.served: dict[str, bytes | None] = {}
        self.requests: list[tuple[str, int]] = []

    @property
    def online(self) -> CryptoSigner:
        return load_online(self.data)

    @property
    def release(self) -> CryptoSigner:
        return self.keys.signer("release")

    def ceremony(self, now: float = NOW) -> Ceremony:
        return Ceremony(self.keys, self.data, now)

    # --- the fleet ---

    def publish(
        self, package: str = "digits", version: str = "1.0", release: int = 1, now: float = NOW
    ) -> PackageVersion:
        index = index_of(package, version)
        made = PackageVersion(package=package, version=version, release=release, index_digest=digest_of(index))
        self.repository.add_target(made, index, self.release, now)
        self.repository.publish(self.online, now)
        return made

    def deployment(self, target: PackageVersion, **changes: Any) -> Deployment:
        fields: dict[str, Any] = {
            "deployment_id": "d1", "fleet": FLEET, "serial": int(NOW), "target": target, "selector": "all",
            "expires": NOW + DAY_S, **changes,
        }  # fmt: skip
        return Deployment(**fields)

    def deployed(self, target: PackageVersion, operator: str = "anna", **changes: Any) -> Envelope:
        return sign_deployment(self.deployment(target, **changes), self.keys.signer(f"operator-{operator}"))

    def desired(self, deployment: Envelope, signer: Signer | None = None, **changes: Any) -> Envelope:
        fields: dict[str, Any] = {
            **ME, "generation": 7, "action": Action.INSTALL, "valid_until": NOW + DAY_S, "install_timeout_s": 60.0,
            "deployment": deployment, **changes,
        }  # fmt: skip
        return sign_desired(SignedDesired(**fields), signer or self.online)

    def command(self, signer: Signer | None = None, **changes: Any) -> Envelope:
        fields: dict[str, Any] = {
            **ME, "command_id": "c1", "name": CommandName.REPORT, "expires": NOW + 60.0, **changes,
        }  # fmt: skip
        return sign_command(Command(**fields), signer or self.online)

    # --- the device ---

    def fetch(self, name: str, max_bytes: int) -> bytes | None:
        self.requests.append((name, max_bytes))
        if name in self.served:
            return self.served[name]
        path = self.repository.folder / name
        return path.read_bytes() if path.exists() else None

    def client(self, now: float = NOW, folder: str = "device") -> Client:
        return Client(self.folder / folder, self.bootstrap_root, self.fetch, now)

    def refresh(self, now: float = NOW) -> list[str]:
        """Refresh the device; returns the names of the files that it asked for."""
        self.requests.clear()
        self.client(now).refresh()
        return [name for name, _ in self.requests]

    # --- whoever holds keys of the server ---

    def files(self) -> dict[str, bytes | None]:
        """Everything as it is served now, to be served again later."""
        return {path.name: path.read_bytes() for path in self.repository.folder.glob("*.json")}

    def serve(self, role: str, metadata: Metadata[Any], *signers: Signer) -> None:
        """Sign metadata and serve it in the place of the fleet's own."""
        metadata.signatures.clear()
        for signer in signers:
            metadata.sign(signer, append=True)
        name = f"{role}.json" if role == "timestamp" else f"{metadata.signed.version}.{role}.json"
        self.served[name] = metadata.to_bytes()

    def forge_snapshot(
        self, change: Callable[[Snapshot], None], version: int | None = None, signer: Signer | None = None
    ) -> None:
        """Serve a changed snapshot and a timestamp for it, both of a newer version and signed by the online key."""
        signer = signer or self.online
        version = version or self.repository.timestamp().signed.version + 10
        snapshot = self.repository.snapshot()
        snapshot.signed.version, snapshot.signed.expires = version, expiry("snapshot", NOW)
        change(snapshot.signed)
        self.serve("snapshot", snapshot, signer)
        timestamp = Timestamp(version=version, expires=expiry("timestamp", NOW))
        content = self.served[f"{version}.snapshot.json"]
        assert content is not None
        timestamp.snapshot_meta = MetaFile.from_data(version, content, ["sha256"])
        self.serve("timestamp", Metadata(timestamp), signer)

    def forge_targets(self, role: str, metadata: Metadata[Targets], signer: Signer) -> None:
        """Serve changed targets metadata of a role, and a snapshot by the online key that names it."""
        self.serve(role, metadata, signer)
        content = self.served[f"{metadata.signed.version}.{role}.json"]
        assert content is not None
        meta = MetaFile.from_data(metadata.signed.version, content, ["sha256"])
        self.forge_snapshot(lambda snapshot: snapshot.meta.update({f"{role}.json": meta}))
