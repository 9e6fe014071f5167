"""A bundle: one package with the signed metadata that vouches for it, in one file, for a USB stick.

    oci-layout, index.json, trust/*.json, deployment.json (optional), blobs/sha256/…

It is an OCI archive that other tools read too. Bytes only: signatures are verified by `edgefleet.offline`, and by
whoever imports a bundle.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, BinaryIO, Self

from edgefleet import durable
from edgefleet.errors import InputError, IntegrityError, StorageError
from edgefleet.package import tape
from edgefleet.package.layout import Package

DEPLOYMENT_FILE = "deployment.json"
_AGAIN = "copy it again, or write it again with `edgefleet bundle`"
_TRUST_FOLDER = "trust"
_TRUST_NAME = re.compile(r"trust/(?:[0-9]{1,12}\.)?[a-z][a-z0-9-]{0,31}\.json")
_BLOB_NAME = re.compile(r"blobs/sha256/[0-9a-f]{64}")
_TOP = ("oci-layout", "index.json")
_MAX_METADATA_BYTES = 4 * 1024 * 1024
_MAX_TRUST_BYTES = 64 * 1024 * 1024


class Bundle:
    """An unpacked bundle: whole and well formed, and no more trusted than who gave it. A context manager."""

    def __init__(
        self,
        package: Package,
        trust_files: Mapping[str, bytes],
        deployment: bytes | None,
        undo: ExitStack,
    ) -> None:
        self.package = package
        self.trust_files = trust_files
        """Name → content of the TUF metadata: `1.root.json`, `timestamp.json`, …"""
        self.deployment = deployment
        """An operator's envelope as JSON, where the bundle carries one."""
        self._undo = undo

    def close(self) -> None:
        """Remove the temporary folder; a folder of the caller's stays."""
        self._undo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def is_bundle(path: Path) -> bool:
    """Whether a path means a bundle: packages are folders, bundles are files."""
    return path.is_file()


def trust_files(metadata: Path) -> dict[str, bytes]:
    """The TUF metadata that a bundle carries, by name: every root, and of each other role what is current.

    Raises InputError where the folder is not a repository's metadata.
    """
    doing = f"reading the signed metadata in {metadata}"
    found: dict[str, bytes] = {}

    def take(name: str) -> dict[str, Any]:
        found[name] = (metadata / name).read_bytes()
        entries: dict[str, Any] = json.loads(found[name])["signed"].get("meta", {})
        return entries

    try:
        for path in sorted(metadata.glob("*.root.json")):
            take(path.name)
        snapshot = take("timestamp.json")["snapshot.json"]["version"]
        for name, entry in take(f"{int(snapshot)}.snapshot.json").items():
            take(f"{int(entry['version'])}.{name}")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        found_text = f"{error.filename} cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)
        raise InputError(doing, found_text, "name the folder DATA/trust/metadata of a server") from error
    return found


def write_bundle(path: Path, package: Package, trust: Mapping[str, bytes], deployment: bytes | None = None) -> None:
    """Write a bundle to `path`, which must not exist; the same inputs give the same bytes.

    Raises InputError, IntegrityError (of the package) or StorageError.
    """
    doing = f"writing the bundle {path}"
    if path.exists():
        raise InputError(doing, "something is already there", "name another file, or remove this one first")
    package.verify()
    members: list[tuple[str, Path | bytes]] = [(name, package.folder / name) for name in _TOP]
    members += [(f"{_TRUST_FOLDER}/{name}", trust[name]) for name in sorted(trust)]
    if deployment is not None:
        members.append((DEPLOYMENT_FILE, deployment))
    blobs = sorted((package.blobs.path(digest) for digest in package.digests()), key=lambda blob: blob.name)
    members += [(f"blobs/sha256/{blob.name}", blob) for blob in blobs]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, members)
    except OSError as error:
        raise StorageError(doing, f"{error.strerror or error}", "free some space or choose another disk") from error


def _replace(path: Path, members: list[tuple[str, Path | bytes]]) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            tape.write(stream, members)
            stream.flush()
            # A stick is pulled out as soon as the command has ended.
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    durable.sync_folder(path.parent)


def open_bundle(path: Path, folder: Path | None = None) -> Bundle:
    """Unpack a bundle to an empty `folder`, or to a temporary one that goes with the bundle, and check every blob.

    Raises InputError for what is no bundle, IntegrityError for damage, StorageError when the disk refuses.
    """
    doing = f"opening the bundle {path}"
    try:
        stream = path.open("rb")
    except OSError as error:
        raise InputError(doing, f"{error.strerror}", "name a file written by `edgefleet bundle`") from error
    with stream, ExitStack() as undo:
        try:
            members = tape.scan(stream, _limit, doing)
            _check_members(members, doing)
            temporary = None if folder else undo.enter_context(TemporaryDirectory(prefix="edgefleet-bundle-"))
            package = _unpacked(stream, members, Path(temporary or folder or ""), doing)
            trust = {name: tape.read(stream, member) for name, member in members.items() if _TRUST_NAME.fullmatch(name)}
            letter = members.get(DEPLOYMENT_FILE)
            deployment = None if letter is None else tape.read(stream, letter)
        except OSError as error:
            found = error.strerror or str(error)
            raise StorageError(doing, found, "free some space, or set TMPDIR to another disk") from error
        names = {name.removeprefix(f"{_TRUST_FOLDER}/"): content for name, content in trust.items()}
        return Bundle(package, names, deployment, undo.pop_all())


def _limit(name: str) -> int | None:
    """Largest size of a file in a bundle; blobs may be as large as the bundle is."""
    if name in (*_TOP, DEPLOYMENT_FILE) or _TRUST_NAME.fullmatch(name):
        return _MAX_METADATA_BYTES
    return 2**63 if _BLOB_NAME.fullmatch(name) else None


def _check_members(members: Mapping[str, tape.Member], doing: str) -> None:
    for name in (*_TOP, f"{_TRUST_FOLDER}/timestamp.json"):
        if name not in members:
            raise InputError(doing, f"it has no {name}", _AGAIN)
    metadata_bytes = sum(member.size_bytes for name, member in members.items() if _TRUST_NAME.fullmatch(name))
    if metadata_bytes > _MAX_TRUST_BYTES:
        raise InputError(doing, f"it holds {metadata_bytes} bytes of metadata", _AGAIN)


def _unpacked(stream: BinaryIO, members: Mapping[str, tape.Member], folder: Path, doing: str) -> Package:
    """The package in `folder`, verified, and nothing beside it."""
    blobs = [name for name in members if _BLOB_NAME.fullmatch(name)]
    (folder / "blobs" / "sha256").mkdir(parents=True)
    for name in (*_TOP, *blobs):
        tape.unpack(stream, members[name], folder / name)
    try:
        package = Package(folder)
        package.verify()
    except (InputError, IntegrityError) as error:
        raise type(error)(doing, error.found, _AGAIN) from error
    strays = set(blobs) - {f"blobs/sha256/{digest.removeprefix('sha256:')}" for digest in package.digests()}
    if strays:
        raise InputError(doing, f"the package does not name {min(strays)[:25]}…", _AGAIN)
    return package
