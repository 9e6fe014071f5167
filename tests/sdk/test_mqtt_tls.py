"""TLS with client certificates on a real mosquitto: who is let in, and the one line that says why not."""

from __future__ import annotations

import dataclasses
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from edgefleet.errors import TransportError
from edgefleet.mqtt import BrokerAddress, Tls
from edgefleet.mqtt.tls_failures import validity
from patience import PATIENCE_S
from sdk.mqtt_made import MOSQUITTO, Certificates, Party, mosquitto, tls_lines, wait_for

pytestmark = pytest.mark.service

HOSTS = ("localhost", "127.0.0.1")
YEAR_2025, YEAR_2027 = datetime(2025, 1, 1, tzinfo=UTC), datetime(2027, 11, 21, tzinfo=UTC)
YEAR_2050 = datetime(2050, 1, 1, tzinfo=UTC)
CHILD = """
import sys
from pathlib import Path
from edgefleet.errors import TransportError
from edgefleet.mqtt import BrokerAddress, Connection, Identity, Tls
connection = Connection(BrokerAddress("127.0.0.1", int(sys.argv[1])), Identity("pi", "pi"), [],
    on_message=lambda *_: None, on_connected=lambda: None, tls=Tls(*map(Path, sys.argv[2:])))
try:
    connection.connect_now(20.0)
    print("connected")
except TransportError as error:
    print(error)
"""


@pytest.fixture(autouse=True)
def _services(need: Callable[[bool, str], None]) -> None:
    need(MOSQUITTO is not None, "mosquitto (a system package)")
    need(shutil.which("faketime") is not None, "faketime (a system package)")


@pytest.fixture(name="fleet", scope="module")
def _fleet(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("fleet"))


@pytest.fixture(name="revoked", scope="module")
def _revoked(fleet: Certificates) -> Tls:
    return fleet.leaf("revoked")


@pytest.fixture(name="broker", params=["1.3", "1.2"])
def _broker(
    request: pytest.FixtureRequest, fleet: Certificates, revoked: Tls, tmp_path: Path
) -> Iterator[BrokerAddress]:
    lines = tls_lines(fleet.leaf("broker", hosts=HOSTS), fleet.chain_file, fleet.revoke(revoked))
    with mosquitto(tmp_path, *lines, f"tls_version tlsv{request.param}") as address:
        yield address


def refusal(address: BrokerAddress, tls: Tls | None) -> str:
    with pytest.raises(TransportError) as caught:
        Party(address, tls=tls).connect()
    assert len(str(caught.value).splitlines()) == 1
    return caught.value.found


def at(clock: str, address: BrokerAddress, tls: Tls) -> str:
    command = [sys.executable, "-c", CHILD, str(address.port)]
    files = [str(tls.ca_file), str(tls.certificate_file), str(tls.key_file)]
    done = subprocess.run(
        ["faketime", clock, *command, *files], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    return done.stdout.strip()


def test_the_name_in_the_certificate_is_let_in(broker: BrokerAddress, fleet: Certificates) -> None:
    pi = fleet.leaf("pi")
    for host in HOSTS:
        party = Party(BrokerAddress(host, broker.port), tls=pi, filters=(("a/#", 1),)).connect()
        party.publish("a/b", b"x" * 61_440)
        party.publish("a/b", b"y" * 200_000, 1)
        party.until(lambda party=party: len(party.came) == 2)  # type: ignore[misc]
        assert [(len(payload), payload[:1]) for _, payload, _ in party.came] == [(61_440, b"x"), (200_000, b"y")]
        party.connection.close()


def test_what_was_published_right_before_closing_arrives(broker: BrokerAddress, fleet: Certificates) -> None:
    """A broker that cannot write its PUBACKs any more drops what it has not read yet."""
    watcher = Party(broker, tls=fleet.leaf("server"), name="server", filters=(("w/#", 1),)).connect()
    tls = fleet.leaf("pi")
    for turn in range(5):
        party = Party(broker, tls=tls, filters=(("a/#", 0),)).connect()
        for number in range(30):
            party.publish("a/echo", bytes(20_000))
            party.publish(f"w/{turn}", b"%d" % number, 1)
        party.connection.close()
    watcher.until(lambda: len(watcher.came) >= 150)
    assert [topic for topic, _, _ in watcher.came] == [f"w/{turn}" for turn in range(5) for _ in range(30)]
    watcher.connection.close()


def test_certificates_that_the_broker_refuses(broker: BrokerAddress, fleet: Certificates, revoked: Tls) -> None:
    """With TLS 1.3 the refusal comes after our side of the handshake is done, on the first read."""
    stranger = dataclasses.replace(
        Certificates(fleet.folder / "other", "other").leaf("stranger"), ca_file=fleet.ca_file
    )
    cases = {
        "expired": fleet.leaf("expired", end=YEAR_2025),
        "not valid yet": fleet.leaf("early", start=YEAR_2050),
        "it was revoked": revoked,
        "does not know who signed it": stranger,
    }
    for words, tls in cases.items():
        found = refusal(broker, tls)
        assert "refused this side's certificate" in found
        assert words in found


def test_brokers_that_we_refuse(broker: BrokerAddress, fleet: Certificates, tmp_path: Path) -> None:
    other = Certificates(tmp_path / "other", "other")
    pi = fleet.leaf("pi")
    assert "not signed by the certificate authority" in refusal(broker, dataclasses.replace(pi, ca_file=other.ca_file))
    away = tmp_path / "away"
    away.mkdir()
    elsewhere = fleet.leaf("elsewhere", hosts=("broker.example", "127.0.0.2"))
    with mosquitto(away, *tls_lines(elsewhere, fleet.chain_file)) as address:
        assert "not made out to the address 127.0.0.1" in refusal(address, pi)
        assert "not made out to localhost" in refusal(BrokerAddress("localhost", address.port), pi)


def test_ports_of_the_other_kind(broker: BrokerAddress, fleet: Certificates, tmp_path: Path) -> None:
    assert "it may want TLS" in refusal(broker, None)
    plain = tmp_path / "plain"
    plain.mkdir()
    with mosquitto(plain) as address:
        assert "may not speak TLS" in refusal(address, fleet.leaf("pi"))


def test_a_port_that_speaks_something_else(fleet: Certificates) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.sendall(b"220 mail.example ready\r\n")
                peer.recv(1000)

        threading.Thread(target=greet, daemon=True).start()
        assert "does not speak TLS" in refusal(BrokerAddress(*listener.getsockname()), fleet.leaf("pi"))


@pytest.mark.parametrize("clock", ["2021-01-01", "2040-01-01"])
def test_our_certificates_start_in_the_past_so_a_wrong_clock_is_no_matter(
    clock: str, fleet: Certificates, tmp_path: Path
) -> None:
    with mosquitto(tmp_path, *tls_lines(fleet.leaf("broker", hosts=HOSTS), fleet.chain_file)) as address:
        assert at(clock, address, fleet.leaf("pi")) == "connected"


def test_a_wrong_clock_is_said_with_both_dates(fleet: Certificates, tmp_path: Path) -> None:
    broker = fleet.leaf("broker", hosts=HOSTS, start=YEAR_2025, end=YEAR_2027, file="short")
    with mosquitto(tmp_path, *tls_lines(broker, fleet.chain_file)) as address:
        pi = fleet.leaf("pi")
        late, early = at("2040-01-01", address, pi), at("2021-01-01", address, pi)
    assert "by this side's clock of 2040-01-01 the broker's certificate has expired (2027-11-21): set the clock" in late
    assert (
        "by this side's clock of 2021-01-01 the broker's certificate is not valid yet (from 2025-01-01): set the clock"
        in early
    )
    assert len(late.splitlines()) == len(early.splitlines()) == 1


def test_files_that_cannot_be_used_are_named_and_read_again(fleet: Certificates, tmp_path: Path) -> None:
    """A renewed certificate counts at the next attempt, and a missing one does not end the agent."""
    good = fleet.leaf("pi")
    sources = (good.ca_file, good.certificate_file, good.key_file)
    mine = Tls(*(Path(shutil.copy(file, tmp_path)) for file in sources))
    with mosquitto(tmp_path, *tls_lines(fleet.leaf("broker", hosts=HOSTS), fleet.chain_file)) as address:
        for source in sources:
            target = tmp_path / source.name
            target.unlink()
            assert f"{target}: No such file" in refusal(address, mine)
            target.write_text("no PEM")
            assert str(target) in refusal(address, mine)
            shutil.copy(source, target)
        party = Party(address, tls=mine).connect()
        mine.key_file.unlink()
        party.connection.reconnect()
        party.until(lambda: party.connection.last_failure is not None)
        assert str(mine.key_file) in str(party.connection.last_failure)
        shutil.copy(good.key_file, mine.key_file)
        party.until(lambda: party.connection.connected)
        party.connection.close()


def test_the_dates_out_of_der(fleet: Certificates) -> None:
    """UTCTime up to 2049, GeneralizedTime from 2050 on (RFC 5280, section 4.1.2.5)."""
    for start, end in ((YEAR_2025, YEAR_2027), (YEAR_2025, YEAR_2050), (YEAR_2050, datetime(2060, 1, 1, tzinfo=UTC))):
        pem = fleet.leaf("dates", start=start, end=end).certificate_file.read_bytes()
        assert validity(x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)) == (start, end)


@pytest.mark.parametrize("data", [b"", b"\x30", b"\x30\x03\x30\x01\x02", b"\xff" * 40, b"no certificate at all"])
def test_what_is_no_certificate_has_no_dates(data: bytes) -> None:
    with pytest.raises((ValueError, IndexError)):
        validity(data)


def test_a_handshake_that_stands_still_blocks_nobody(fleet: Certificates) -> None:
    """Twenty silent peers: each poll comes back at once."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        parties = [Party(BrokerAddress(*listener.getsockname()), tls=fleet.leaf("pi")) for _ in range(20)]
        turns = 0

        def turn() -> bool:
            nonlocal turns
            turns += 1
            for party in parties:
                party.connection.poll(0.0)
            return turns > 20

        wait_for(turn)
        assert all(party.connection.last_failure is None and party.connection.fileno() >= 0 for party in parties)
        for party in parties:
            party.connection.close()
