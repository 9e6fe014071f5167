"""Publishing: a package's blobs into the server's blob store, its version into the signed metadata.

Devices are told nothing of it until something is deployed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from pydantic import ValidationError
from securesystemslib.signer import Signer

from edgefleet import durable
from edgefleet.errors import InputError, IntegrityError, StorageError
from edgefleet.package.digest import digest_of_file
from edgefleet.package.layout import BlobStore, Package
from edgefleet.protocol.signed import PackageVersion
from edgefleet.server.data_folder import trust_files
from edgefleet.trust.online import load_online
from edgefleet.trust.repository import Repository


def version_of(package: Package) -> PackageVersion:
    """What is signed of a package; raises InputError for names and versions that no metadata takes."""
    try:
        return PackageVersion(
            package=package.name, version=package.version, release=package.release, index_digest=package.digest
        )
    except ValidationError as error:
        wrong = ", ".join(str(part["loc"][0]) for part in error.errors(include_url=False))
        raise InputError(
            f"reading the package {package.folder}",
            f"nothing can be published as {package.name!r} {package.version!r} (its {wrong})",
            "package it again: lower-case letters, digits, . _ - in its name; letters, digits, . _ + - in its version",
        ) from error


def publish(data: Path, package: Package, release_signer: Signer, now: float) -> PackageVersion:
    """Import a package and sign its version; the same one again changes nothing.

    Raises InputError when that version exists with another content or its release counter does not rise,
    TrustError when the key is not the release key, IntegrityError or StorageError.
    """
    version = version_of(package)
    import_package(package, data)
    repository = Repository(trust_files(data))
    index = package.blobs.read(package.digest, doing=f"publishing {package.folder}")
    repository.add_target(version, index, release_signer, now)
    publish_changes(data, repository, now)
    return version


def publish_signed(data: Path, package: Package, packages_metadata: bytes, now: float) -> PackageVersion:
    """Import a package that brings its own signed metadata, as a bundle does; no key is needed.

    Raises TrustError when the release key of this fleet did not sign this version of it.
    """
    import_package(package, data)
    repository = Repository(trust_files(data))
    repository.add_signed_packages(packages_metadata, now)
    version = version_of(package)
    if repository.target(version.package, version.version) != version:
        raise IntegrityError(
            f"publishing {version.package}@{version.version}",
            "the bundle's signed metadata does not name this content",
            "make the bundle again",
        )
    publish_changes(data, repository, now)
    return version


def publish_changes(data: Path, repository: Repository, now: float) -> None:
    """Sign snapshot and timestamp anew where something changed or a day has passed."""
    if repository.is_due(now):
        repository.publish(load_online(data), now)


def import_package(package: Package, data: Path) -> None:
    """Copy a package's blobs into the server's blob store, each verified; a damaged one there is replaced.

    Raises IntegrityError or StorageError.
    """
    blobs = BlobStore(data)
    try:
        blobs.folder.mkdir(parents=True, exist_ok=True)
        for digest in package.digests():
            if not _is_whole(blobs.path(digest), digest):
                _import_blob(package.blobs.path(digest), blobs.path(digest), digest)
        durable.sync_folder(blobs.folder)
    except OSError as error:
        raise StorageError(
            f"copying the package into {data}", error.strerror or str(error), "free some space on that disk"
        ) from error


def _is_whole(path: Path, digest: str) -> bool:
    return path.exists() and digest_of_file(path) == digest


def _require_whole(path: Path, digest: str, source: Path) -> None:
    if not _is_whole(path, digest):
        raise IntegrityError(f"importing {source}", "it does not match its digest", "write the package again")


def _import_blob(source: Path, target: Path, digest: str) -> None:
    # Two commands may bring the same blob at the same time: each has a file of its own.
    descriptor, name = tempfile.mkstemp(prefix=".import-", dir=target.parent)
    try:
        with source.open("rb") as incoming, os.fdopen(descriptor, "wb") as staging:
            # A server that starts now takes it for a leftover otherwise.
            fcntl.flock(staging, fcntl.LOCK_SH)
            shutil.copyfileobj(incoming, staging)
            staging.flush()
            os.fsync(staging.fileno())
        _require_whole(Path(name), digest, source)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
