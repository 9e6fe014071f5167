"""Rollout control: an operator's decision becomes desired states, one generation per device and decision.

Works on the store alone, so that a command can record a deployment while the server runs beside it.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path

from securesystemslib.signer import Signer

from edgefleet.errors import InputError
from edgefleet.protocol.access import MAX_PACKET_BYTES
from edgefleet.protocol.record import MessageError
from edgefleet.protocol.signed import (
    ALL_DEVICES,
    DEPLOYMENT_TYPE,
    Action,
    Command,
    CommandName,
    Deployment,
    Desired,
    Envelope,
    PackageVersion,
    SignedDesired,
)
from edgefleet.server.data_folder import fleet_of, trust_files
from edgefleet.server.store import DeviceRow, Store
from edgefleet.trust.deployments import MOST_AHEAD_S, check_number, sign_deployment
from edgefleet.trust.envelope import verify
from edgefleet.trust.online import load_online, sign_command, sign_desired
from edgefleet.trust.repository import Repository
from edgefleet.trust.roles import DEPLOYMENTS

VALID_FOR_S = 7 * 24 * 3600.0
INSTALL_TIMEOUT_S = 3600.0
COMMAND_VALID_S = 60.0
MAX_DESIRED_BYTES = MAX_PACKET_BYTES - 1024
"""A broker ends the connection of a server that sends it more than it takes."""
DEPLOYMENT_VALID_S = 365 * 24 * 3600.0
SHOWN_DEVICES = 3


def next_generation(previous: int, now: float) -> int:
    """Above the previous one, and at least the Unix time: a restored backup never goes backwards."""
    return max(previous + 1, int(now))


def believed(reported: int, latest: float) -> int:
    """A generation that a device says it has accepted, or 0 for one that was never made.

    A device may say anything: above the highest number there is, it would stop a deployment to all.
    """
    return reported if reported <= latest + MOST_AHEAD_S else 0


def select_devices(selector: str, devices: Sequence[DeviceRow], denied: dict[str, str]) -> list[DeviceRow]:
    """The devices that `all` or a comma-separated list of names stands for; raises InputError.

    Those in `denied` (removed, or flagged) are left out of `all`, and refused where they are named.
    """
    doing = f"choosing the devices for {selector!r}"
    there = [row for row in devices if row.device not in denied]
    if selector == ALL_DEVICES and there:
        return there
    if not devices:
        raise InputError(doing, "no device ever said hello to this server", "start an agent first")
    if selector == ALL_DEVICES:
        gone = "; ".join(f"{row.device}: {denied[row.device]}" for row in devices[:SHOWN_DEVICES])
        raise InputError(doing, f"none of {len(devices)} may get anything ({gone})", "enrol one anew")
    by_name = {row.device: row for row in there}
    wanted = [name.strip() for name in selector.split(",") if name.strip()]
    if refused := [f"{name}: {denied[name]}" for name in wanted if name in denied]:
        raise InputError(doing, "; ".join(refused), "enrol it anew, or leave it out")
    unknown = [name for name in wanted if name not in by_name]
    if unknown or not wanted:
        raise InputError(
            doing,
            f"{', '.join(unknown) or 'nothing'} is not a device here",
            f"there are: {', '.join(by_name)}",
        )
    return [by_name[name] for name in dict.fromkeys(wanted)]


def decide(
    fleet: str,
    target: PackageVersion,
    selector: str,
    last_serial: int,
    now: float,
    *,
    fallback: PackageVersion | None = None,
    downgrade: bool = False,
) -> Deployment:
    """What an operator signs: nothing is looked up, so it can be made on another machine."""
    return Deployment(
        deployment_id=f"{target.package}-{target.version}-{secrets.token_hex(4)}",
        fleet=fleet,
        serial=next_generation(last_serial, now),
        target=target,
        fallback=fallback,
        selector=selector,
        downgrade=downgrade,
        expires=now + DEPLOYMENT_VALID_S,
    )


def deploy(
    store: Store,
    data: Path,
    target: PackageVersion,
    selector: str,
    operator_signer: Signer,
    now: float,
    fallback: PackageVersion | None = None,
    *,
    downgrade: bool = False,
) -> tuple[Deployment, dict[str, int]]:
    """Sign and record a deployment and one desired state per selected device; returns it and device → generation."""
    select_devices(selector, store.devices(), store.denied())
    serial = store.last_serial()
    deployment = decide(fleet_of(data), target, selector, serial, now, fallback=fallback, downgrade=downgrade)
    return record(store, data, sign_deployment(deployment, operator_signer), now)


def record(store: Store, data: Path, signed: Envelope, now: float) -> tuple[Deployment, dict[str, int]]:
    """Record a signed deployment and make its desired states; returns it and device → generation.

    What every device would refuse is refused here: raises InputError, and TrustError when no operator signed it.
    """
    fleet, online = fleet_of(data), load_online(data)
    repository = Repository(trust_files(data))
    latest = max(now, repository.timestamp().signed.version)
    deployment = _checked(signed, repository, fleet, now, latest)
    generations: dict[str, int] = {}
    with store.transaction():
        chosen = select_devices(deployment.selector, store.devices(), store.denied())
        wanted = store.desired_generations()
        store.add_deployment(deployment, signed, now)
        for row in chosen:
            previous = max(wanted.get(row.device, 0), believed(row.generation, latest))
            generations[row.device] = next_generation(previous, now)
            desired = _desired(signed, fleet, row.device, row.enrolment_id, generations[row.device], now)
            envelope = sign_desired(desired, online)
            if (size := len(envelope.encode())) > MAX_DESIRED_BYTES:
                found = f"with that selector a desired state has {size} bytes, {MAX_DESIRED_BYTES} may pass the broker"
                raise InputError("recording the deployment", found, "name fewer devices in each of several deployments")
            store.set_desired(envelope)
    return deployment, generations


def _checked(signed: Envelope, repository: Repository, fleet: str, now: float, latest: float) -> Deployment:
    doing = "recording the deployment"
    if signed.payload_type != DEPLOYMENT_TYPE:
        raise InputError(doing, f"it is a {signed.payload_type!r}", "name a deployment")
    try:
        deployment = Deployment.decode(signed.payload)
    except MessageError as error:
        raise InputError(doing, str(error), "sign it again with this version of edgefleet") from error
    targets = repository.targets().signed
    role = targets.get_delegated_role(DEPLOYMENTS)
    verify(signed, {keyid: targets.get_key(keyid) for keyid in role.keyids}, role.threshold)
    if deployment.fleet != fleet:
        raise InputError(doing, f"it is for the fleet {deployment.fleet}", f"this one is {fleet}")
    check_number("serial", deployment.serial, latest, doing)
    if deployment.expires < now:
        raise InputError(doing, "it has expired", "sign a new one")
    for version in (deployment.target, deployment.fallback):
        if version is not None and repository.target(version.package, version.version) != version:
            raise InputError(
                doing, f"{version.package}@{version.version} is not published here as it says", "publish it first"
            )
    return deployment


def reissue(envelope: Envelope, enrolment_id: str, reported: int, now: float, online: Signer) -> Envelope:
    """The same decision for a device that was enrolled anew, as a generation of its own."""
    old = Desired.unwrap(envelope)
    signed = SignedDesired.decode(envelope.payload).deployment
    generation = next_generation(max(old.generation, believed(reported, max(now, old.generation))), now)
    return sign_desired(_desired(signed, old.fleet, old.device, enrolment_id, generation, now, old.action), online)


def command(store: Store, data: Path, device: str, name: CommandName, now: float) -> Command:
    """Sign a command for one device and have the server publish it; raises InputError."""
    enrolment = store.enrolment(device)
    if enrolment is None or enrolment.revoked_at is not None:
        raise InputError(f"telling {device} to {name}", "it is not enrolled here", "look at `edgefleet fleet list`")
    made = Command(
        fleet=fleet_of(data),
        device=device,
        enrolment_id=enrolment.enrolment_id,
        command_id=secrets.token_hex(8),
        name=name,
        expires=now + COMMAND_VALID_S,
    )
    store.add_command(made, sign_command(made, load_online(data)))
    return made


def _desired(
    deployment: Envelope,
    fleet: str,
    device: str,
    enrolment_id: str,
    generation: int,
    now: float,
    action: Action = Action.INSTALL,
) -> SignedDesired:
    return SignedDesired(
        fleet=fleet,
        device=device,
        enrolment_id=enrolment_id,
        generation=generation,
        action=action,
        valid_until=now + VALID_FOR_S,
        install_timeout_s=INSTALL_TIMEOUT_S,
        deployment=deployment,
    )
