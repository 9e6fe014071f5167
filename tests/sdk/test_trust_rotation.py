"""Keys that change: devices follow, old keys count for nothing, a power cut at any step leaves a whole fleet."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

from edgefleet import durable
from edgefleet.errors import InputError, TrustError
from edgefleet.package.digest import digest_of
from edgefleet.protocol.signed import PackageVersion
from edgefleet.trust import keys as keys_module
from edgefleet.trust import rotation
from edgefleet.trust.online import ONLINE, load_online, online_keys
from edgefleet.trust.repository import Repository
from edgefleet.trust.rotation import Ceremony
from sdk.trust_lab import DAY_S, ME, NOW, TrustLab, index_of

CHANGES: dict[str, Callable[[Ceremony], object]] = {
    "root": rotation.rotate_root,
    "targets": rotation.rotate_targets,
    "release": rotation.rotate_release,
    "online": rotation.rotate_online,
    "dates": rotation.renew_dates,
    "revoke release": lambda ceremony: rotation.revoke_release(ceremony, ["digits@1.0"]),
    "rotate operator": lambda ceremony: rotation.rotate_operator(ceremony, "anna"),
    "add operator": lambda ceremony: rotation.add_operator(ceremony, "carl"),
    "revoke operator": lambda ceremony: rotation.revoke_operator(ceremony, "anna"),
}


class PowerCutError(BaseException):
    """Nothing after this happens."""


@pytest.fixture
def lab(tmp_path: Path) -> TrustLab:
    made = TrustLab(tmp_path)
    made.publish()
    return made


def believes(lab: TrustLab, now: float) -> None:
    """A device that knows the fleet and one that is new both install what an operator deployed."""
    version = lab.repository.target("digits", "1.0")
    assert version is not None
    envelope = lab.desired(lab.deployed(version, "ben"))
    for folder in ("device", "new-device"):
        assert lab.client(now, folder).check_desired(envelope, **ME).wanted == version


@pytest.mark.parametrize("change", CHANGES)
def test_devices_follow_every_change(lab: TrustLab, change: str) -> None:
    believes(lab, NOW)
    CHANGES[change](lab.ceremony(NOW + 5))
    believes(lab, NOW + 5)
    CHANGES["dates"](lab.ceremony(NOW + 10))
    believes(lab, NOW + 10)


@pytest.mark.parametrize("change", CHANGES)
def test_a_power_cut_at_any_step_leaves_a_whole_fleet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """After it the server signs when it finds that due, devices believe, and the same change can be made again."""
    step = 0
    while True:
        lab = TrustLab(tmp_path / str(step))
        lab.publish()
        believes(lab, NOW)
        with monkeypatch.context() as patch:
            was_cut = cut_at(patch, step)
            try:
                CHANGES[change](lab.ceremony(NOW + 5))
            except PowerCutError:
                pass
            else:
                assert not was_cut()
                break
        server = Repository(lab.repository.folder)
        if server.is_due(NOW + 6):
            server.publish(load_online(lab.data), NOW + 6)
        believes(lab, NOW + 6)
        again(lab, change)
        believes(lab, NOW + 7)
        step += 1
    assert step >= 3, "no step was cut off"


def again(lab: TrustLab, change: str) -> None:
    # What has a name of its own may have happened already.
    with suppress(InputError) if change in ("add operator", "revoke operator") else nullcontext():
        CHANGES[change](lab.ceremony(NOW + 7))
    rotation.renew_dates(lab.ceremony(NOW + 7))


def cut_at(patch: pytest.MonkeyPatch, step: int) -> Callable[[], bool]:
    """Cut the power before the step-th change of the disk (counted from 0)."""
    done = 0

    def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            if done >= step:
                done = 10**6
                raise PowerCutError
            done += 1
            return function(*args, **kwargs)

        return run

    patch.setattr(durable, "write_file", guarded(durable.write_file))
    patch.setattr(keys_module, "write_private", guarded(keys_module.write_private))
    patch.setattr(Path, "rename", guarded(Path.rename))
    return lambda: done >= 10**6


# --- what each change does ---


def test_new_root_keys_are_signed_by_the_old_and_replace_them(lab: TrustLab) -> None:
    old = {name: lab.keys.signer(name).public_key.keyid for name in ("root-1", "root-2", "root-3")}
    rotation.rotate_root(lab.ceremony())
    named = lab.repository.root().signed.roles["root"]
    assert set(named.keyids).isdisjoint(old.values())
    assert sorted(lab.keys.signer(name).public_key.keyid for name in old) == sorted(named.keyids)
    assert named.threshold == 2
    assert sorted(path.name for path in (lab.keys.folder / "retired").iterdir()) == [
        "root-1.1.pem", "root-2.1.pem", "root-3.1.pem",
    ]  # fmt: skip


def test_as_many_root_keys_as_the_threshold_says_are_enough(lab: TrustLab) -> None:
    lab.keys.path("root-2").unlink()
    rotation.rotate_targets(lab.ceremony(NOW + 5))
    believes(lab, NOW + 5)
    lab.keys.path("root-3").unlink()
    with pytest.raises(InputError, match=r"holds 1 of the 2 root keys .* put 2 of root-1, root-2, root-3 there"):
        rotation.rotate_targets(lab.ceremony(NOW + 10))
    believes(lab, NOW + 10)


def test_a_missing_key_is_said_and_changes_nothing(lab: TrustLab) -> None:
    before = lab.files()
    lab.keys.path("targets").rename(lab.folder / "elsewhere.pem")
    with pytest.raises(InputError, match=r"there is no .*targets\.pem"):
        rotation.add_operator(lab.ceremony(), "carl")
    assert lab.files() == before


def test_the_old_targets_key_signs_nothing_any_more(lab: TrustLab) -> None:
    old = lab.keys.signer("targets")
    rotation.rotate_targets(lab.ceremony(NOW + 5))
    lab.refresh(NOW + 5)
    targets = lab.repository.targets()
    targets.signed.version += 1
    lab.forge_targets("targets", targets, old)
    with pytest.raises(TrustError, match="targets was signed by 0/1 keys"):
        lab.refresh(NOW + 5)


def test_the_old_release_key_signs_nothing_any_more(lab: TrustLab) -> None:
    old = lab.release
    rotation.rotate_release(lab.ceremony())
    index = index_of("digits", "3.0")
    version = PackageVersion(package="digits", version="3.0", release=3, index_digest=digest_of(index))
    with pytest.raises(TrustError, match="may not sign packages"):
        lab.repository.add_target(version, index, old, NOW)


def test_the_old_online_key_publishes_nothing_any_more(lab: TrustLab) -> None:
    old = lab.online
    rotation.rotate_online(lab.ceremony())
    with pytest.raises(TrustError, match="may not sign snapshot"):
        lab.repository.publish(old, NOW)
    assert lab.online.public_key.keyid != old.public_key.keyid


def test_a_server_between_the_new_root_and_the_new_file_finds_its_key(lab: TrustLab) -> None:
    folder = online_keys(lab.data)
    new = folder.create(ONLINE + ".next")
    assert load_online(lab.data).public_key.keyid != new.public_key.keyid
    root = lab.repository.root()
    for role in ("snapshot", "timestamp"):
        root.signed.revoke_key(lab.online.public_key.keyid, role)
        root.signed.add_key(new.public_key, role)
    lab.repository.write_next("root", root, [lab.keys.signer("root-1"), lab.keys.signer("root-2")], NOW)
    assert load_online(lab.data).public_key.keyid == new.public_key.keyid
    assert not folder.path(ONLINE + ".next").exists()


def test_a_strange_online_key_is_refused(lab: TrustLab) -> None:
    other = TrustLab(lab.folder / "other", ("eve",))
    (lab.data / "trust" / "online.pem").write_bytes((other.data / "trust" / "online.pem").read_bytes())
    with pytest.raises(TrustError, match="not the key that the root metadata names"):
        load_online(lab.data)


def test_operators_have_one_name_each(lab: TrustLab) -> None:
    with pytest.raises(InputError, match="there is one of that name"):
        rotation.add_operator(lab.ceremony(), "anna")
    with pytest.raises(InputError, match="the fleet knows anna, ben"):
        rotation.revoke_operator(lab.ceremony(), "carl")
    with pytest.raises(InputError, match="operator name"):
        rotation.add_operator(lab.ceremony(), "../carl")


def test_revoking_the_release_key_keeps_only_what_was_named(lab: TrustLab) -> None:
    lab.publish(version="2.0", release=2)
    with pytest.raises(InputError, match=r"no digits@7 is signed"):
        rotation.revoke_release(lab.ceremony(), ["digits@7"])
    assert rotation.revoke_release(lab.ceremony(), []) == ["digits@1.0", "digits@2.0"]
    assert lab.repository.versions() == []


def test_dates_are_a_year_from_the_ceremony(lab: TrustLab) -> None:
    rotation.renew_dates(lab.ceremony(NOW + 300 * DAY_S))
    expiries = dict(lab.repository.expiries())
    for role in ("root", "targets", "packages"):
        assert expiries[role] == NOW + 665 * DAY_S
