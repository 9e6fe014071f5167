"""Rollout control: who is meant, which generation, and the packages it is served from."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from edgefleet.errors import InputError, IntegrityError, StorageError
from edgefleet.package.layout import BlobStore, Package
from edgefleet.protocol.messages import Action, State
from edgefleet.server.control import deploy, import_package, next_generation, reissue, select_devices
from edgefleet.server.store import Store
from sdk.packages_made import two_variants, write
from sdk.wire_examples import FACTS, STATE

NOW = 1_750_000_000.7


@pytest.fixture(name="package")
def _package(tmp_path: Path) -> Package:
    write(tmp_path / "package", two_variants(tmp_path / "inputs"))
    return Package(tmp_path / "package")


@pytest.fixture(name="store")
def _store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store.sqlite")
    for name in ("nuc", "pi-a", "pi-b"):
        store.add_facts(name, FACTS.model_copy(update={"enrolment_id": f"e-{name}"}), NOW)
    return store


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
def test_a_selector_names_devices(store: Store, selector: str, wanted: list[str]) -> None:
    assert [row.device for row in select_devices(selector, store.devices())] == wanted


@pytest.mark.parametrize(
    ("selector", "found"),
    [("pi-c", "pi-c is not"), ("pi-a,pi-c,pi-d", "pi-c, pi-d is not"), ("", "nothing"), (" , ", "nothing")],
)
def test_an_unknown_name_is_refused_with_those_there_are(store: Store, selector: str, found: str) -> None:
    with pytest.raises(InputError, match="there are: nuc, pi-a, pi-b") as caught:
        select_devices(selector, store.devices())
    assert found in str(caught.value)


def test_without_devices_nothing_can_be_chosen() -> None:
    with pytest.raises(InputError, match="no device"):
        select_devices("all", [])


def test_deploy_records_one_desired_state_per_device(store: Store, package: Package) -> None:
    deployment, generations = deploy(store, "home", package, "pi-a,nuc", NOW)
    assert generations == {"pi-a": int(NOW), "nuc": int(NOW)}
    assert store.desired_generations() == generations
    assert store.desired("pi-b") is None
    desired = store.desired("pi-a")
    assert desired is not None
    assert (desired.fleet, desired.device, desired.enrolment_id) == ("home", "pi-a", "e-pi-a")
    assert (desired.action, desired.deployment) == (Action.INSTALL, deployment)
    assert desired.valid_until > NOW
    assert (deployment.package, deployment.version, deployment.release) == ("made", "1.2.0", 7)
    assert (deployment.index_digest, deployment.selector) == (package.digest, "pi-a,nuc")


def test_generations_are_above_what_was_reported_and_what_was_wanted(store: Store, package: Package) -> None:
    reported = int(NOW) + 1000
    state = STATE.model_copy(update={"enrolment_id": "e-nuc", "generation": reported, "state": State.COMMITTED})
    store.set_state("nuc", state, NOW)
    first = deploy(store, "home", package, "all", NOW)[1]
    assert first == {"nuc": reported + 1, "pi-a": int(NOW), "pi-b": int(NOW)}
    # Twice within a second, and once more after the clock was set back.
    second = deploy(store, "home", package, "all", NOW)[1]
    third = deploy(store, "home", package, "all", NOW - 86_400)[1]
    assert all(first[name] < second[name] < third[name] for name in first)


def test_deployments_have_ids_of_their_own(store: Store, package: Package) -> None:
    ids = {deploy(store, "home", package, "nuc", NOW)[0].deployment_id for _ in range(5)}
    assert len(ids) == 5


def test_a_deployment_that_names_an_unknown_device_leaves_nothing(store: Store, package: Package) -> None:
    with pytest.raises(InputError):
        deploy(store, "home", package, "nuc,unknown", NOW)
    assert store.desired_generations() == {}
    with store.transaction():
        assert store.device("nuc") is not None


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


def test_an_import_that_was_cut_off_is_no_obstacle(package: Package, tmp_path: Path) -> None:
    """A killed import leaves its own temporary file behind; the next import has another name for its own."""
    data = tmp_path / "data"
    blobs = BlobStore(data)
    blobs.folder.mkdir(parents=True)
    (blobs.folder / ".import-left").write_bytes(b"half")
    import_package(package, data)
    assert all(blobs.path(digest).exists() for digest in package.digests())
    assert (blobs.folder / ".import-left").read_bytes() == b"half"


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


def test_a_desired_state_is_issued_again_for_a_new_enrolment(store: Store, package: Package) -> None:
    deploy(store, "home", package, "nuc", NOW)
    before = store.desired("nuc")
    assert before is not None
    for now in (NOW, NOW + 1e6, NOW - 1e6):
        again = reissue(before, "e2", now)
        assert (again.enrolment_id, again.deployment) == ("e2", before.deployment)
        assert (again.fleet, again.device) == ("home", "nuc")
        assert again.generation > before.generation
        assert again.valid_until > now
