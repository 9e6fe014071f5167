"""A person signs on a server's folder that a thief has changed: nothing of his gets a signature of ours."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tuf.api.metadata import TargetFile

from edgefleet.errors import StorageError, TrustError
from edgefleet.package.digest import digest_of
from edgefleet.protocol.signed import PackageVersion
from edgefleet.trust import keys as keys_module
from edgefleet.trust import rotation
from edgefleet.trust.keys import KeyFolder, write_private
from edgefleet.trust.repository import Repository
from sdk.trust_lab import ME, NOW, TrustLab, index_of


@pytest.fixture
def lab(tmp_path: Path) -> TrustLab:
    made = TrustLab(tmp_path)
    made.publish()
    return made


def put(lab: TrustLab, *names: str) -> None:
    """What the thief serves he also leaves in the server's folder."""
    for name in names or tuple(lab.served):
        content = lab.served[name]
        assert content is not None
        (lab.repository.folder / name).write_bytes(content)
    lab.served.clear()


def signed_by_us(lab: TrustLab) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in lab.keys.folder.rglob("*") if path.is_file()}


def forge_root(lab: TrustLab, version: int) -> None:
    """A root that looks like ours, and gives his key every role."""
    root = lab.repository.root()
    root.signed.version = version
    root.signed.roles["root"].threshold = 1
    for role in root.signed.roles:
        root.signed.add_key(lab.online.public_key, role)
    lab.serve("root", root, lab.online)


CHANGES: dict[str, Callable[[rotation.Ceremony], None]] = {
    "dates": rotation.renew_dates,
    "root": rotation.rotate_root,
    "online": rotation.rotate_online,
    "targets": rotation.rotate_targets,
    "release": rotation.rotate_release,
    "operator": lambda ceremony: rotation.add_operator(ceremony, "carl"),
}


@pytest.mark.parametrize("version", [2, 5])
@pytest.mark.parametrize("change", CHANGES)
def test_a_root_that_he_left_is_not_built_on(lab: TrustLab, version: int, change: str) -> None:
    forge_root(lab, version)
    put(lab)
    before = signed_by_us(lab)
    with pytest.raises(TrustError, match=rf"{version}\.root\.json"):
        CHANGES[change](lab.ceremony())
    assert signed_by_us(lab) == before


def test_a_root_that_he_changed_is_found(lab: TrustLab) -> None:
    forge_root(lab, 1)
    put(lab)
    with pytest.raises(TrustError, match=r"1\.root\.json is not the one that was signed"):
        rotation.renew_dates(lab.ceremony())


def test_targets_of_before_do_not_bring_a_revoked_operator_back(lab: TrustLab) -> None:
    old = lab.files()
    rotation.revoke_operator(lab.ceremony(NOW + 5), "ben")
    shutil.rmtree(lab.repository.folder)
    lab.repository.folder.mkdir()
    lab.served = old
    put(lab)
    rotation.add_operator(lab.ceremony(NOW + 10), "carl")
    targets = lab.repository.targets().signed
    names = sorted(
        keys_module.key_name(targets.get_key(keyid)) for keyid in targets.get_delegated_role("deployments").keyids
    )
    assert names == ["operator-anna", "operator-carl"]


def test_a_root_of_before_does_not_bring_a_stolen_online_key_back(lab: TrustLab) -> None:
    old, stolen = lab.files(), lab.online
    rotation.rotate_online(lab.ceremony(NOW + 5))
    (lab.repository.folder / "2.root.json").unlink()
    lab.served = old
    put(lab)
    rotation.renew_dates(lab.ceremony(NOW + 10))
    assert lab.repository.root().signed.version == 3
    assert stolen.public_key.keyid not in lab.repository.online_keyids()
    lab.refresh(NOW + 10)


def test_a_ceremony_mends_a_restored_backup(lab: TrustLab, tmp_path: Path) -> None:
    shutil.copytree(lab.data, tmp_path / "backup")
    rotation.rotate_targets(lab.ceremony(NOW + 5))
    rotation.add_operator(lab.ceremony(NOW + 10), "carl")
    lab.refresh(NOW + 10)
    shutil.rmtree(lab.data)
    (tmp_path / "backup").rename(lab.data)
    rotation.renew_dates(lab.ceremony(NOW + 15))
    version = lab.repository.target("digits", "1.0")
    assert version is not None
    envelope = lab.desired(lab.deployed(version, "carl"))
    assert lab.client(NOW + 15).check_desired(envelope, **ME).wanted == version


def test_another_copy_of_the_keys_follows_the_chain(lab: TrustLab, tmp_path: Path) -> None:
    """Two operators hold the root keys; each goes on from what the other signed."""
    other = rotation.Ceremony(KeyFolder(Path(shutil.copytree(lab.keys.folder, tmp_path / "other"))), lab.data, NOW + 5)
    rotation.renew_dates(lab.ceremony(NOW + 5))
    rotation.add_operator(other, "carl")
    rotation.renew_dates(lab.ceremony(NOW + 10))
    lab.refresh(NOW + 10)
    assert lab.repository.root().signed.version == 3


def test_a_root_that_he_took_out_of_the_chain_is_missed(lab: TrustLab, tmp_path: Path) -> None:
    """Devices could not follow what would be signed on top of it."""
    other = rotation.Ceremony(KeyFolder(Path(shutil.copytree(lab.keys.folder, tmp_path / "other"))), lab.data, NOW + 5)
    rotation.renew_dates(other)
    rotation.renew_dates(other)
    (lab.repository.folder / "2.root.json").unlink()
    with pytest.raises(TrustError, match=r"3\.root\.json does not follow root 1"):
        rotation.renew_dates(lab.ceremony(NOW + 10))


def test_a_root_whose_own_keys_did_not_sign_is_not_built_on(lab: TrustLab) -> None:
    root = lab.repository.root()
    root.signed.version = 2
    for keyid in list(root.signed.roles["root"].keyids):
        root.signed.revoke_key(keyid, "root")
    for number in range(2):
        root.signed.add_key(KeyFolder(lab.folder / "lost").create(f"root-{number}").public_key, "root")
    lab.serve("root", root, lab.keys.signer("root-1"), lab.keys.signer("root-2"))
    put(lab)
    with pytest.raises(TrustError, match=r"2\.root\.json: root was signed by 0/2 keys"):
        rotation.renew_dates(lab.ceremony())


def test_the_release_key_signs_only_on_top_of_what_it_signed(lab: TrustLab) -> None:
    """He adds a target of his own to metadata that his own root lets him sign."""
    evil = PackageVersion(package="digits", version="6.6.6", release=666, index_digest=digest_of(b"evil"))
    packages = lab.repository.packages()
    target = TargetFile.from_data("packages/digits@6.6.6", b"evil", ["sha256"])
    target.unrecognized_fields["custom"] = evil.model_dump(include={"package", "version", "release"})
    packages.signed.targets[target.path] = target
    packages.signed.version += 1
    targets = lab.repository.targets()
    targets.signed.version += 1
    targets.signed.add_key(lab.online.public_key, "packages")
    forge_root(lab, 2)
    lab.serve("targets", targets, lab.online)
    lab.serve("packages", packages, lab.online)
    put(lab)
    assert Repository(lab.repository.folder).target("digits", "6.6.6") == evil
    index = index_of("digits", "2.0")
    new = PackageVersion(package="digits", version="2.0", release=667, index_digest=digest_of(index))
    with pytest.raises(TrustError, match="the packages metadata there were not signed by this key"):
        lab.repository.add_target(new, index, lab.release, NOW)


def test_without_a_record_nothing_is_signed(lab: TrustLab) -> None:
    shutil.rmtree(lab.keys.folder / "signed")
    with pytest.raises(TrustError, match="holds no root; restore the folder of keys"):
        rotation.renew_dates(lab.ceremony())


def test_the_length_that_a_thief_signs_is_not_believed(lab: TrustLab) -> None:
    packages = lab.repository.packages()
    packages.signed.version += 1
    lab.forge_targets("packages", packages, lab.release)
    lab.forge_snapshot(lambda snapshot: setattr(snapshot.meta["packages.json"], "length", 10**12))
    lab.requests.clear()
    with pytest.raises(TrustError, match="expected length 1000000000000"):
        lab.client().target("digits", "1.0")
    assert max(limit for _, limit in lab.requests) <= 2 * 1024 * 1024


@pytest.mark.parametrize("folder", ["file/keys", "/proc/keys"])
def test_a_disk_that_refuses_is_a_storage_error(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError):
        KeyFolder(tmp_path / folder).create("release")


def test_a_stick_without_links_takes_keys_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_path: Path, _target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", fails)
    write_private(tmp_path / "key.pem", b"secret", "key")
    assert (tmp_path / "key.pem").read_bytes() == b"secret"
    with pytest.raises(StorageError, match="Operation not permitted"):
        write_private(tmp_path / "key.pem", b"other", "key")
    assert [path.name for path in tmp_path.iterdir()] == ["key.pem"]
