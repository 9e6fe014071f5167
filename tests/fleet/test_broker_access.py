"""The broker's configuration on a real mosquitto: who gets in, and what each may write and read."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509

from broker_clients import FLEET, TlsBroker, knock, start_broker, wait, write_pair
from edgefleet.errors import InputError, TransportError
from edgefleet.mqtt import BrokerAddress
from edgefleet.protocol import topics
from edgefleet.protocol.access import REMOVAL_USER
from edgefleet.protocol.topics import SERVER_USER, TOPICS, Role, TopicName
from edgefleet.server import removal
from edgefleet.trust import broker as broker_files
from edgefleet.trust import pki
from edgefleet.trust.certificates import Authority, device_certificate, key_from_pem, make_key_and_csr, to_pem
from edgefleet_demo.processes import free_port

HUB = topics.HUB_USERS[0]
READS = {SERVER_USER: (Role.SERVER, Role.HUB), HUB: (Role.HUB,)}
pytestmark = pytest.mark.service


@pytest.fixture(scope="module")
def _broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsBroker | None]:
    running = start_broker(tmp_path_factory.mktemp("fleet"))
    if running is not None:
        for device in ("pi", "nuc"):
            running.enroll(device)
    yield running
    if running is not None:
        running.stop()


@pytest.fixture(name="broker")
def _ready(_broker: TlsBroker | None, need: Callable[[bool, str], None]) -> TlsBroker:
    need(_broker is not None, "mosquitto (a system package)")
    assert _broker is not None
    return _broker


OWNED = {name: row for name, row in TOPICS.items() if "{device}" in row.pattern}
"""Topics of one device; shared pieces are for all of the fleet."""


def topic(name: TopicName, device: str) -> str:
    return topics.topic_for(FLEET, name, device, sha12="0123456789ab", piece=7)


def user_of(role: Role, device: str) -> str:
    return {Role.SERVER: SERVER_USER, Role.HUB: HUB, Role.DEVICE: device}[role]


# Who gets in -------------------------------------------------------------------------------------------


def test_an_enrolled_device_and_the_servers_own_get_in(broker: TlsBroker) -> None:
    for name in ("pi", "nuc", SERVER_USER, HUB):
        knock(broker.port, broker.context(name))


def test_nobody_gets_in_without_a_certificate(broker: TlsBroker) -> None:
    context = ssl.create_default_context(cafile=str(broker.data / "pki" / "root-ca.crt"))
    with pytest.raises(PermissionError, match="certificate required"):
        knock(broker.port, context)


def _issuer(broker: TlsBroker) -> Authority:
    folder = broker.data / "pki"
    certificate = x509.load_pem_x509_certificate((folder / "issuing-ca.crt").read_bytes())
    return Authority(certificate, key_from_pem((folder / "issuing-ca.key").read_bytes()))


def test_an_expired_certificate_is_refused(broker: TlsBroker, tmp_path: Path) -> None:
    key, csr = make_key_and_csr("pi")
    issuer = _issuer(broker)
    for days, refused in ((-1, True), (1, False)):
        certificate = device_certificate(
            issuer, x509.load_pem_x509_csr(csr), fleet=FLEET, device="pi", enrolment_id="0" * 16,
            not_after=time.time() + days * 86400,
        )  # fmt: skip
        context = broker.context_of(*write_pair(tmp_path / str(days), key, to_pem(certificate, issuer.certificate)))
        if refused:
            with pytest.raises(PermissionError, match="certificate expired"):
                knock(broker.port, context)
        else:
            knock(broker.port, context)


def test_a_certificate_of_another_authority_of_the_same_names_is_refused(broker: TlsBroker, tmp_path: Path) -> None:
    pki.create_fleet_pki(tmp_path / "keys", tmp_path / "data", FLEET)
    key, csr = make_key_and_csr("pi")
    chain = pki.issue_device(tmp_path / "data", csr, FLEET, "pi", "0" * 16, time.time())
    with pytest.raises(PermissionError, match=r"unknown ca|decrypt.error|bad.certificate"):
        knock(broker.port, broker.context_of(*write_pair(tmp_path / "forged", key, chain)))


def test_a_device_signs_nobody_with_its_own_certificate(broker: TlsBroker, tmp_path: Path) -> None:
    folder = broker.folder / "pi"
    own = x509.load_pem_x509_certificate((folder / "device.crt").read_bytes())
    device = Authority(own, key_from_pem((folder / "device.key").read_bytes()))
    key, csr = make_key_and_csr(SERVER_USER)
    forged = device_certificate(
        device, x509.load_pem_x509_csr(csr), fleet=FLEET, device=SERVER_USER, enrolment_id="0" * 16,
        not_after=time.time() + 86400,
    )  # fmt: skip
    chain = to_pem(forged) + (folder / "device.crt").read_bytes()
    with pytest.raises(PermissionError, match=r"unknown ca|bad.certificate"):
        knock(broker.port, broker.context_of(*write_pair(tmp_path / "forged", key, chain)))


def test_tls_1_1_is_refused_and_1_2_is_not(broker: TlsBroker) -> None:
    old, new = broker.context("pi"), broker.context("pi")
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.deprecated_call():
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    new.maximum_version = ssl.TLSVersion.TLSv1_2
    knock(broker.port, new)
    # The broker's word, not our own library's.
    with pytest.raises(PermissionError, match="alert protocol version"):
        knock(broker.port, old)


def test_a_device_cannot_pass_for_the_broker(broker: TlsBroker) -> None:
    """Its certificate is a client's: whoever else checks the broker as devices do, refuses it as a server."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(broker.folder / "pi" / "device.crt", broker.folder / "pi" / "device.key")
    client = ssl.create_default_context(cafile=str(broker.data / "pki" / "root-ca.crt"))
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    there = server.wrap_bio(to_server, to_client, server_side=True)
    here = client.wrap_bio(to_client, to_server, server_hostname="pi")
    with suppress(ssl.SSLWantReadError):
        here.do_handshake()
    with suppress(ssl.SSLWantReadError):
        there.do_handshake()
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate purpose"):
        here.do_handshake()


# What each may write and read --------------------------------------------------------------------------


@pytest.mark.parametrize("name", TopicName)
def test_every_row_of_the_table_works_for_its_writer_and_its_readers(broker: TlsBroker, name: TopicName) -> None:
    row = TOPICS[name]
    readers = [user_of(row.reader, "pi")]
    readers += [SERVER_USER] if row.reader is Role.HUB else []
    payload = f"flow {name}".encode()
    filters = [(topics.filter_for(FLEET, name, "pi" if row.reader is Role.DEVICE else None), row.qos)]
    listening = [broker.client(reader, filters) for reader in readers]
    writers = [user_of(row.writer, "pi")] + ([SERVER_USER] if row.writer is Role.HUB else [])
    for user in writers:
        writer = broker.client(user)
        writer.publish(topic(name, "pi"), payload + user.encode(), row.qos, retained=row.retained)
        for reader in listening:
            reader.wait_for(payload + user.encode())
        writer.close()
    for reader in listening:
        assert reader.topics() == {topic(name, "pi")}
        reader.close()
    if row.retained:
        broker_cleared = broker.client(user_of(row.writer, "pi"))
        broker_cleared.publish(topic(name, "pi"), b"", row.qos, retained=True)
        broker_cleared.close()


def test_a_hub_in_a_shared_group_gets_the_requests(broker: TlsBroker) -> None:
    shared = f"$share/hubs-x/{topics.filter_for(FLEET, TopicName.REQUEST)}"
    hub, device = broker.client(HUB, [(shared, 1)]), broker.client("pi")
    device.publish(topic(TopicName.REQUEST, "pi"), b"a shared request")
    hub.wait_for(b"a shared request")
    for client in (hub, device):
        client.close()


def test_a_device_reads_nothing_that_is_not_its_own(broker: TlsBroker) -> None:
    """SUBACK says granted, whatever the access list says: what counts is that nothing comes."""
    everything = [("#", 1), (f"{topics.PREFIX}/{FLEET}/#", 1)]
    everything += [(topics.filter_for(FLEET, name), 1) for name in TopicName]
    everything += [(topics.filter_for(FLEET, name, "pi"), 1) for name in TopicName]
    everything += [(f"$share/hubs-x/{topics.filter_for(FLEET, TopicName.REQUEST)}", 1), ("$SYS/#", 1)]
    victim, server, hub = broker.client("pi"), broker.client(SERVER_USER), broker.client(HUB)
    spy = broker.client("nuc", everything)
    by = {Role.DEVICE: victim, Role.SERVER: server, Role.HUB: hub}
    for name, row in OWNED.items():
        by[row.writer].publish(topic(name, "pi"), b"secret", 1, retained=row.retained)
    # The same senders, afterwards: what they sent before has been passed on or refused by then.
    for sender, name in ((server, TopicName.ACK), (hub, TopicName.REPLY)):
        sender.publish(topic(name, "nuc"), b"last " + name.encode())
        spy.wait_for(b"last " + name.encode())
    victim.publish(topic(TopicName.EVENTS, "pi"), b"last")
    late = broker.client("nuc", everything)
    server.publish(topic(TopicName.ACK, "nuc"), b"last of all")
    late.wait_for(b"last of all")
    for client in (spy, late):
        assert [message for message in client.messages if "/nuc" not in message[0]] == []
        assert client.topics() <= {topic(TopicName.ACK, "nuc"), topic(TopicName.REPLY, "nuc")}
    for name, row in TOPICS.items():
        if row.retained:
            by[row.writer].publish(topic(name, "pi"), b"", 1, retained=True)
    for client in (late, victim, server, hub):
        client.close()


def test_a_device_writes_nothing_that_is_not_its_own(broker: TlsBroker) -> None:
    filters = [(topics.filter_for(FLEET, name), 1) for name, row in TOPICS.items() if row.writer is Role.DEVICE]
    server, victim = (
        broker.client(SERVER_USER, filters),
        broker.client("pi", topics.filters_read_by(Role.DEVICE, FLEET, "pi")),
    )
    attacker = broker.client("nuc")
    for name, row in TOPICS.items():
        for target in ("pi", "edgefleet-server"):
            attacker.publish(topic(name, target), b"forged", 1, retained=row.retained)
        if row.writer is not Role.DEVICE:
            attacker.publish(topic(name, "nuc"), b"forged", 1, retained=row.retained)
    attacker.publish(topic(TopicName.EVENTS, "nuc"), b"last")
    server.wait_for(b"last")
    server.publish(topic(TopicName.ACK, "pi"), b"last")
    victim.wait_for(b"last")
    assert [message[1] for message in server.messages + victim.messages] == [b"last", b"last"]
    # Nor was anything retained for whoever comes next.
    next_victim = broker.client("nuc", topics.filters_read_by(Role.DEVICE, FLEET, "nuc"))
    server.publish(topic(TopicName.ACK, "nuc"), b"last")
    next_victim.wait_for(b"last")
    assert [message[1] for message in next_victim.messages] == [b"last"]
    for client in (server, victim, next_victim):
        client.close()


def test_a_will_on_anothers_topic_is_not_published(broker: TlsBroker) -> None:
    server = broker.client(SERVER_USER, [(topics.filter_for(FLEET, TopicName.ONLINE), 1)])
    for owner in ("pi", "nuc"):
        # The second takes the first one's place: its will has been published, or dropped, by then.
        broker.client("nuc", will=topic(TopicName.ONLINE, owner)).crash()
    server.wait_for(b"will")
    assert server.topics() == {topic(TopicName.ONLINE, "nuc")}
    server.close()


def test_a_hub_decides_nothing_and_reads_no_telemetry(broker: TlsBroker) -> None:
    everything = [(topics.filter_for(FLEET, name), 1) for name in OWNED]
    device = broker.client("pi", topics.filters_read_by(Role.DEVICE, FLEET, "pi"))
    hub, server = broker.client(HUB, everything), broker.client(SERVER_USER, everything)
    for name in OWNED:
        hub.publish(topic(name, "pi"), b"from a hub", 1)
    for name, row in OWNED.items():
        if row.writer is Role.DEVICE:
            device.publish(topic(name, "pi"), b"from a device", 1)
    device.publish(topic(TopicName.REQUEST, "pi"), b"last")
    hub.wait_for(b"last")
    server.publish(topic(TopicName.ACK, "pi"), b"last")
    device.wait_for(b"last")
    assert hub.topics() == {topic(TopicName.REQUEST, "pi")}
    by_hub = {name for name, row in OWNED.items() if row.writer is Role.HUB}
    assert device.topics() == {topic(name, "pi") for name in by_hub | {TopicName.ACK}}
    assert not any(payload == b"from a hub" for _, payload, _ in server.messages)
    for client in (device, hub, server):
        client.close()


# Whose name it is --------------------------------------------------------------------------------------


def test_client_id_and_user_name_are_the_certificates(broker: TlsBroker) -> None:
    """Nobody is evicted by a stolen client id, and a user name that a client gives itself is worth nothing."""
    online = [(topics.filter_for(FLEET, TopicName.STATE), 1)]
    server, victim = broker.client(SERVER_USER, online), broker.client("pi", [(topic(TopicName.ACK, "pi"), 1)])
    thieves = (
        {"client_id": "pi"},
        {"client_id": SERVER_USER},
        {"user": "pi"},
        {"client_id": "pi", "user": SERVER_USER},
    )
    for number, forged in enumerate(thieves):
        thief = broker.client("nuc", [(topic(TopicName.ACK, "pi"), 1)], **forged)
        thief.publish(topic(TopicName.STATE, "pi"), b"forged")
        thief.publish(topic(TopicName.STATE, "nuc"), b"by %d" % number)
        server.wait_for(b"by %d" % number)
        server.publish(topic(TopicName.ACK, "pi"), b"to %d" % number)
        victim.wait_for(b"to %d" % number)
        assert thief.messages == []
        thief.close()
    assert (victim.lost, server.lost) == (0, 0)
    assert server.topics() == {topic(TopicName.STATE, "nuc")}
    for client in (server, victim):
        client.close()


def test_the_same_identity_twice_evicts_the_first(broker: TlsBroker) -> None:
    first = broker.client("pi")
    second = broker.client("pi")
    wait(lambda: first.lost == 1, "the first is put off")
    second.close()


# Removal -----------------------------------------------------------------------------------------------


def test_a_removed_device_is_put_off_and_stays_out(broker: TlsBroker) -> None:
    """On a client that is connected, with a TLS session to resume, a will, and all its topics retained."""
    broker.enroll("leaver")
    context = broker.context("leaver")
    session = knock(broker.port, context)
    device = broker.client("leaver", will=topic(TopicName.ONLINE, "leaver"))
    bystander, server = broker.client("pi"), broker.client(SERVER_USER)
    for name, row in TOPICS.items():
        if row.retained:
            {Role.DEVICE: device, Role.SERVER: server}[row.writer].publish(
                topic(name, "leaver"), b"x", 1, retained=True
            )

    assert removal.remove(broker.data, broker.store, "leaver", broker.address, tls=True, now=time.time()) is None

    wait(lambda: device.lost == 1, "the open session is closed")
    for again in (None, session):
        with pytest.raises(PermissionError, match="certificate revoked"):
            knock(broker.port, context, again)
    reader = broker.client(SERVER_USER, [(topics.filter_for(FLEET, name, "leaver"), 1) for name in TopicName])
    bystander.publish(topic(TopicName.EVENTS, "pi"), b"x")
    assert [message for message in reader.messages if message[2] and message[1]] == []
    assert bystander.lost == 0
    left = broker.store.enrolment("leaver")
    assert left is not None
    assert left.revoked_at is not None
    for client in (bystander, reader):
        client.close()


def test_a_removal_is_repeated_and_a_device_enrolled_again_gets_in(broker: TlsBroker) -> None:
    broker.enroll("returner")
    before = broker.context("returner")
    for _ in range(2):
        assert removal.remove(broker.data, broker.store, "returner", broker.address, tls=True, now=time.time()) is None
    with pytest.raises(PermissionError, match="certificate revoked"):
        knock(broker.port, before)
    broker.enroll("returner")
    knock(broker.port, broker.context("returner"))
    with pytest.raises(PermissionError, match="certificate revoked"):
        knock(broker.port, before)


def test_both_certificates_of_a_renewed_device_are_revoked(broker: TlsBroker, tmp_path: Path) -> None:
    enrolled = broker.enroll("renewer")
    key, csr = make_key_and_csr("renewer")
    chain = pki.issue_device(broker.data, csr, FLEET, "renewer", enrolled.enrolment_id, time.time())
    contexts = (broker.context("renewer"), broker.context_of(*write_pair(tmp_path / "renewed", key, chain)))
    for context in contexts:
        knock(broker.port, context)
    assert removal.remove(broker.data, broker.store, "renewer", broker.address, tls=True, now=time.time()) is None
    for context in contexts:
        with pytest.raises(PermissionError, match="certificate revoked"):
            knock(broker.port, context)


def test_the_act_of_removal_leaves_no_way_in(broker: TlsBroker) -> None:
    """The certificate that clears topics may write retained topics only, and no device may have its name."""
    with pytest.raises(InputError, match="edgefleet-"):
        broker.enroll(REMOVAL_USER)


# The broker's own files --------------------------------------------------------------------------------


def test_a_renewed_certificate_of_the_broker_is_served_after_a_reload(broker: TlsBroker) -> None:
    def served() -> str:
        plain = socket.create_connection(("127.0.0.1", broker.port))
        with plain, broker.context("nuc").wrap_socket(plain, server_hostname="localhost") as channel:
            return str((channel.getpeercert() or {})["serialNumber"])

    bystander, before = broker.client("pi"), served()
    pki.ensure_service(broker.data, pki.BROKER, time.time(), ["localhost", "127.0.0.1", "broker.lan"])
    assert broker_files.refresh(broker.data, time.time()) is None
    wait(lambda: served() != before, "the new certificate")
    bystander.publish(topic(TopicName.EVENTS, "pi"), b"still here")
    assert bystander.lost == 0
    bystander.close()


def test_a_broker_that_cannot_be_told_is_named_and_the_device_is_put_off_all_the_same(broker: TlsBroker) -> None:
    broker.enroll("outcast")
    device = broker.client("outcast")
    control = broker.data / broker_files.CONTROL_FILE
    aside = control.rename(control.with_suffix(".aside"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(removal, "RELOADS_WITHIN_S", 0.2)
        undone = removal.remove(broker.data, broker.store, "outcast", broker.address, tls=True, now=time.time())
    aside.rename(control)
    assert undone is not None
    assert "crl.pem" in undone
    wait(lambda: device.lost == 1, "the open session is closed")
    assert removal.remove(broker.data, broker.store, "outcast", broker.address, tls=True, now=time.time()) is None
    with pytest.raises(PermissionError, match="certificate revoked"):
        knock(broker.port, broker.context("outcast"))


def test_a_broker_that_is_away_leaves_a_removal_to_be_repeated(broker: TlsBroker) -> None:
    broker.enroll("orphan")
    nowhere = BrokerAddress("127.0.0.1", free_port())
    with pytest.raises(TransportError, match="connecting to the MQTT broker"):
        removal.remove(broker.data, broker.store, "orphan", nowhere, tls=True, now=time.time())
    left = broker.store.enrolment("orphan")
    assert left is not None
    assert left.revoked_at is not None
    assert removal.remove(broker.data, broker.store, "orphan", broker.address, tls=True, now=time.time()) is None


def test_a_device_that_never_was_cannot_be_removed(broker: TlsBroker) -> None:
    with pytest.raises(InputError, match="not enrolled"):
        removal.remove(broker.data, broker.store, "nobody", broker.address, tls=True, now=time.time())


def test_with_a_new_issuing_authority_the_old_ones_certificates_are_worth_nothing(
    tmp_path: Path, need: Callable[[bool, str], None]
) -> None:
    running = start_broker(tmp_path / "fleet")
    need(running is not None, "mosquitto (a system package)")
    assert running is not None
    running.enroll("pi")
    stolen, before = _issuer(running), running.context("pi")
    knock(running.port, before)
    pki.replace_issuing(tmp_path / "fleet" / "keys", running.data, FLEET, now=time.time())
    assert removal.tell_broker(running.data, running.address, now=time.time()) is None
    key, csr = make_key_and_csr("pi")
    certificate = device_certificate(
        stolen, x509.load_pem_x509_csr(csr), fleet=FLEET, device="pi", enrolment_id="0" * 16,
        not_after=time.time() + 86400,
    )  # fmt: skip
    forged = running.context_of(*write_pair(tmp_path / "forged", key, to_pem(certificate, stolen.certificate)))
    for context in (before, forged):
        with pytest.raises(PermissionError, match="unknown ca"):
            knock(running.port, context)
    running.enroll("pi")
    for name in ("pi", SERVER_USER, HUB):
        knock(running.port, running.context(name))
    running.stop()
