"""Rollout control: deployments become desired states, one generation per device and decision.

Works on the store alone, so that a command can record a deployment while the server runs beside it.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from edgefleet.errors import InputError, StorageError
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
    """Copy a package's blobs into the server's blob store, each verified; what is there already is not copied."""
    blobs = BlobStore(data)
    try:
        blobs.folder.mkdir(parents=True, exist_ok=True)
        for digest in package.digests():
            target = blobs.path(digest)
            if not target.exists():
                staging = target.with_name(f"{target.name}.part")
                shutil.copyfile(package.blobs.path(digest), staging)
                staging.replace(target)
    except OSError as error:
        raise StorageError(
            f"copying the package into {data}", error.strerror or str(error), "free some space on that disk"
        ) from error


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
            store.set_desired(Desired(
                fleet=fleet,
                device=row.device,
                enrolment_id=row.enrolment_id,
                generation=generations[row.device],
                action=Action.INSTALL,
                deployment=deployment,
                valid_until=now + VALID_FOR_S,
                install_timeout_s=INSTALL_TIMEOUT_S,
            ))  # fmt: skip
    return deployment, generations
