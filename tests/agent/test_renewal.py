"""Renewing the certificate: a new key, a request, a check, one rename, a new connection; never half of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.agent_lab import DEVICE, FLEET, Device, Fleet
from edgefleet import identity as identities
from edgefleet.errors import TrustError
from edgefleet.identity import DeviceIdentity
from edgefleet.protocol.messages import Reply, Request, RequestKind, Status
from edgefleet.protocol.signed import CommandName
from edgefleet.protocol.topics import TopicName
from edgefleet.trust import certificates, pki
from edgefleet_agent.renewed_certificate import check

DAY_S = 86400.0


def enrolled(home: Fleet, folder: Path, *, days_left: float) -> DeviceIdentity:
    home.enroll(folder, now=time.time() - (365 - days_left) * DAY_S)
    return identities.load(folder)


def renewed(device: Device) -> bool:
    return any(kind == "certificate_renewed" for kind, _ in device.events())


def test_from_sixty_days_before_its_end_a_certificate_is_renewed(
    open_device: Callable[[], Device], home: Fleet, tmp_path: Path
) -> None:
    own = enrolled(home, tmp_path / "identity", days_left=59)
    old_key = own.key_file.read_bytes()
    device = open_device()
    device.until(lambda: renewed(device), "the renewal")
    assert own.not_after > time.time() + 364 * DAY_S
    assert own.key_file == own.certificate_file == tmp_path / "identity" / "renewed.pem"
    assert own.key_file.stat().st_mode & 0o777 == 0o600
    assert old_key not in own.key_file.read_bytes()
    assert device.wire.reconnects == 1
    assert not (tmp_path / "identity" / "renewing.key").exists()
    # And not again.
    device.agent._renewal.tick(time.monotonic() + 3700)
    device.settle()
    assert [request.kind for request in device.hubs.asked] == [RequestKind.RENEW]


def test_earlier_it_is_left_alone_until_the_server_says_so(
    open_device: Callable[[], Device], home: Fleet, tmp_path: Path
) -> None:
    own = enrolled(home, tmp_path / "identity", days_left=61)
    device = open_device()
    device.turn()
    assert not device.agent._renewal.under_way
    device.receive(TopicName.COMMANDS, home.command("c1", CommandName.RENEW, device.enrolment_id))
    device.until(lambda: renewed(device), "the renewal")
    assert own.not_after > time.time() + 364 * DAY_S
    assert ("command", "renew c1: a renewal was begun") in device.events()


def test_without_tls_there_is_nothing_to_renew(open_device: Callable[[], Device], home: Fleet, tmp_path: Path) -> None:
    home.enroll(tmp_path / "identity", tls=False)
    device = open_device()
    device.receive(TopicName.COMMANDS, home.command("c1", CommandName.RENEW, device.enrolment_id))
    device.settle()
    assert ("command", "renew c1: this fleet has no certificates") in device.events()


@pytest.mark.parametrize("status", [Status.DENIED, Status.GONE])
def test_a_refusal_is_said_once_and_the_old_certificate_stays(
    open_device: Callable[[], Device], home: Fleet, tmp_path: Path, status: Status
) -> None:
    own = enrolled(home, tmp_path / "identity", days_left=10)
    device = open_device()
    device.hubs.instead["renew"] = lambda request: [Reply(req_id=request.req_id, status=status, body=b"removed")]
    device.until(lambda: bool(device.events()), "the refusal")
    for day in range(1, 4):
        device.agent._renewal.tick(time.monotonic() + day * 2 * DAY_S)
        device.until(lambda: not device.agent._renewal.under_way, "the next refusal")
    assert [kind for kind, _ in device.events()] == ["renewal_failed"]
    assert len(device.hubs.asked) > 1
    assert own.certificate_file.name == "device.crt"


def test_a_certificate_for_another_key_is_not_taken(
    open_device: Callable[[], Device], home: Fleet, tmp_path: Path
) -> None:
    own = enrolled(home, tmp_path / "identity", days_left=10)
    device = open_device()

    def other(request: Request) -> list[Reply]:
        _, csr = certificates.make_key_and_csr(DEVICE)
        return device.hubs.parts(request, pki.issue_device(
            home.data, csr, FLEET, DEVICE, device.enrolment_id, time.time()
        ))  # fmt: skip

    device.hubs.instead["renew"] = other
    device.until(lambda: bool(device.events()), "the refusal")
    assert "it is for another key" in device.events()[0][1]
    assert own.certificate_file.name == "device.crt"
    assert device.wire.reconnects == 0


def test_a_power_cut_after_the_request_leaves_the_old_and_the_next_start_renews(
    open_device: Callable[[], Device], home: Fleet, tmp_path: Path
) -> None:
    own = enrolled(home, tmp_path / "identity", days_left=10)
    device = open_device()
    device.hubs.without.add(RequestKind.RENEW)
    device.until(lambda: bool(device.hubs.asked), "the request")
    device.close()
    assert (tmp_path / "identity" / "renewing.key").exists()
    assert identities.load(tmp_path / "identity") == own
    again = open_device()
    again.until(lambda: renewed(again), "the renewal")
    assert own.not_after > time.time() + 364 * DAY_S


class Issuing:
    """Chains of a fleet, for one new key."""

    def __init__(self, home: Fleet) -> None:
        self.home = home
        self.key_pem, self.csr = certificates.make_key_and_csr(DEVICE)

    def chain(self, enrolment_id: str, *, device: str = DEVICE, fleet: str = FLEET, now: float | None = None) -> bytes:
        csr = self.csr
        if device != DEVICE:
            self.key_pem, csr = certificates.make_key_and_csr(device)
        return pki.issue_device(self.home.data, csr, fleet, device, enrolment_id, now or time.time())


def test_a_renewed_certificate_must_be_this_devices_and_this_fleets(home: Fleet, tmp_path: Path) -> None:
    own = enrolled(home, tmp_path / "identity", days_left=10)
    issuing = Issuing(home)
    good = issuing.chain(own.enrolment_id)
    assert check(own, issuing.key_pem, good) == pytest.approx(time.time() + 365 * DAY_S, abs=60)
    foreign = Issuing(Fleet.found(tmp_path / "foreign"))
    foreign.key_pem, foreign.csr = issuing.key_pem, issuing.csr
    first, second = (b"-----BEGIN" + part for part in good.split(b"-----BEGIN")[1:])
    cases = {
        "it is for pi-kitchen": issuing.chain("00ff00ff00ff00ff"),
        "not issued by this fleet": foreign.chain(own.enrolment_id),
        "does not last longer": issuing.chain(own.enrolment_id, now=time.time() - 356 * DAY_S),
        "it is for another key": second + first,
        "it is not readable": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "its chain has": first * 5,
    }
    for said, chain in cases.items():
        with pytest.raises(TrustError, match=said):
            check(own, issuing.key_pem, chain)
    for chain in (b"", first, first * 2, b"nonsense", good[:-100]):
        with pytest.raises(TrustError):
            check(own, issuing.key_pem, chain)
    other = issuing.chain(own.enrolment_id, device="nuc")
    with pytest.raises(TrustError, match="it is for nuc"):
        check(own, issuing.key_pem, other)
