"""The fleet's metadata on the server: what may be added, that versions never go back, and what survives a restore."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, Targets

from edgefleet.errors import InputError, IntegrityError, StorageError, TrustError
from edgefleet.package.digest import digest_of
from edgefleet.protocol.signed import PackageVersion
from edgefleet.trust import rotation
from edgefleet.trust.keys import KeyFolder
from edgefleet.trust.metadata_files import KEPT_VERSIONS
from edgefleet.trust.online import load_online, metadata_folder
from edgefleet.trust.repository import Repository
from sdk.trust_lab import DAY_S, ME, NOW, TrustLab, index_of


@pytest.fixture
def lab(tmp_path: Path) -> TrustLab:
    return TrustLab(tmp_path)


def version_of(version: str, release: int, package: str = "digits") -> PackageVersion:
    index = index_of(package, version)
    return PackageVersion(package=package, version=version, release=release, index_digest=digest_of(index))


# --- what may be added ---


def test_a_package_version_is_found_by_its_name(lab: TrustLab) -> None:
    made = lab.publish()
    assert lab.repository.target("digits", "1.0") == made
    assert lab.repository.target("digits", "1.1") is None
    assert lab.repository.versions() == [made]


def test_the_same_version_again_changes_nothing(lab: TrustLab) -> None:
    made = lab.publish()
    before = lab.files()
    lab.repository.add_target(made, index_of("digits", "1.0"), lab.release, NOW + 5)
    assert lab.files() == before


def test_a_version_keeps_its_content(lab: TrustLab) -> None:
    lab.publish()
    other = PackageVersion(package="digits", version="1.0", release=2, index_digest=digest_of(b"other"))
    with pytest.raises(InputError, match="signed already, with another content"):
        lab.repository.add_target(other, b"other", lab.release, NOW)


@pytest.mark.parametrize("release", [0, 1, 4, 5])
def test_the_release_counter_rises(lab: TrustLab, release: int) -> None:
    lab.publish(release=5)
    with pytest.raises(InputError, match=rf"release counter {release} is not above 5"):
        lab.publish(version="2.0", release=release)
    lab.publish(package="faces", version="1.0", release=release)


def test_an_index_that_is_not_the_digests_is_refused(lab: TrustLab) -> None:
    with pytest.raises(IntegrityError, match="does not have the digest"):
        lab.repository.add_target(version_of("1.0", 1), b"something else", lab.release, NOW)


def test_only_the_release_key_adds(lab: TrustLab) -> None:
    for name in ("targets", "root-1", "operator-anna"):
        with pytest.raises(TrustError, match="may not sign packages"):
            lab.repository.add_target(version_of("1.0", 1), index_of("digits", "1.0"), lab.keys.signer(name), NOW)
    assert lab.repository.versions() == []


# --- versions ---


def test_versions_are_the_time_and_never_go_back(lab: TrustLab) -> None:
    assert lab.repository.timestamp().signed.version == int(NOW)
    for now, version in ((NOW + 100, NOW + 100), (NOW + 100, NOW + 101), (NOW - DAY_S, NOW + 102), (0.0, NOW + 103)):
        lab.repository.publish(lab.online, now)
        assert lab.repository.timestamp().signed.version == int(version)


def test_a_restored_backup_of_a_week_ago_does_no_harm(lab: TrustLab, tmp_path: Path) -> None:
    """Devices believe it nothing until the release key signs anew; then they go on."""
    old = lab.publish()
    shutil.copytree(lab.data, tmp_path / "backup")
    for day in range(1, 7):
        lab.repository.publish(lab.online, NOW + day * DAY_S)
    new = lab.publish(version="2.0", release=2, now=NOW + 7 * DAY_S)
    check = lab.client(NOW + 7 * DAY_S).check_desired
    long = NOW + 90 * DAY_S
    assert check(lab.desired(lab.deployed(new, expires=long), valid_until=long), **ME).wanted == new

    shutil.rmtree(lab.data)
    (tmp_path / "backup").rename(lab.data)
    later = NOW + 7 * DAY_S + 60
    lab.repository.publish(lab.online, later)
    envelope = lab.desired(lab.deployed(old, expires=long), valid_until=long)
    with pytest.raises(TrustError, match=r"packages\.json version"):
        lab.client(later).check_desired(envelope, **ME)
    lab.publish(version="3.0", release=3, now=later + 1)
    assert lab.client(later + 1).check_desired(envelope, **ME).wanted == old


def test_a_timestamp_that_was_lost_comes_back_above_the_last(lab: TrustLab) -> None:
    lab.refresh()
    (lab.repository.folder / "timestamp.json").unlink()
    assert lab.repository.is_due(NOW)
    lab.repository.publish(lab.online, NOW - 100)
    lab.refresh()


def test_former_versions_stay_for_a_while_and_roots_for_ever(lab: TrustLab) -> None:
    for number in range(1, 2 * KEPT_VERSIONS):
        lab.publish(version=str(number), release=number)
    for year in range(3):
        rotation.rotate_root(lab.ceremony(NOW + year))
    names = [path.name for path in lab.repository.folder.glob("*.json")]
    assert len([name for name in names if name.endswith("snapshot.json")]) == KEPT_VERSIONS
    assert len([name for name in names if name.endswith("packages.json")]) == KEPT_VERSIONS
    assert len([name for name in names if name.endswith("root.json")]) == 4


# --- when the server signs ---


def test_the_server_signs_once_a_day_and_when_something_changed(lab: TrustLab) -> None:
    assert not lab.repository.is_due(NOW + DAY_S - 1)
    assert lab.repository.is_due(NOW + DAY_S + 1)
    lab.repository.add_target(version_of("1.0", 1), index_of("digits", "1.0"), lab.release, NOW)
    assert lab.repository.is_due(NOW)
    lab.repository.publish(lab.online, NOW)
    assert not lab.repository.is_due(NOW)


@pytest.mark.parametrize("name", ["timestamp.json", f"{int(NOW)}.snapshot.json"])
@pytest.mark.parametrize("content", [b"", b"{}", None])
def test_the_server_signs_when_what_it_signed_is_damaged(lab: TrustLab, name: str, content: bytes | None) -> None:
    path = lab.repository.folder / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert lab.repository.is_due(NOW)
    lab.repository.publish(lab.online, NOW + 1)
    lab.refresh(NOW + 1)


def test_a_folder_without_a_repository_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no root; restore the folder from a backup; .* edgefleet keys init"):
        Repository(tmp_path).root()


def test_a_full_disk_is_a_storage_error(lab: TrustLab, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_path: Path, _content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgefleet.durable.write_file", fails)
    with pytest.raises(StorageError, match="No space left"):
        lab.repository.publish(lab.online, NOW + 1)


def _publish_often(data: str, start: float) -> None:
    repository = Repository(metadata_folder(Path(data)))
    for number in range(20):
        repository.publish(load_online(Path(data)), start + number)


def test_two_processes_that_publish_do_not_cross(lab: TrustLab) -> None:
    context = get_context("spawn")
    both = [context.Process(target=_publish_often, args=(str(lab.data), NOW)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert lab.repository.timestamp().signed.version == int(NOW) + 40
    lab.refresh()


# --- metadata that was signed elsewhere ---


@pytest.fixture
def elsewhere(lab: TrustLab, tmp_path: Path) -> Repository:
    """A copy of the server's metadata on the packager's machine."""
    return Repository(Path(shutil.copytree(lab.repository.folder, tmp_path / "packager")))


def test_packages_signed_elsewhere_are_taken_over(lab: TrustLab, elsewhere: Repository) -> None:
    elsewhere.add_target(version_of("1.0", 1), index_of("digits", "1.0"), lab.release, NOW)
    content = elsewhere.packages().to_bytes()
    lab.repository.add_signed_packages(content, NOW)
    lab.repository.add_signed_packages(content, NOW)
    lab.repository.publish(lab.online, NOW)
    assert lab.client().target("digits", "1.0") == version_of("1.0", 1)


def _by_a_stranger(lab: TrustLab, packages: Metadata[Targets]) -> None:
    packages.sign(KeyFolder(lab.folder / "stranger").create("own"))


def _expired(lab: TrustLab, packages: Metadata[Targets]) -> None:
    packages.signed.expires = packages.signed.expires.replace(year=2019)
    packages.sign(lab.release)


def _of_the_future(lab: TrustLab, packages: Metadata[Targets]) -> None:
    packages.signed.version = 10**15
    packages.sign(lab.release)


def _older_with_another(lab: TrustLab, packages: Metadata[Targets]) -> None:
    lab.publish(version="3.0", release=3)
    lab.publish(version="4.0", release=4)
    packages.sign(lab.release)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_by_a_stranger, "signed by 0/1 keys"),
        (_expired, "it expired at 2019"),
        (_of_the_future, "lies in the future"),
        (_older_with_another, "is not newer than version"),
    ],
)
def test_packages_of_strangers_and_of_yesterday_are_not(
    lab: TrustLab, elsewhere: Repository, change: Callable[[TrustLab, Metadata[Targets]], None], why: str
) -> None:
    elsewhere.add_target(version_of("1.0", 1), index_of("digits", "1.0"), lab.release, NOW)
    packages = elsewhere.packages()
    change(lab, packages)
    with pytest.raises(TrustError, match=why):
        lab.repository.add_signed_packages(packages.to_bytes(), NOW)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff\xfe", b'{"signed": {}}'])
def test_packages_that_are_none_are_not(lab: TrustLab, content: bytes) -> None:
    with pytest.raises(TrustError, match="not TUF metadata"):
        lab.repository.add_signed_packages(content, NOW)


def test_metadata_of_another_kind_is_not(lab: TrustLab) -> None:
    with pytest.raises(TrustError, match="it is root metadata"):
        lab.repository.add_signed_packages(lab.repository.root_bytes(), NOW)
    with pytest.raises(TrustError, match="signed by 0/1 keys"):
        lab.repository.add_signed_packages(lab.repository.targets().to_bytes(), NOW)


def test_a_folder_that_cannot_be_read_is_not_called_empty(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Not a directory; let this user read it"):
        Repository(tmp_path / "file").root()
    with pytest.raises(StorageError, match="locking the trust metadata"), Repository(tmp_path / "file").locked():
        pass
