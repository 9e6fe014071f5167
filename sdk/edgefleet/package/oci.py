"""Push a package to a container registry and pull it again, with the same digests.

    blobs → manifests → the index, under the tag: a tag never names what is not whole

What is there already is not sent again, so a push or a pull that broke off goes on where it was.
Does not verify signatures.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from edgefleet.errors import BusyError, InputError, IntegrityError, StorageError
from edgefleet.package.digest import digest_of, digest_of_file
from edgefleet.package.layout import MAX_SMALL_BYTES, Package, write_top
from edgefleet.package.manifest import INDEX_MEDIA_TYPE, VERSION_ANNOTATION, Descriptor, Index, Layer, Manifest
from edgefleet.package.reference import Reference
from edgefleet.package.registry import Registry

Record = TypeVar("Record", Index, Manifest)


def push(package: Package, reference: Reference, *, plain_http: bool = False) -> int:
    """Upload a package under a tag; returns how many bytes were sent, 0 where all was there.

    Raises InputError, IntegrityError (of the package), TransportError or MissingExtraError.
    """
    if reference.tag is None:
        raise InputError(f"pushing to {reference}", "it names a digest", "name a tag")
    package.verify()
    registry = Registry(reference, plain_http=plain_http)
    manifests = {entry.digest: package.manifest(entry.digest) for entry in package.index.manifests}
    sent = 0
    for item in {item.digest: item for found in manifests.values() for item in (found.config, *found.layers)}.values():
        if not registry.has_blob(item.digest):
            registry.put_blob(package.blobs.path(item.digest), item.digest)
            sent += item.size
    doing = f"pushing {package.folder}"
    for digest, manifest in manifests.items():
        content = package.blobs.read(digest, doing=doing)
        if not registry.has_manifest(digest):
            registry.put_manifest(digest, content, manifest.media_type)
            sent += len(content)
    # Last, and always: this is what moves the tag.
    registry.put_manifest(reference.tag, package.blobs.read(package.digest, doing=doing), INDEX_MEDIA_TYPE)
    return sent


def pull(reference: Reference, folder: Path, *, plain_http: bool = False) -> Package:
    """Download a package to `folder`, which must not exist yet: whole and verified, or not there at all.

    What a broken-off pull had is kept beside the folder and used by the next one. Raises InputError, IntegrityError,
    StorageError, BusyError, TransportError or MissingExtraError.
    """
    doing = f"pulling {reference} to {folder}"
    if folder.exists():
        raise InputError(doing, "something is already there", "name another folder, or remove this one first")
    offer = _ask(reference, plain_http=plain_http)
    staging = folder.absolute().with_name(f".{folder.name}.pulling")
    with _disk(doing):
        staging.mkdir(parents=True, exist_ok=True)
        with _alone(staging, doing):
            _fetch(offer, staging, lambda _layer: True)
            package = Package(staging)
            _drop_strays(package)
            package.verify()
            staging.rename(folder)
    return Package(folder)


def fetch_description(reference: Reference, folder: Path, *, plain_http: bool = False) -> Package:
    """Download what describes a package to `folder`: index, manifests and settings, a few KB of each variant.

    Raises as `pull` does.
    """
    with _disk(f"reading {reference}"):
        _fetch(_ask(reference, plain_http=plain_http), folder, lambda layer: layer.media_type == Layer.SETTINGS)
    return Package(folder)


@dataclass(frozen=True, slots=True)
class _Offer:
    """A package as its index in a registry describes it."""

    registry: Registry
    content: bytes
    """Of the index."""
    index: Index
    doing: str


def _ask(reference: Reference, *, plain_http: bool) -> _Offer:
    registry = Registry(reference, plain_http=plain_http)
    doing = f"pulling {reference}"
    content = registry.manifest(reference.target)
    if reference.digest not in (None, digest_of(content)):
        raise IntegrityError(
            doing, f"the registry sends {digest_of(content)[:19]}… for it", "ask who runs the registry"
        )
    return _Offer(registry, content, _parsed(Index, content, doing), doing)


def _fetch(offer: _Offer, folder: Path, wanted: Callable[[Descriptor], bool]) -> None:
    """Download manifests and the wanted layers into a layout; every blob is checked against its digest."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    for entry in {entry.digest: entry for entry in offer.index.manifests}.values():
        found = _manifest(offer.registry, entry, blobs, offer.doing)
        _check_small(found, offer.doing)
        for item in (found.config, *(layer for layer in found.layers if wanted(layer))):
            _download(offer.registry, item, _path(blobs, item.digest), offer.doing)
    digest = digest_of(offer.content)
    _path(blobs, digest).write_bytes(offer.content)
    version = (offer.index.annotations or {}).get(VERSION_ANNOTATION, "")
    write_top(folder, digest, len(offer.content), version)


def _parsed(kind: type[Record], content: bytes, doing: str) -> Record:
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise InputError(doing, "it is not a package of this version", "push it with `edgefleet push`") from error


def _manifest(registry: Registry, entry: Descriptor, blobs: Path, doing: str) -> Manifest:
    """A variant's manifest, from the registry unless an earlier try left it."""
    path = _path(blobs, entry.digest)
    if not _is_whole(path, entry.digest):
        content = registry.manifest(entry.digest)
        if digest_of(content) != entry.digest:
            raise IntegrityError(doing, f"manifest {entry.digest[:19]}… does not match its digest", "pull again")
        path.write_bytes(content)
    return _parsed(Manifest, path.read_bytes(), doing)


def _check_small(found: Manifest, doing: str) -> None:
    """What describes a variant is small, or it is not ours: to look at a package must not fill a disk."""
    small = [found.config, *(layer for layer in found.layers if layer.media_type == Layer.SETTINGS)]
    largest = max(item.size for item in small)
    if largest > MAX_SMALL_BYTES:
        raise InputError(doing, f"a description of {largest} bytes", "push it with `edgefleet push`")


def _download(registry: Registry, item: Descriptor, path: Path, doing: str) -> None:
    """A blob, on from where an earlier try ended; a file has its final name only when it matches its digest."""
    if _is_whole(path, item.digest):
        return
    part = path.with_name(f"{path.name}.part")
    start = part.stat().st_size if part.exists() else 0
    with part.open("r+b" if start else "wb") as stream:
        for place, piece in registry.blob(item.digest, item.size, start) if start < item.size else ():
            stream.seek(place)
            stream.write(piece)
            stream.truncate()
    if digest_of_file(part) != item.digest:
        part.unlink()
        raise IntegrityError(doing, f"blob {item.digest[:19]}… does not match its digest", "pull again")
    part.replace(path)


def _path(blobs: Path, digest: str) -> Path:
    return blobs / digest.removeprefix("sha256:")


def _is_whole(path: Path, digest: str) -> bool:
    return path.exists() and digest_of_file(path) == digest


def _drop_strays(package: Package) -> None:
    """Remove what an earlier try for another package left, so that the same package is always the same folder."""
    named = {name.removeprefix("sha256:") for name in package.digests()}
    for path in package.blobs.folder.iterdir():
        if path.name not in named:
            path.unlink()


@contextmanager
def _disk(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(doing, f"{error.strerror or error}", "free some space or choose another disk") from error


@contextmanager
def _alone(staging: Path, doing: str) -> Iterator[None]:
    """Hold the folder for one pull at a time; the lock goes with the process."""
    descriptor = os.open(staging, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise BusyError(doing, "another pull to the same folder is running", "wait for it") from error
    finally:
        os.close(descriptor)
