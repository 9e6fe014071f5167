"""What a device makes of the metadata it is served: each attack on the way is refused with one line that says why."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from tuf.api.metadata import MetaFile, Snapshot

from edgefleet.errors import StorageError, TransportError, TrustError
from edgefleet.trust import rotation
from edgefleet.trust.client import CLOCK_FLOOR, LIMITS, Client
from sdk.trust_lab import DAY_S, NOW, TrustLab


@pytest.fixture
def lab(tmp_path: Path) -> TrustLab:
    made = TrustLab(tmp_path)
    made.publish()
    return made


def test_the_first_refresh_brings_every_role_and_the_next_asks_twice(lab: TrustLab) -> None:
    first = lab.refresh()
    assert first[:2] == ["2.root.json", "timestamp.json"]
    assert [name.split(".", 1)[1] for name in first[2:]] == ["snapshot.json", "targets.json"]
    assert lab.refresh() == ["2.root.json", "timestamp.json"]


def test_the_target_of_a_package_version_is_found(lab: TrustLab) -> None:
    version = lab.repository.target("digits", "1.0")
    assert version is not None
    assert lab.client().target("digits", "1.0") == version
    assert lab.client().target("digits", "2.0") is None


def test_a_new_package_costs_three_files_more(lab: TrustLab) -> None:
    lab.client().target("digits", "1.0")
    lab.publish(version="2.0", release=2, now=NOW + 5)
    lab.requests.clear()
    lab.client(NOW + 5).target("digits", "2.0")
    asked = [name.rsplit(".", 2)[-2] for name, _ in lab.requests]
    assert asked == ["root", "timestamp", "snapshot", "packages"]


# --- rollback ---


def test_an_older_timestamp_is_refused(lab: TrustLab) -> None:
    old = lab.files()
    lab.repository.publish(lab.online, NOW + 5)
    lab.refresh(NOW + 5)
    lab.served = {"timestamp.json": old["timestamp.json"]}
    with pytest.raises(TrustError, match=r"timestamp\.json: New timestamp version"):
        lab.refresh(NOW + 5)


def test_a_newer_timestamp_with_an_older_snapshot_is_refused(lab: TrustLab) -> None:
    lab.refresh()
    timestamp = lab.repository.timestamp()
    older = timestamp.signed.snapshot_meta.version - 1
    timestamp.signed.version += 1
    timestamp.signed.snapshot_meta = MetaFile(older)
    lab.serve("timestamp", timestamp, lab.online)
    with pytest.raises(TrustError, match=r"timestamp\.json: New snapshot version must be"):
        lab.refresh()


@pytest.mark.parametrize("role", ["targets", "packages"])
def test_a_snapshot_with_an_older_role_is_refused(lab: TrustLab, role: str) -> None:
    rotation.renew_dates(lab.ceremony())
    lab.refresh()
    lab.forge_snapshot(lambda snapshot: snapshot.meta.update({f"{role}.json": MetaFile(1)}))
    with pytest.raises(TrustError, match=rf"snapshot\.json: Expected {role}\.json version"):
        lab.refresh()


def test_a_snapshot_without_a_role_that_it_had_is_refused(lab: TrustLab) -> None:
    lab.refresh()

    def without_packages(snapshot: Snapshot) -> None:
        del snapshot.meta["packages.json"]

    lab.forge_snapshot(without_packages)
    with pytest.raises(TrustError, match=r"missing info for 'packages\.json'"):
        lab.refresh()


def test_an_older_root_in_the_place_of_the_next_is_refused(lab: TrustLab) -> None:
    lab.refresh()
    lab.served["2.root.json"] = lab.repository.root_bytes(1)
    with pytest.raises(TrustError, match=r"2\.root\.json: Expected root version 2"):
        lab.refresh()


# --- freeze, mix and match ---


def test_a_server_that_repeats_itself_for_a_week_is_refused_then_believed_once_it_signs(lab: TrustLab) -> None:
    lab.refresh(NOW + 6 * DAY_S)
    with pytest.raises(TrustError, match=r"timestamp\.json is expired \(the clock says 2020-09-21"):
        lab.refresh(NOW + 8 * DAY_S)
    lab.repository.publish(lab.online, NOW + 8 * DAY_S)
    lab.refresh(NOW + 8 * DAY_S)


def test_an_expired_snapshot_under_a_fresh_timestamp_is_refused(lab: TrustLab) -> None:
    def expire(snapshot: Snapshot) -> None:
        snapshot.expires = snapshot.expires.replace(year=2019)

    lab.forge_snapshot(expire)
    with pytest.raises(TrustError, match=r"snapshot\.json is expired"):
        lab.refresh()


def test_expired_targets_are_refused(lab: TrustLab) -> None:
    targets = lab.repository.targets()
    targets.signed.version += 1
    targets.signed.expires = targets.signed.expires.replace(year=2019)
    lab.forge_targets("targets", targets, lab.keys.signer("targets"))
    with pytest.raises(TrustError, match="New targets is expired"):
        lab.refresh()


def test_a_snapshot_of_another_day_is_refused(lab: TrustLab) -> None:
    before = lab.files()
    lab.publish(version="2.0", release=2, now=NOW + 5)
    new = lab.repository.timestamp().signed.snapshot_meta.version
    old = max(int(name.split(".")[0]) for name in before if name.endswith(".snapshot.json"))
    lab.served[f"{new}.snapshot.json"] = before[f"{old}.snapshot.json"]
    with pytest.raises(TrustError, match=rf"{new}\.snapshot\.json: "):
        lab.refresh(NOW + 5)


def test_packages_of_another_day_are_refused(lab: TrustLab) -> None:
    old = lab.repository.packages()
    lab.publish(version="2.0", release=2, now=NOW + 5)
    name = f"{lab.repository.packages().signed.version}.packages.json"
    lab.served[name] = old.to_bytes()
    with pytest.raises(TrustError, match=rf"{name}: "):
        lab.client(NOW + 5).target("digits", "2.0")


# --- fast-forward, and the way back ---


@pytest.mark.parametrize("far", ["versions", "packages"])
def test_versions_far_in_the_future_are_undone_by_a_new_online_key(lab: TrustLab, far: str) -> None:
    lab.refresh()
    future = 2**40
    if far == "versions":
        lab.forge_snapshot(lambda _snapshot: None, future)
    else:
        lab.forge_snapshot(lambda snapshot: snapshot.meta.update({"packages.json": MetaFile(future)}))
    lab.refresh()
    lab.served.clear()
    lab.repository.publish(lab.online, NOW + 60)
    with pytest.raises(TrustError, match="version"):
        lab.refresh(NOW + 60)
    rotation.rotate_online(lab.ceremony(NOW + 120))
    lab.refresh(NOW + 120)
    assert lab.client(NOW + 120).target("digits", "1.0") is not None


# --- data ---


@pytest.mark.parametrize(
    ("name", "limit"),
    [("2.root.json", LIMITS.root_max_length), ("timestamp.json", LIMITS.timestamp_max_length)],
)
def test_endless_data_is_cut_off_at_the_limit(lab: TrustLab, name: str, limit: int) -> None:
    lab.served[name] = b"x" * (limit + 1)
    with pytest.raises(TrustError, match=rf"{name}: more than the {limit} bytes"):
        lab.refresh()
    assert dict(lab.requests)[name] == limit


def test_signed_files_may_have_their_signed_length_and_no_more(lab: TrustLab) -> None:
    lab.client().target("digits", "1.0")
    for name, limit in lab.requests[2:]:
        assert limit == (lab.repository.folder / name).stat().st_size
    shutil.rmtree(lab.folder / "device")
    content = (lab.repository.folder / "1.targets.json").read_bytes()
    lab.served["1.targets.json"] = content + b" "
    with pytest.raises(TrustError, match=rf"1\.targets\.json: more than the {len(content)} bytes"):
        lab.refresh()


@pytest.mark.parametrize("damage", ["shorter", "flipped", "empty", "not JSON", "missing"])
@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "packages"])
def test_damaged_files_are_refused(lab: TrustLab, role: str, damage: str) -> None:
    name = max(name for name in lab.files() if name.endswith(f"{role}.json"))
    content = (lab.repository.folder / name).read_bytes()
    middle = len(content) // 2
    lab.served[name] = {
        "shorter": content[:-1],
        "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "empty": b"",
        "not JSON": b"x" * len(content),
        "missing": None,
    }[damage]
    with pytest.raises(TrustError, match=rf"{name}|no {name}") as caught:
        lab.client().target("digits", "1.0")
    assert "\n" not in str(caught.value)


def test_a_network_failure_stays_one(lab: TrustLab) -> None:
    def fails(name: str, _max_bytes: int) -> bytes | None:
        raise TransportError(f"fetching {name}", "no answer for 30 s", "look at the broker")

    with pytest.raises(TransportError, match="no answer"):
        Client(lab.folder / "device", lab.bootstrap_root, fails, NOW).refresh()


def test_a_disk_that_takes_nothing_is_a_storage_error(lab: TrustLab) -> None:
    (lab.folder / "device").write_text("a file where the folder belongs")
    with pytest.raises(StorageError, match="refreshing the trust metadata"):
        lab.client().refresh()


def test_a_bootstrap_root_that_is_none_is_refused(lab: TrustLab) -> None:
    with pytest.raises(TrustError, match=r"root\.json"):
        Client(lab.folder / "device", b"{}", lab.fetch, NOW).refresh()


def test_files_that_were_damaged_on_the_device_are_brought_again(lab: TrustLab) -> None:
    lab.client().target("digits", "1.0")
    for path in (lab.folder / "device" / "metadata").rglob("*.json"):
        if not path.is_symlink():
            path.write_bytes(b"torn")
    assert lab.client().target("digits", "1.0") is not None


# --- root ---


def test_a_root_signed_by_too_few_is_refused(lab: TrustLab) -> None:
    root = lab.repository.root()
    root.signed.version = 2
    lab.serve("root", root, lab.keys.signer("root-1"))
    with pytest.raises(TrustError, match=r"2\.root\.json: root was signed by 1/2 keys"):
        lab.refresh()


def test_one_root_key_that_signs_twice_under_two_ids_counts_once(lab: TrustLab) -> None:
    root = lab.repository.root()
    root.signed.version = 2
    signer = lab.keys.signer("root-1")
    root.signatures.clear()
    root.sign(signer)
    content = root.to_dict()
    content["signatures"].append({**content["signatures"][0], "keyid": lab.keys.signer("root-2").public_key.keyid})
    lab.served["2.root.json"] = type(root).from_dict(content).to_bytes()
    with pytest.raises(TrustError, match=r"signed by 1/2 keys"):
        lab.refresh()


def test_a_root_that_does_not_satisfy_itself_is_refused(lab: TrustLab) -> None:
    """Two old keys hand over to keys of others, who did not sign."""
    root = lab.repository.root()
    root.signed.version = 2
    other = TrustLab(lab.folder / "other", ("eve",))
    for keyid in list(root.signed.roles["root"].keyids):
        root.signed.revoke_key(keyid, "root")
    for number in (1, 2, 3):
        root.signed.add_key(other.keys.signer(f"root-{number}").public_key, "root")
    lab.serve("root", root, lab.keys.signer("root-1"), lab.keys.signer("root-2"))
    with pytest.raises(TrustError, match=r"signed by 0/2 keys"):
        lab.refresh()


def test_an_expired_root_stops_until_a_new_one_comes(lab: TrustLab) -> None:
    later = NOW + 366 * DAY_S
    lab.refresh()
    with pytest.raises(TrustError, match=r"Final root\.json is expired"):
        lab.refresh(later)
    rotation.renew_dates(lab.ceremony(later))
    assert lab.refresh(later)[0] == "2.root.json"
    assert lab.client(later).target("digits", "1.0") is not None


def test_a_device_that_was_off_for_years_follows_the_whole_chain(lab: TrustLab) -> None:
    for year in range(1, 5):
        ceremony = lab.ceremony(NOW + year * 300 * DAY_S)
        rotation.rotate_root(ceremony)
        rotation.rotate_online(ceremony)
        rotation.renew_dates(ceremony)
    asked = lab.refresh(NOW + 1201 * DAY_S)
    assert asked[:13] == [f"{number}.root.json" for number in range(2, 15)]
    assert lab.client(NOW + 1201 * DAY_S).target("digits", "1.0") is not None


# --- time ---


def test_the_time_that_counts_is_ours_not_the_systems(lab: TrustLab) -> None:
    """By the system's clock all of it expired years ago: this fails when tuf moves the only handle that there is."""
    assert lab.repository.timestamp().signed.expires.timestamp() < time.time()
    lab.refresh(NOW)
    with pytest.raises(TrustError, match="expired"):
        lab.refresh(NOW + 8 * DAY_S)


def test_a_clock_that_goes_back_does_not_bring_back_what_expired(lab: TrustLab) -> None:
    lab.refresh(NOW + 6 * DAY_S)
    lab.repository.publish(lab.online, NOW + 8 * DAY_S)
    lab.refresh(NOW + 8 * DAY_S)
    assert lab.client(NOW - 365 * DAY_S).reference_time == NOW + 8 * DAY_S
    with pytest.raises(TrustError, match="expired"):
        lab.client(NOW + 20 * DAY_S).refresh()
    assert lab.client(0.0).reference_time == NOW + 8 * DAY_S, "a refresh that failed raised the floor"


def test_a_clock_far_ahead_does_no_lasting_harm(lab: TrustLab) -> None:
    with pytest.raises(TrustError, match="the clock says 2040-"):
        lab.refresh(2_208_988_800.0)
    lab.refresh(NOW)


@pytest.mark.parametrize("content", ["", "x", "nan", "inf", "-1", "1e15"])
def test_a_damaged_floor_counts_for_nothing(lab: TrustLab, content: str) -> None:
    lab.refresh()
    (lab.folder / "device" / CLOCK_FLOOR).write_text(content)
    assert lab.client(NOW).reference_time == NOW
    lab.refresh()


def test_packages_that_expired_stop_new_installs_only_of_packages(lab: TrustLab) -> None:
    packages = lab.repository.packages()
    packages.signed.version += 1
    packages.signed.expires = lab.repository.snapshot().signed.expires.replace(year=2019)
    lab.forge_targets("packages", packages, lab.release)
    client = lab.client()
    client.refresh()
    with pytest.raises(TrustError, match="New packages is expired"):
        client.target("digits", "1.0")


def test_targets_metadata_in_the_place_of_another_role_is_refused(lab: TrustLab) -> None:
    """The release key's own metadata, served as the top targets."""
    lab.forge_targets("targets", lab.repository.packages(), lab.release)
    with pytest.raises(TrustError, match=r"targets was signed by 0/1 keys"):
        lab.refresh()
