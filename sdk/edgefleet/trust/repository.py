"""The fleet's TUF repository: one folder of signed metadata that the server hands out and nobody need trust it for.

It signs with the keys it is given and never looks for one; rotations and revocations are in `rotation`. Layout and
rules: TUF specification 1.0, consistent snapshots. A change writes its files first and counts from the file that names
them: an unfinished one is not seen.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from securesystemslib.signer import Key, Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, TargetFile, Targets, Timestamp

from edgefleet.errors import InputError, IntegrityError, TrustError
from edgefleet.package.digest import digest_of
from edgefleet.protocol.signed import PackageVersion
from edgefleet.trust.deployments import check_new_version, package_version, path_of, target_path
from edgefleet.trust.metadata_files import MetadataFiles
from edgefleet.trust.roles import (
    DEPLOYMENTS,
    EXPIRY_DAYS,
    PACKAGES,
    RESIGN_AFTER_S,
    ROOT,
    SNAPSHOT,
    TARGETS,
    TIMESTAMP,
    T,
    check_signed_by,
    check_signer,
    delegations,
    expiry,
    parsed,
    verify_role,
)

FORMER_ROLES: Final = (TARGETS, PACKAGES, SNAPSHOT)


class Repository:
    """Metadata in `metadata_folder`; raises TrustError where what is there does not verify, StorageError on disk."""

    def __init__(self, metadata_folder: Path) -> None:
        self.folder = metadata_folder
        self.files = MetadataFiles(metadata_folder)

    @classmethod
    def create(
        cls,
        metadata_folder: Path,
        *,
        root_signers: Sequence[Signer],
        root_threshold: int,
        targets_signer: Signer,
        release_signer: Signer,
        operator_keys: Sequence[Key],
        online_signer: Signer,
        now: float,
    ) -> Repository:
        """Version 1 of everything, without a package; the folder is made, and must hold no root yet."""
        metadata_folder.mkdir(parents=True, exist_ok=True)
        repository = cls(metadata_folder)
        if repository.files.versions(ROOT):
            raise InputError(f"making a repository in {metadata_folder}", "there is one", "choose another folder")
        root = Metadata(Root(version=1, expires=expiry(ROOT, now), consistent_snapshot=True))
        for signer in root_signers:
            root.signed.add_key(signer.public_key, ROOT)
        root.signed.roles[ROOT].threshold = root_threshold
        root.signed.add_key(targets_signer.public_key, TARGETS)
        for role in (SNAPSHOT, TIMESTAMP):
            root.signed.add_key(online_signer.public_key, role)
        targets = Metadata(Targets(version=1, expires=expiry(TARGETS, now), delegations=delegations()))
        targets.signed.add_key(release_signer.public_key, PACKAGES)
        for key in operator_keys:
            targets.signed.add_key(key, DEPLOYMENTS)
        packages = Metadata(Targets(version=1, expires=expiry(PACKAGES, now)))
        repository.write(PACKAGES, packages, [release_signer])
        repository.write(TARGETS, targets, [targets_signer])
        repository.write(ROOT, root, root_signers)
        repository.publish(online_signer, now)
        return repository

    # --- what is there ---

    def root_bytes(self, version: int = 1) -> bytes:
        """The file of one root version; devices are enrolled with version 1 and follow the chain from there."""
        return self.files.read(f"{version}.{ROOT}.json")

    def root(self) -> Metadata[Root]:
        """The newest root."""
        versions = self.files.versions(ROOT)
        if not versions:
            raise InputError(
                f"reading the trust metadata in {self.folder}", "there is no root",
                "restore the folder from a backup; a new fleet begins with: edgefleet keys init",
            )  # fmt: skip
        return self._parse(Root, f"{versions[0]}.{ROOT}.json")

    def targets(self) -> Metadata[Targets]:
        """The newest targets that the newest root accepts."""
        return self._newest(TARGETS, self.root().signed)

    def packages(self) -> Metadata[Targets]:
        """The newest packages that the newest targets accept."""
        return self._newest(PACKAGES, self.targets().signed)

    def target(self, package: str, version: str) -> PackageVersion | None:
        """The signed package version of that name; None where there is none."""
        found = self.packages().signed.targets.get(path_of(package, version))
        return None if found is None else package_version(found)

    def versions(self) -> list[PackageVersion]:
        """Every signed package version, in the order of their names."""
        targets = self.packages().signed.targets
        return [package_version(targets[path]) for path in sorted(targets)]

    def online_keyids(self) -> list[str]:
        """Key ids that may sign the timestamp, and so desired states and commands."""
        return list(self.root().signed.roles[TIMESTAMP].keyids)

    def expiries(self) -> list[tuple[str, float]]:
        """(role, Unix time at which it expires) of the metadata that devices get now."""
        now_there: list[tuple[str, Signed]] = [
            (ROOT, self.root().signed),
            (TARGETS, self.targets().signed),
            (PACKAGES, self.packages().signed),
            (SNAPSHOT, self.snapshot().signed),
            (TIMESTAMP, self.timestamp().signed),
        ]
        return [(role, signed.expires.timestamp()) for role, signed in now_there]

    def timestamp(self) -> Metadata[Timestamp]:
        """The timestamp that devices get now."""
        return self._parse(Timestamp, f"{TIMESTAMP}.json")

    def snapshot(self) -> Metadata[Snapshot]:
        """The snapshot that the timestamp names."""
        return self._parse(Snapshot, f"{self.timestamp().signed.snapshot_meta.version}.{SNAPSHOT}.json")

    # --- changes ---

    def add_target(
        self, version: PackageVersion, index_bytes: bytes, release_signer: Signer, now: float | None = None
    ) -> None:
        """Sign a package version into `packages`; call publish afterwards. The same again changes nothing.

        Raises IntegrityError when the bytes are not the index, InputError when the version exists with another
        content or the release counter does not rise, TrustError when the key is not the release key.
        """
        doing = f"signing {version.package}@{version.version}"
        if digest_of(index_bytes) != version.index_digest:
            raise IntegrityError(doing, "the index does not have the digest that names it", "publish the package anew")
        with self.locked():
            metadata = self.packages()
            known = [package_version(target) for target in metadata.signed.targets.values()]
            if version in known:
                return
            check_new_version(version, known)
            check_signer(self.targets().signed.get_delegated_role(PACKAGES).keyids, release_signer, doing, PACKAGES)
            check_signed_by(release_signer, metadata, doing, PACKAGES)
            custom = version.model_dump(include={"package", "version", "release"})
            path = target_path(version)
            target = TargetFile.from_data(path, index_bytes, ["sha256"])
            target.unrecognized_fields["custom"] = custom
            metadata.signed.targets[path] = target
            self.write_next(PACKAGES, metadata, [release_signer], time.time() if now is None else now)

    def add_signed_packages(self, content: bytes, now: float | None = None) -> None:
        """Take over `packages` metadata that the release key signed elsewhere; call publish afterwards.

        Raises TrustError when it is not signed by the release key, is expired, or is older than what is here and
        says something else.
        """
        doing = "taking over signed packages metadata"
        remedy = "make the bundle anew with the fleet's release key"
        with self.locked():
            new = parsed(Targets, content, "packages.json of the bundle")
            verify_role(self.targets().signed, PACKAGES, new, "packages.json of the bundle")
            now = time.time() if now is None else now
            if new.signed.is_expired(datetime.fromtimestamp(now, UTC)):
                raise TrustError(doing, f"it expired at {new.signed.expires:%Y-%m-%d}", remedy)
            if new.signed.version > now + RESIGN_AFTER_S:
                # Nothing could ever follow it.
                raise TrustError(doing, f"its version {new.signed.version} lies in the future", remedy)
            old = self.packages().signed
            if new.signed.version <= old.version:
                if any(old.targets.get(path) != target for path, target in new.signed.targets.items()):
                    found = f"version {new.signed.version} is not newer than version {old.version}, which is here"
                    raise TrustError(doing, found, remedy)
                return
            self.files.write(f"{new.signed.version}.{PACKAGES}.json", content)

    def publish(self, online_signer: Signer, now: float | None = None) -> None:
        """Sign a new snapshot of what is there, and a timestamp for it, each max(last + 1, Unix time)."""
        now = time.time() if now is None else now
        with self.locked():
            root = self.root().signed
            for role in (SNAPSHOT, TIMESTAMP):
                check_signer(root.roles[role].keyids, online_signer, "publishing the trust metadata", role)
            version = max(self._last_published() + 1, int(now))
            snapshot = Metadata(Snapshot(version=version, expires=expiry(SNAPSHOT, now)))
            snapshot.signed.meta = {
                f"{TARGETS}.json": self._meta(TARGETS, self.targets().signed.version),
                f"{PACKAGES}.json": self._meta(PACKAGES, self.packages().signed.version),
            }
            self.write(SNAPSHOT, snapshot, [online_signer])
            timestamp = Timestamp(version=version, expires=expiry(TIMESTAMP, now))
            timestamp.snapshot_meta = self._meta(SNAPSHOT, version)
            self.write(TIMESTAMP, Metadata(timestamp), [online_signer])
            self.files.remove_former(FORMER_ROLES)

    def is_due(self, now: float) -> bool:
        """Whether the server shall publish: a day has passed, a change is not published, or nothing can be read."""
        try:
            timestamp, snapshot = self.timestamp(), self.snapshot()
            current = {f"{TARGETS}.json": self.targets(), f"{PACKAGES}.json": self.packages()}
            root = self.root().signed
            for role, metadata in ((SNAPSHOT, snapshot), (TIMESTAMP, timestamp)):
                root.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        except (InputError, TrustError, RepositoryError, ValueError):
            return True
        published = {name: meta.version for name, meta in snapshot.signed.meta.items()}
        wanted = {name: metadata.signed.version for name, metadata in current.items()}
        left_s = timestamp.signed.expires.timestamp() - now
        return published != wanted or left_s < EXPIRY_DAYS[TIMESTAMP] * 86_400 - RESIGN_AFTER_S

    # --- what rotations are made of ---

    def locked(self) -> AbstractContextManager[None]:
        """One writer at a time, over processes; may be nested in one process."""
        return self.files.locked()

    def write_next(self, role: str, metadata: Metadata[Any], signers: Sequence[Signer], now: float) -> None:
        """Sign and write the next version of a role, with a new expiry.

        Roots are counted one by one. The others are max(last + 1, Unix time): what is signed after a backup was
        restored is newer than what was lost, which devices have seen.
        """
        version = metadata.signed.version + 1
        metadata.signed.version = version if role == ROOT else max(version, int(now))
        metadata.signed.expires = expiry(role, now)
        self.write(role, metadata, signers)

    def write(self, role: str, metadata: Metadata[Any], signers: Sequence[Signer]) -> None:
        """Sign and write metadata as it is; a root must satisfy itself and the root before it."""
        metadata.signatures.clear()
        for signer in signers:
            metadata.sign(signer, append=True)
        name = self.files.name(role, metadata.signed.version)
        if role == ROOT:
            for judge in (*([self.root().signed] if self.files.versions(ROOT) else []), metadata.signed):
                verify_role(judge, ROOT, metadata, name)
        self.files.write(name, metadata.to_bytes())

    def _newest(self, role: str, delegator: Root | Targets) -> Metadata[Targets]:
        refused: TrustError | None = None
        for version in self.files.versions(role):
            name = self.files.name(role, version)
            try:
                metadata = self._parse(Targets, name)
                verify_role(delegator, role, metadata, name)
            except TrustError as error:
                refused = refused or error
                continue
            return metadata
        if refused is not None:
            raise refused
        raise InputError(f"reading the trust metadata in {self.folder}", f"there is no {role}", "restore the folder")

    def _last_published(self) -> int:
        """Highest version that ever was: of a timestamp that got lost, its snapshot remains."""
        last = max(self.files.versions(SNAPSHOT), default=0)
        with suppress(InputError, TrustError):
            last = max(last, self.timestamp().signed.version)
        return last

    def _meta(self, role: str, version: int) -> MetaFile:
        return MetaFile.from_data(version, self.files.read(self.files.name(role, version)), ["sha256"])

    def _parse(self, kind: type[T], name: str) -> Metadata[T]:
        return parsed(kind, self.files.read(name), str(self.folder / name))
