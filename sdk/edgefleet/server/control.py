"""Rollout control: deployments become desired states, one generation per device and decision.

Works on the store alone, so that a command can record a deployment while the server runs beside it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgefleet import durable
from edgefleet.errors import InputError, IntegrityError, StorageError
from edgefleet.package.digest import digest_of_file
from edgefleet.package.layout import BlobStore, Package
from edgefleet.protocol.messages import Action, Deployment, Desired
from edgefleet.server.store import DeviceRow, Store

VALID_FOR_S = 7 * 24 * 3600.0
INSTALL_TIMEOUT_S = 3600.0
ALL_DEVICES = "all"


def next_generation(previous: int, now: float) -> int:
    """Above the previous one, and at least the Unix time: a restored backup never goes backwards."""
    return max(previous + 1, int(now))


def select_devices(selector: str, devices: Sequence[DeviceRow]) -> list[DeviceRow]:
    """The devices that `all` or a comma-separated list of names stands for; raises InputError."""
    doing = f"choosing the devices for {selector!r}"
    if not devices:
        raise InputError(doing, "no device ever said hello to this server", "start an agent first")
    if selector == ALL_DEVICES:
        return list(devices)
    by_name = {row.device: row for row in devices}
    wanted = [name.strip() for name in selector.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in by_name]
    if unknown or not wanted:
        raise InputError(
            doing,
            f"{', '.join(unknown) or 'nothing'} is not a device here",
            f"there are: {', '.join(by_name)}",
        )
    return [by_name[name] for name in dict.fromkeys(wanted)]


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
    # Two deployments may bring the same blob at the same time: each has a file of its own.
    descriptor, name = tempfile.mkstemp(prefix=".import-", dir=target.parent)
    try:
        with source.open("rb") as incoming, os.fdopen(descriptor, "wb") as staging:
            shutil.copyfileobj(incoming, staging)
            staging.flush()
            os.fsync(staging.fileno())
        _require_whole(Path(name), digest, source)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def deploy(store: Store, fleet: str, package: Package, selector: str, now: float) -> tuple[Deployment, dict[str, int]]:
    """Record a deployment and one desired state per selected device; returns it and device → generation."""
    deployment = Deployment(
        deployment_id=f"{package.name}-{package.version}-{secrets.token_hex(4)}",
        package=package.name,
        version=package.version,
        release=package.release,
        index_digest=package.digest,
        selector=selector,
    )
    generations: dict[str, int] = {}
    with store.transaction():
        chosen = select_devices(selector, store.devices())
        wanted = store.desired_generations()
        store.add_deployment(deployment, now)
        for row in chosen:
            previous = max(wanted.get(row.device, 0), row.generation)
            generations[row.device] = next_generation(previous, now)
            store.set_desired(_desired(deployment, fleet, row.device, row.enrolment_id, generations[row.device], now))
    return deployment, generations


def reissue(desired: Desired, enrolment_id: str, now: float) -> Desired:
    """The same decision for a device that was enrolled anew, as a generation of its own."""
    generation = next_generation(desired.generation, now)
    return _desired(desired.deployment, desired.fleet, desired.device, enrolment_id, generation, now)


def _desired(
    deployment: Deployment, fleet: str, device: str, enrolment_id: str, generation: int, now: float
) -> Desired:
    return Desired(
        fleet=fleet,
        device=device,
        enrolment_id=enrolment_id,
        generation=generation,
        action=Action.INSTALL,
        deployment=deployment,
        valid_until=now + VALID_FOR_S,
        install_timeout_s=INSTALL_TIMEOUT_S,
    )
