"""Rollout control: who is meant, which generation, what is signed by whom, and the packages it is served from."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgefleet.errors import EdgefleetError, InputError, IntegrityError, StorageError, TrustError
from edgefleet.package.layout import BlobStore, Package
from edgefleet.protocol.messages import State
from edgefleet.protocol.signed import Action, Command, CommandName, Deployment, Desired, PackageVersion
from edgefleet.server import control
from edgefleet.server.control import deploy, next_generation, reissue, select_devices
from edgefleet.server.data_folder import remove_leftovers, trust_files
from edgefleet.server.publishing import import_package, publish, publish_signed, version_of
from edgefleet.trust.deployments import sign_deployment
from edgefleet.trust.envelope import verify
from edgefleet.trust.online import load_online
from edgefleet.trust.repository import Repository
from sdk.fleet_made import MadeFleet, found
from sdk.packages_made import two_variants, write
from sdk.wire_examples import STATE

NOW = 1_780_000_000.7
DEVICES = ("nuc", "pi-a", "pi-b")


@pytest.fixture(name="package")
def _package(tmp_path: Path) -> Package:
    write(tmp_path / "package", two_variants(tmp_path / "inputs"))
    return Package(tmp_path / "package")


@pytest.fixture(name="fleet")
def _fleet(tmp_path: Path) -> MadeFleet:
    fleet = found(tmp_path / "fleet", NOW - 1000)
    for name in DEVICES:
        fleet.add(name, now=NOW)
    return fleet


@pytest.fixture(name="target")
def _target(fleet: MadeFleet) -> PackageVersion:
    return fleet.publish(now=NOW)


def decide(fleet: MadeFleet, target: PackageVersion, selector: str = "all", now: float = NOW) -> dict[str, int]:
    signer = fleet.keys.signer("operator-default")
    return deploy(fleet.store, fleet.data, target, selector, signer, now)[1]


@pytest.mark.parametrize(
    ("previous", "now", "wanted"),
    [(0, 100.9, 100), (100, 100.2, 101), (99, 100.2, 100), (500, 100.0, 501), (0, 0.0, 1), (7, -5.0, 8)],
)
def test_a_generation_is_above_the_previous_and_at_least_the_time(previous: int, now: float, wanted: int) -> None:
    assert next_generation(previous, now) == wanted


@pytest.mark.parametrize(
    ("selector", "wanted"),
    [
        ("all", ["nuc", "pi-a", "pi-b"]),
        ("pi-b", ["pi-b"]),
        (" pi-b , nuc,", ["pi-b", "nuc"]),
        ("nuc,nuc", ["nuc"]),
    ],
)
def test_a_selector_names_devices(fleet: MadeFleet, selector: str, wanted: list[str]) -> None:
    assert [row.device for row in select_devices(selector, fleet.store.devices(), {})] == wanted


@pytest.mark.parametrize(
    ("selector", "found"),
    [("pi-c", "pi-c is not"), ("pi-a,pi-c,pi-d", "pi-c, pi-d is not"), ("", "nothing"), (" , ", "nothing")],
)
def test_an_unknown_name_is_refused_with_those_there_are(fleet: MadeFleet, selector: str, found: str) -> None:
    with pytest.raises(InputError, match="there are: nuc, pi-a, pi-b") as caught:
        select_devices(selector, fleet.store.devices(), {})
    assert found in str(caught.value)


def test_without_devices_nothing_can_be_chosen(fleet: MadeFleet) -> None:
    with pytest.raises(InputError, match="no device"):
        select_devices("all", [], {})
    rows = fleet.store.devices()
    with pytest.raises(InputError, match=rf"none of {len(rows)} may get anything \({rows[0].device}: it was revoked"):
        select_devices("all", rows, {row.device: "it was revoked" for row in rows})


def test_who_is_denied_is_left_out_of_all_and_refused_by_name(fleet: MadeFleet) -> None:
    denied = {"pi-a": "two boards under one name"}
    rows = fleet.store.devices()
    assert [row.device for row in select_devices("all", rows, denied)] == ["nuc", "pi-b"]
    with pytest.raises(InputError, match="pi-a: two boards under one name"):
        select_devices("nuc,pi-a", rows, denied)
    with pytest.raises(InputError):
        select_devices("all", rows, dict.fromkeys(DEVICES, "removed"))


def test_deploy_records_one_signed_desired_state_per_device(fleet: MadeFleet, target: PackageVersion) -> None:
    operator = fleet.keys.signer("operator-default")
    deployment, generations = deploy(fleet.store, fleet.data, target, "pi-a,nuc", operator, NOW)
    assert generations == {"pi-a": int(NOW), "nuc": int(NOW)}
    assert fleet.store.desired_generations() == generations
    assert fleet.store.desired("pi-b") is None
    row = fleet.store.desired("pi-a")
    assert row is not None
    desired = row.desired
    assert (desired.fleet, desired.device, desired.enrolment_id) == ("home", "pi-a", "e-pi-a")
    assert (desired.action, desired.deployment) == (Action.INSTALL, deployment)
    assert desired.valid_until > NOW
    assert (deployment.target, deployment.selector, deployment.fleet) == (target, "pi-a,nuc", "home")
    online = load_online(fleet.data).public_key
    verify(row.signed, {online.keyid: online}, 1)
    signed = fleet.store.deployment(deployment.deployment_id)
    assert signed is not None
    verify(signed, {operator.public_key.keyid: operator.public_key}, 1)


def test_generations_are_above_what_was_reported_and_what_was_wanted(fleet: MadeFleet, target: PackageVersion) -> None:
    reported = int(NOW) + 1000
    state = STATE.model_copy(update={"enrolment_id": "e-nuc", "generation": reported, "state": State.COMMITTED})
    fleet.store.set_state("nuc", state, NOW)
    first = decide(fleet, target)
    assert first == {"nuc": reported + 1, "pi-a": int(NOW), "pi-b": int(NOW)}
    # Twice within a second, and once more after the clock was set back.
    second = decide(fleet, target)
    third = decide(fleet, target, now=NOW - 500)
    assert all(first[name] < second[name] < third[name] for name in first)


def test_deployments_have_ids_of_their_own_and_serials_that_rise(fleet: MadeFleet, target: PackageVersion) -> None:
    """Also after the clock was set back: a device never goes back to an older decision."""
    operator = fleet.keys.signer("operator-default")
    made = [deploy(fleet.store, fleet.data, target, "nuc", operator, now)[0] for now in (NOW, NOW, NOW - 500, NOW + 9)]
    assert len({deployment.deployment_id for deployment in made}) == len(made)
    serials = [deployment.serial for deployment in made]
    assert serials == sorted(set(serials))
    assert serials[0] == int(NOW)


def test_a_deployment_that_names_an_unknown_device_leaves_nothing(fleet: MadeFleet, target: PackageVersion) -> None:
    with pytest.raises(InputError):
        decide(fleet, target, "nuc,unknown")
    assert (fleet.store.desired_generations(), fleet.store.last_serial()) == ({}, 0)
    with fleet.store.transaction():
        assert fleet.store.device("nuc") is not None


# What every device would refuse -----------------------------------------------------------------------


def test_only_an_operators_signature_counts(fleet: MadeFleet, target: PackageVersion) -> None:
    """With the keys of the server, or the release key, nothing can be deployed."""
    for signer in (load_online(fleet.data), fleet.keys.signer("release"), fleet.keys.signer("root-1")):
        with pytest.raises(TrustError):
            deploy(fleet.store, fleet.data, target, "all", signer, NOW)
    assert fleet.store.desired_generations() == {}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"fleet": "office"}, "for the fleet office"),
        ({"expires": NOW - 1}, "expired"),
        ({"selector": "pi-c"}, "pi-c is not a device"),
        ({"target": {"version": "9.9"}}, "not published"),
        ({"target": {"index_digest": "sha256:" + "0" * 64}}, "not published"),
        ({"target": {"release": 8}}, "not published"),
        ({"fallback": {"version": "9.9"}}, "not published"),
    ],
)
def test_a_signed_deployment_that_does_not_fit_is_refused(
    fleet: MadeFleet, target: PackageVersion, changes: dict[str, object], why: str
) -> None:
    deployment = control.decide("home", target, "all", 0, NOW)
    changes = {
        name: target.model_copy(update=value) if isinstance(value, dict) else value for name, value in changes.items()
    }
    signed = sign_deployment(deployment.model_copy(update=changes), fleet.keys.signer("operator-default"))
    with pytest.raises(InputError, match=why):
        control.record(fleet.store, fleet.data, signed, NOW)
    assert fleet.store.desired_generations() == {}


def test_a_deployment_signed_elsewhere_is_recorded_and_may_be_recorded_again(
    fleet: MadeFleet, target: PackageVersion
) -> None:
    signed = sign_deployment(control.decide("home", target, "all", 0, NOW), fleet.keys.signer("operator-default"))
    deployment, first = control.record(fleet.store, fleet.data, signed, NOW)
    again, second = control.record(fleet.store, fleet.data, signed, NOW)
    assert deployment == again == Deployment.decode(signed.payload)
    assert all(second[name] > first[name] for name in DEVICES)


# Publishing -------------------------------------------------------------------------------------------


def test_what_is_published_is_a_signed_target(fleet: MadeFleet, package: Package) -> None:
    version = publish(fleet.data, package, fleet.keys.signer("release"), NOW)
    assert version == PackageVersion(package="made", version="1.2.0", release=7, index_digest=package.digest)
    repository = Repository(trust_files(fleet.data))
    assert repository.target("made", "1.2.0") == version
    assert not repository.is_due(NOW)
    before = repository.timestamp().signed.version
    assert publish(fleet.data, package, fleet.keys.signer("release"), NOW) == version
    assert repository.timestamp().signed.version == before


@pytest.mark.parametrize(("version", "release"), [("1.2.0", 8), ("1.3.0", 7), ("1.3.0", 6)])
def test_a_version_that_is_taken_or_a_release_that_does_not_rise_is_refused(
    fleet: MadeFleet, target: PackageVersion, version: str, release: int
) -> None:
    with pytest.raises(InputError):
        fleet.publish(version, release, NOW)
    assert Repository(trust_files(fleet.data)).versions() == [target]


def test_another_key_than_the_release_key_publishes_nothing(fleet: MadeFleet, package: Package) -> None:
    with pytest.raises(TrustError):
        publish(fleet.data, package, fleet.keys.signer("operator-default"), NOW)
    assert Repository(trust_files(fleet.data)).versions() == []


def test_signed_metadata_of_a_bundle_needs_no_key_but_must_name_the_content(
    fleet: MadeFleet, package: Package, tmp_path: Path
) -> None:
    metadata = trust_files(fleet.data)
    publish(fleet.data, package, fleet.keys.signer("release"), NOW)
    newest = max(metadata.glob("*.packages.json"), key=lambda path: int(path.name.split(".")[0])).read_bytes()
    assert publish_signed(fleet.data, package, newest, NOW) == version_of(package)
    write(tmp_path / "other", two_variants(tmp_path / "inputs")[:1], version="1.2.0")
    with pytest.raises(EdgefleetError):
        publish_signed(fleet.data, Package(tmp_path / "other"), newest, NOW)


# Commands ---------------------------------------------------------------------------------------------


def test_a_command_is_signed_for_one_device_and_soon_over(fleet: MadeFleet) -> None:
    made = control.command(fleet.store, fleet.data, "nuc", CommandName.REPORT, NOW)
    assert (made.fleet, made.device, made.enrolment_id, made.expires) == ("home", "nuc", "e-nuc", NOW + 60)
    ((device, envelope),) = fleet.store.take_commands(NOW)
    online = load_online(fleet.data).public_key
    verify(envelope, {online.keyid: online}, 1)
    assert (device, Command.decode(envelope.payload)) == ("nuc", made)


def test_a_device_that_is_not_enrolled_is_told_nothing(fleet: MadeFleet) -> None:
    fleet.store.revoke_enrolment("nuc", NOW)
    for device in ("nuc", "nobody"):
        with pytest.raises(InputError, match="not enrolled"):
            control.command(fleet.store, fleet.data, device, CommandName.RENEW, NOW)


# Packages ---------------------------------------------------------------------------------------------


def test_import_copies_every_blob_and_is_idempotent(package: Package, tmp_path: Path) -> None:
    data = tmp_path / "data"
    import_package(package, data)
    blobs = BlobStore(data)
    for digest in package.digests():
        assert blobs.path(digest).read_bytes() == package.blobs.path(digest).read_bytes()
    before = {path: path.stat().st_mtime_ns for path in blobs.folder.iterdir()}
    assert len(before) == len(package.digests())
    import_package(package, data)
    assert {path: path.stat().st_mtime_ns for path in blobs.folder.iterdir()} == before


@pytest.mark.parametrize("left", [b"", b"half", b"x" * 300_000])
def test_a_blob_that_is_damaged_on_the_server_is_repaired(package: Package, tmp_path: Path, left: bytes) -> None:
    data = tmp_path / "data"
    import_package(package, data)
    victim = BlobStore(data).path(package.digests()[-1])
    whole = victim.read_bytes()
    victim.write_bytes(left)
    import_package(package, data)
    assert victim.read_bytes() == whole


def test_an_import_that_was_cut_off_is_no_obstacle_and_goes_at_the_next_start(package: Package, tmp_path: Path) -> None:
    data = tmp_path / "data"
    blobs = BlobStore(data)
    blobs.folder.mkdir(parents=True)
    (blobs.folder / ".import-left").write_bytes(b"half")
    import_package(package, data)
    assert all(blobs.path(digest).exists() for digest in package.digests())
    assert remove_leftovers(data) == [".import-left"]
    assert {path.name for path in blobs.folder.iterdir()} == {digest[7:] for digest in package.digests()}


def test_an_import_that_is_going_on_is_no_leftover(
    package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that starts in the middle of a command."""
    data, seen = tmp_path / "data", []
    real = shutil.copyfileobj

    def copy(incoming: Any, staging: Any) -> None:
        seen.append(remove_leftovers(data))
        real(incoming, staging)

    monkeypatch.setattr(shutil, "copyfileobj", copy)
    import_package(package, data)
    assert seen == [[]] * len(package.digests())


def test_a_damaged_blob_is_not_imported(package: Package, tmp_path: Path) -> None:
    """The server would send it to every device, which would refuse it again and again."""
    layer = package.manifest(package.index.manifests[0].digest).layers[0]
    package.blobs.path(layer.digest).write_bytes(b"damaged since it was verified")
    with pytest.raises(IntegrityError):
        import_package(package, tmp_path / "data")
    assert not BlobStore(tmp_path / "data").path(layer.digest).exists()
    assert leftovers(tmp_path / "data") == []


def leftovers(data: Path) -> list[Path]:
    return [path for path in BlobStore(data).folder.iterdir() if path.name.startswith(".")]


def test_a_full_disk_is_a_storage_error(package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(StorageError, match="No space left"):
        import_package(package, tmp_path / "data")
    assert list(BlobStore(tmp_path / "data").folder.iterdir()) == []


def test_what_is_imported_is_on_disk_before_it_has_its_name(
    package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs, synced = BlobStore(tmp_path / "data"), []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append((Path(f"/proc/self/fd/{descriptor}").readlink(), len(list(blobs.folder.glob("[0-9a-f]*")))))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    import_package(package, tmp_path / "data")
    *files, folder = synced
    assert [named for _, named in files] == list(range(len(package.digests())))
    assert folder == (blobs.folder, len(package.digests()))


# Enrolled anew ----------------------------------------------------------------------------------------


def test_a_desired_state_is_issued_again_for_a_new_enrolment(fleet: MadeFleet, target: PackageVersion) -> None:
    decide(fleet, target)
    before = fleet.store.desired("nuc")
    assert before is not None
    online = load_online(fleet.data)
    for now in (NOW, NOW + 1e6, NOW - 1e6):
        envelope = reissue(before.signed, "e2", 0, now, online)
        fleet.store.set_desired(envelope)
        row = fleet.store.desired("nuc")
        assert row is not None
        again = row.desired
        assert (again.enrolment_id, again.deployment) == ("e2", before.desired.deployment)
        assert (again.fleet, again.device) == ("home", "nuc")
        assert again.generation > before.generation
        assert again.valid_until > now
        verify(envelope, {online.public_key.keyid: online.public_key}, 1)


# Numbers that a device, or an operator's thief, makes up ------------------------------------------------


def test_a_device_that_reports_the_highest_generation_there_is_stops_no_deployment(
    fleet: MadeFleet, target: PackageVersion
) -> None:
    fleet.store.set_state("nuc", STATE.model_copy(update={"enrolment_id": "e-nuc", "generation": 2**40 - 1}), NOW)
    assert set(decide(fleet, target).values()) == {int(NOW)}
    row = fleet.store.desired("nuc")
    assert row is not None
    again = reissue(row.signed, "e-nuc", 2**40 - 1, NOW, load_online(fleet.data))
    assert Desired.unwrap(again).generation == int(NOW) + 1


def test_a_deployment_that_nothing_could_follow_is_not_recorded(fleet: MadeFleet, target: PackageVersion) -> None:
    late = control.decide("home", target, "all", int(NOW) + 10 * 86_400, NOW)
    signed = sign_deployment(late, fleet.keys.signer("operator-default"))
    with pytest.raises(TrustError, match=r"its serial .* lies in the future"):
        control.record(fleet.store, fleet.data, signed, NOW)
    assert fleet.store.last_serial() == 0


def test_a_selector_that_no_broker_passes_on_is_refused(fleet: MadeFleet, target: PackageVersion) -> None:
    """The broker would end the server's connection for it, again and again."""
    names = ",".join(f"device-with-a-rather-long-name-{number}" for number in range(1500))
    signed = sign_deployment(
        control.decide("home", target, f"nuc,{names}", 0, NOW), fleet.keys.signer("operator-default")
    )
    for name in names.split(","):
        fleet.add(name, now=NOW)
    with pytest.raises(InputError, match="several deployments"):
        control.record(fleet.store, fleet.data, signed, NOW)
    assert fleet.store.last_serial() == 0
    assert fleet.store.desired("nuc") is None
