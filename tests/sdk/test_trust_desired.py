"""Which desired states and commands a device believes, and what a thief of the server's keys can make of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import Metadata, MetaFile, TargetFile, Targets

from edgefleet.errors import TransportError, TrustError
from edgefleet.package.digest import digest_of
from edgefleet.protocol.signed import (
    COMMAND_TYPE,
    DEPLOYMENT_TYPE,
    DESIRED_TYPE,
    Action,
    Desired,
    Envelope,
    PackageVersion,
    Signature,
)
from edgefleet.trust import rotation
from edgefleet.trust.client import Client
from edgefleet.trust.deployments import MOST_AHEAD_S, sign_deployment, target_path
from edgefleet.trust.envelope import sign
from edgefleet.trust.keys import KeyFolder
from sdk.trust_lab import DAY_S, DEVICE, ENROLMENT, FLEET, ME, NOW, TrustLab, index_of


@pytest.fixture
def lab(tmp_path: Path) -> TrustLab:
    return TrustLab(tmp_path)


def check(lab: TrustLab, envelope: Envelope, now: float = NOW) -> Desired:
    return lab.client(now).check_desired(envelope, **ME)


def test_what_an_operator_signed_passes(lab: TrustLab) -> None:
    version = lab.publish()
    desired = check(lab, lab.desired(lab.deployed(version)))
    assert desired.wanted == version
    assert (desired.generation, desired.deployment.deployment_id) == (7, "d1")


def test_it_refreshes_by_itself_once(lab: TrustLab) -> None:
    client, version = lab.client(), lab.publish()
    envelope = lab.desired(lab.deployed(version))
    client.check_desired(envelope, **ME)
    asked = len(lab.requests)
    client.check_desired(envelope, **ME)
    assert len(lab.requests) == asked


def test_the_fallback_of_the_deployment_passes_and_another_does_not(lab: TrustLab) -> None:
    old, new = lab.publish(), lab.publish(version="2.0", release=2)
    with_fallback = lab.deployed(new, fallback=old)
    assert check(lab, lab.desired(with_fallback, action=Action.FALLBACK)).wanted == old
    with pytest.raises(TrustError, match="has no fallback"):
        check(lab, lab.desired(lab.deployed(new), action=Action.FALLBACK))


def test_to_do_nothing_needs_no_package_and_no_date(lab: TrustLab) -> None:
    version = lab.publish()
    envelope = lab.desired(lab.deployed(version, expires=NOW - 1), action=Action.NONE, valid_until=NOW - 1)
    assert check(lab, envelope).wanted is None


# --- who it is for, and until when ---


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"fleet": "other"}, "for fleet other, this is fleet home"),
        ({"device": "camera-2"}, "for device camera-2, this is device camera-1"),
        ({"enrolment_id": "enrolment-0"}, "for enrolment enrolment-0, this is enrolment enrolment-1"),
        ({"valid_until": NOW - 1}, "desired state: it expired 2020-09-13"),
    ],
)
def test_a_desired_state_of_somebody_else_is_refused(lab: TrustLab, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(TrustError, match=why):
        check(lab, lab.desired(lab.deployed(lab.publish()), **changes))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"fleet": "other"}, "it is for fleet other"),
        ({"selector": "camera-2, camera-3"}, "not meant for device camera-1"),
        ({"selector": "camera-11"}, "not meant for device camera-1"),
        ({"selector": ""}, "not meant for device camera-1"),
        ({"expires": NOW - 1}, "deployment: it expired 2020-09-13"),
    ],
)
def test_a_deployment_for_others_or_of_old_is_refused(lab: TrustLab, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(TrustError, match=why):
        check(lab, lab.desired(lab.deployed(lab.publish(), **changes)))


def test_a_selector_may_name_this_device_among_others(lab: TrustLab) -> None:
    deployment = lab.deployed(lab.publish(), selector=f"camera-2, {DEVICE}")
    assert check(lab, lab.desired(deployment)).deployment.selects(DEVICE)


def test_dates_count_from_the_later_of_clock_and_floor(lab: TrustLab) -> None:
    envelope = lab.desired(lab.deployed(lab.publish()))
    lab.refresh(NOW + 2 * DAY_S)
    with pytest.raises(TrustError, match="expired"):
        check(lab, envelope, NOW - 1000 * DAY_S)


@pytest.mark.parametrize("valid_until", [1e300, -1e300])
def test_dates_outside_the_calendar_are_only_numbers(lab: TrustLab, valid_until: float) -> None:
    envelope = lab.desired(lab.deployed(lab.publish()), valid_until=valid_until)
    if valid_until > 0:
        check(lab, envelope)
    else:
        with pytest.raises(TrustError, match="outside the calendar"):
            check(lab, envelope)


# --- signatures ---


def stranger(lab: TrustLab) -> KeyFolder:
    keys = KeyFolder(lab.folder / "stranger")
    if not keys.names():
        keys.create("own")
    return keys


SIGNERS: dict[str, Callable[[TrustLab], Envelope]] = {
    "desired by a stranger": lambda lab: lab.desired(lab.deployed(lab.publish()), stranger(lab).signer("own")),
    "desired by an operator": lambda lab: lab.desired(lab.deployed(lab.publish()), lab.keys.signer("operator-anna")),
    "desired by the release key": lambda lab: lab.desired(lab.deployed(lab.publish()), lab.release),
    "desired by the targets key": lambda lab: lab.desired(lab.deployed(lab.publish()), lab.keys.signer("targets")),
    "deployment by a stranger": lambda lab: lab.desired(
        sign_deployment(lab.deployment(lab.publish()), stranger(lab).signer("own"))
    ),
    "deployment by the online key": lambda lab: lab.desired(sign_deployment(lab.deployment(lab.publish()), lab.online)),
    "deployment by the release key": lambda lab: lab.desired(
        sign_deployment(lab.deployment(lab.publish()), lab.release)
    ),
    "deployment by the targets key": lambda lab: lab.desired(
        sign_deployment(lab.deployment(lab.publish()), lab.keys.signer("targets"))
    ),
}


@pytest.mark.parametrize("case", SIGNERS)
def test_a_signature_of_the_wrong_key_is_refused(lab: TrustLab, case: str) -> None:
    with pytest.raises(TrustError, match="0 of 1 needed"):
        check(lab, SIGNERS[case](lab))


def test_a_changed_payload_is_refused(lab: TrustLab) -> None:
    envelope = lab.desired(lab.deployed(lab.publish()))
    changed = envelope.payload.replace(b'"generation":7', b'"generation":8')
    assert changed != envelope.payload
    with pytest.raises(TrustError, match="0 of 1 needed"):
        check(lab, envelope.model_copy(update={"payload": changed}))


def test_a_stranger_key_that_takes_a_known_key_id_is_refused(lab: TrustLab) -> None:
    envelope = lab.desired(lab.deployed(lab.publish()), stranger(lab).signer("own"))
    taken = Signature(keyid=lab.online.public_key.keyid, sig=envelope.signatures[0].sig)
    with pytest.raises(TrustError, match="0 of 1 needed"):
        check(lab, envelope.model_copy(update={"signatures": (taken,)}))


@pytest.mark.parametrize("inner", ["deployment", "desired"])
@pytest.mark.parametrize("kind", [DEPLOYMENT_TYPE, DESIRED_TYPE, COMMAND_TYPE, "text/plain", "", "a\nb"])
def test_a_signed_payload_is_not_taken_for_another_type(lab: TrustLab, kind: str, inner: str) -> None:
    """Right keys, right content, and another type of envelope: neither relabelled nor signed as such."""
    deployment = lab.deployed(lab.publish())
    desired = lab.desired(deployment)
    if kind == (DEPLOYMENT_TYPE if inner == "deployment" else DESIRED_TYPE):
        return
    if inner == "deployment":
        signer = lab.keys.signer("operator-anna")
        envelopes = [
            lab.desired(sign(deployment.payload, kind, signer)),
            lab.desired(deployment.model_copy(update={"payload_type": kind})),
        ]
    else:
        envelopes = [sign(desired.payload, kind, lab.online), desired.model_copy(update={"payload_type": kind})]
    for envelope in envelopes:
        with pytest.raises(TrustError, match="the envelope holds something else"):
            check(lab, envelope)


def test_a_deployment_a_desired_state_and_a_command_are_not_mixed_up(lab: TrustLab) -> None:
    deployment = lab.deployed(lab.publish())
    for envelope in (deployment, lab.command()):
        with pytest.raises(TrustError, match="something else"):
            check(lab, envelope)
        with pytest.raises(TrustError, match=r"0 of 1 needed|something else"):
            check(lab, envelope.model_copy(update={"payload_type": DESIRED_TYPE}))
        with pytest.raises(TrustError, match="something else"):
            check(lab, lab.desired(lab.command()))
    with pytest.raises(TrustError, match="something else"):
        lab.client().check_command(lab.desired(deployment))


@pytest.mark.parametrize("payload", [b"", b"{}", b"[]", b"\xff", b'{"v": 2}', b"[" * 100_000])
def test_signed_rubbish_is_refused_in_one_line(lab: TrustLab, payload: bytes) -> None:
    lab.publish()
    operator = lab.keys.signer("operator-anna")
    for envelope in (
        sign(payload, DESIRED_TYPE, lab.online),
        lab.desired(sign(payload, DEPLOYMENT_TYPE, operator)),
    ):
        with pytest.raises(TrustError, match="not well formed") as caught:
            check(lab, envelope)
        assert "\n" not in str(caught.value)


def test_text_of_a_peer_does_not_break_the_line(lab: TrustLab) -> None:
    envelope = lab.desired(lab.deployed(lab.publish()), enrolment_id="x\nERROR all is lost\x1b[31m" + "y" * 5000)
    with pytest.raises(TrustError, match=r"x\?ERROR") as caught:
        check(lab, envelope)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


# --- keys that come and go ---


def test_a_revoked_operator_deploys_nothing_any_more(lab: TrustLab) -> None:
    version = lab.publish()
    of_anna, of_ben = lab.deployed(version), lab.deployed(version, "ben")
    check(lab, lab.desired(of_anna))
    rotation.revoke_operator(lab.ceremony(NOW + 5), "anna")
    with pytest.raises(TrustError, match="0 of 1 needed"):
        check(lab, lab.desired(of_anna), NOW + 5)
    assert check(lab, lab.desired(of_ben), NOW + 5).wanted == version


def test_a_server_that_hides_a_revocation_can_do_so_for_a_week(lab: TrustLab) -> None:
    before_version = lab.publish()
    of_anna = lab.deployed(before_version, expires=NOW + 90 * DAY_S)
    envelope = lab.desired(of_anna, valid_until=NOW + 90 * DAY_S)
    hidden = lab.files()
    rotation.revoke_operator(lab.ceremony(NOW + 5), "anna")
    lab.served = dict(hidden)
    assert check(lab, envelope, NOW + 6 * DAY_S).wanted == before_version
    with pytest.raises(TrustError, match="expired"):
        check(lab, envelope, NOW + 8 * DAY_S)


def test_without_operators_nothing_is_deployed(lab: TrustLab) -> None:
    envelope = lab.desired(lab.deployed(lab.publish()))
    for operator in ("anna", "ben"):
        rotation.revoke_operator(lab.ceremony(NOW + 5), operator)
    with pytest.raises(TrustError, match="0 of 1 needed, out of 0 keys"):
        check(lab, envelope, NOW + 5)


def test_a_revoked_release_key_signs_nothing_any_more(lab: TrustLab) -> None:
    kept, dropped = lab.publish(), lab.publish(version="2.0", release=2)
    stolen = lab.release
    assert rotation.revoke_release(lab.ceremony(NOW + 5), ["digits@1.0"]) == ["digits@2.0"]
    assert check(lab, lab.desired(lab.deployed(kept)), NOW + 5).wanted == kept
    with pytest.raises(TrustError, match=r"no release key signed digits@2\.0"):
        check(lab, lab.desired(lab.deployed(dropped)), NOW + 5)
    packages = lab.repository.packages()
    packages.signed.version += 1
    lab.forge_targets("packages", packages, stolen)
    with pytest.raises(TrustError, match="packages was signed by 0/1 keys"):
        check(lab, lab.desired(lab.deployed(kept)), NOW + 5)


def test_a_desired_state_of_the_old_online_key_is_refused_after_its_rotation(lab: TrustLab) -> None:
    deployment = lab.deployed(lab.publish())
    old = lab.desired(deployment)
    rotation.rotate_online(lab.ceremony(NOW + 5))
    with pytest.raises(TrustError, match="0 of 1 needed"):
        check(lab, old, NOW + 5)
    check(lab, lab.desired(deployment), NOW + 5)


def test_a_target_that_says_something_else_is_refused(lab: TrustLab) -> None:
    version = lab.publish()
    for changes in ({"release": 2}, {"index_digest": digest_of(b"other")}):
        with pytest.raises(TrustError, match=r"the signed digits@1\.0 is another one"):
            check(lab, lab.desired(lab.deployed(version.model_copy(update=changes))))


# --- a thief of everything on the server ---


def by_thief() -> PackageVersion:
    """The thief's own package version, and its index among the server's blobs."""
    index = index_of("digits", "6.6.6")
    return PackageVersion(package="digits", version="6.6.6", release=666, index_digest=digest_of(index))


def _own_target(lab: TrustLab, role: str) -> None:
    """Add a target of his own to a role, sign it with the only key that he has, and publish that."""
    evil = by_thief()
    metadata: Metadata[Targets] = lab.repository.packages() if role == "packages" else lab.repository.targets()
    target = TargetFile.from_data(target_path(evil), index_of("digits", "6.6.6"), ["sha256"])
    target.unrecognized_fields["custom"] = evil.model_dump(include={"package", "version", "release"})
    metadata.signed.targets[target_path(evil)] = target
    metadata.signed.version += 1
    lab.forge_targets(role, metadata, lab.online)


def _own_root(lab: TrustLab) -> None:
    root = lab.repository.root()
    root.signed.version = 2
    for role in ("root", "targets"):
        for keyid in list(root.signed.roles[role].keyids):
            root.signed.revoke_key(keyid, role)
        root.signed.add_key(lab.online.public_key, role)
    root.signed.roles["root"].threshold = 1
    lab.serve("root", root, lab.online)


def _own_operator(lab: TrustLab) -> None:
    targets = lab.repository.targets()
    targets.signed.version += 1
    targets.signed.add_key(lab.online.public_key, "deployments")
    lab.forge_targets("targets", targets, lab.online)


def _old_packages(lab: TrustLab) -> None:
    """He brings version 1.0 back by signing a snapshot of the packages of before."""
    lab.forge_snapshot(lambda snapshot: snapshot.meta.update({"packages.json": MetaFile(int(NOW))}))


THEFTS: dict[str, tuple[Callable[[TrustLab], Envelope], str]] = {
    "his package, an operator's deployment relabelled": (
        lambda lab: lab.desired(_with_target(lab, by_thief())),
        "0 of 1 needed",
    ),
    "his package in a deployment of his own": (
        lambda lab: lab.desired(sign_deployment(lab.deployment(by_thief()), lab.online)),
        "0 of 1 needed",
    ),
    "his digest as the fallback of a signed deployment": (
        lambda lab: lab.desired(_with_fallback(lab, by_thief()), action=Action.FALLBACK),
        "0 of 1 needed",
    ),
    "a deployment of another fleet with the same operator": (
        lambda lab: lab.desired(lab.deployed(lab.publish(release=9, version="9"), fleet="other")),
        "it is for fleet other",
    ),
    "a deployment for another device": (
        lambda lab: lab.desired(lab.deployed(lab.publish(release=9, version="9"), selector="camera-2")),
        "not meant for device",
    ),
    "a deployment that has expired": (
        lambda lab: lab.desired(lab.deployed(lab.publish(release=9, version="9"), expires=NOW - 1)),
        "it expired",
    ),
    "a signed deployment of a package that no release key signed": (
        lambda lab: lab.desired(lab.deployed(by_thief())),
        r"no release key signed digits@6\.6\.6",
    ),
}


def _with_target(lab: TrustLab, version: PackageVersion) -> Envelope:
    good = lab.deployed(lab.publish(release=9, version="9"))
    return good.model_copy(update={"payload": lab.deployment(version).encode()})


def _with_fallback(lab: TrustLab, version: PackageVersion) -> Envelope:
    target = lab.publish(release=9, version="9")
    good = lab.deployed(target)
    return good.model_copy(update={"payload": lab.deployment(target, fallback=version).encode()})


@pytest.mark.parametrize("case", THEFTS)
def test_with_every_key_of_the_server_nothing_but_signed_deployments_passes(lab: TrustLab, case: str) -> None:
    make, why = THEFTS[case]
    with pytest.raises(TrustError, match=why):
        check(lab, make(lab))


@pytest.mark.parametrize(
    ("attack", "why"),
    [
        (lambda lab: _own_target(lab, "packages"), "packages was signed by 0/1 keys"),
        (lambda lab: _own_target(lab, "targets"), "targets was signed by 0/1 keys"),
        (_own_root, "root was signed by 0/2 keys"),
        (_own_operator, "targets was signed by 0/1 keys"),
        (_old_packages, r"Expected packages\.json version"),
    ],
)
def test_with_the_online_key_no_metadata_of_other_roles_can_be_made(
    lab: TrustLab, attack: Callable[[TrustLab], None], why: str
) -> None:
    lab.publish()
    lab.publish(version="2.0", release=2)
    evil = by_thief()
    lab.client().target("digits", "2.0")
    attack(lab)
    with pytest.raises(TrustError, match=why):
        check(lab, lab.desired(lab.deployed(evil)))
    assert lab.data not in (lab.keys.folder, *lab.keys.folder.parents), "the thief would hold the operators' keys"


# --- commands ---


def test_a_command_of_the_server_passes(lab: TrustLab) -> None:
    command = lab.client().check_command(lab.command())
    assert (command.fleet, command.device, command.enrolment_id) == (FLEET, DEVICE, ENROLMENT)


def test_commands_of_others_and_of_a_minute_ago_are_refused(lab: TrustLab) -> None:
    for signer in ("operator-anna", "release", "targets", "root-1"):
        with pytest.raises(TrustError, match="0 of 1 needed"):
            lab.client().check_command(lab.command(lab.keys.signer(signer)))
    with pytest.raises(TrustError, match="checking a command: it expired"):
        lab.client(NOW + 61).check_command(lab.command())


def test_without_a_network_nothing_is_believed(lab: TrustLab) -> None:
    def no_network(name: str, _max_bytes: int) -> bytes | None:
        raise TransportError(f"fetching {name}", "no answer", "wait")

    envelope = lab.desired(lab.deployed(lab.publish()))
    lab.client().refresh()
    client = Client(lab.folder / "device", lab.bootstrap_root, no_network, NOW)
    with pytest.raises(TransportError):
        client.check_desired(envelope, **ME)


# --- numbers that nothing could follow ---


@pytest.mark.parametrize("ahead_s", [MOST_AHEAD_S + 100, 2**39])
def test_a_serial_or_a_generation_of_the_far_future_is_refused(lab: TrustLab, ahead_s: float) -> None:
    """A stolen operator's key would otherwise end all deployments for good: the serial outlives the key."""
    version, number = lab.publish(), int(NOW + ahead_s)
    with pytest.raises(TrustError, match=r"its serial .* lies in the future"):
        check(lab, lab.desired(lab.deployed(version, serial=number)))
    with pytest.raises(TrustError, match=r"its generation .* lies in the future"):
        check(lab, lab.desired(lab.deployed(version), generation=number))


def test_a_clock_that_is_years_behind_refuses_no_honest_number(lab: TrustLab) -> None:
    version = lab.publish()
    envelope = lab.desired(lab.deployed(version), generation=int(NOW))
    assert check(lab, envelope, NOW - 1500 * DAY_S).wanted == version
