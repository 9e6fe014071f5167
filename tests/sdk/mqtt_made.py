"""Brokers and certificates for the tests of the broker connection: mosquitto on a free loopback port.

The certificates are made here, by hand: the connection knows nothing of how a fleet makes its own.
"""

from __future__ import annotations

import getpass
import ipaddress
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgefleet.mqtt import BrokerAddress, Connection, Identity, Outgoing, Tls
from patience import PATIENCE_S

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
START, END = datetime(2020, 1, 1, tzinfo=UTC), datetime(2060, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate and the key that signs with it."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


class Certificates:
    """A root, an issuing authority below it, and leaves in one folder."""

    def __init__(self, folder: Path, name: str = "fleet") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.root = _certificate(f"{name} root", None, hosts=None)
        self.issuing = _certificate(f"{name} issuing", self.root, hosts=None)
        self.ca_file = self._write("ca.crt", _pem(self.root))
        self.chain_file = self._write("ca-chain.crt", _pem(self.issuing, self.root))

    def leaf(
        self, name: str, *, hosts: tuple[str, ...] = (), start: datetime = START, end: datetime = END, file: str = ""
    ) -> Tls:
        """Write a leaf's chain and key; the name of the files is the leaf's unless `file` is given."""
        made = _certificate(name, self.issuing, hosts=hosts, start=start, end=end)
        key = made.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        base = file or name
        return Tls(
            self.ca_file,
            self._write(f"{base}.crt", _pem(made, self.issuing)),
            self._write(f"{base}.key", key),
        )

    def revoke(self, *leaves: Tls, until: datetime = END) -> Path:
        """Write the revocation lists of both authorities."""
        lists = b""
        for authority in (self.root, self.issuing):
            builder = x509.CertificateRevocationListBuilder(authority.certificate.subject, START, until)
            for leaf in leaves if authority is self.issuing else ():
                serial = x509.load_pem_x509_certificate(leaf.certificate_file.read_bytes()).serial_number
                revoked = x509.RevokedCertificateBuilder(serial, START).build()
                builder = builder.add_revoked_certificate(revoked)
            lists += builder.sign(authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        return self._write("crl.pem", lists)

    def _write(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        path.chmod(0o644)
        return path


def _pem(*made: Authority) -> bytes:
    return b"".join(each.certificate.public_bytes(serialization.Encoding.PEM) for each in made)


def _certificate(
    name: str,
    issuer: Authority | None,
    *,
    hosts: tuple[str, ...] | None,
    start: datetime = START,
    end: datetime = END,
) -> Authority:
    """An authority when `hosts` is None, else a leaf."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=hosts is None, path_length=None), critical=True)
    )
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([_name(host) for host in hosts]), critical=False)
    return Authority(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def tls_lines(broker: Tls, chain_file: Path, crl_file: Path | None = None) -> list[str]:
    """The lines for a listener that wants client certificates."""
    lines = [f"cafile {chain_file}", f"certfile {broker.certificate_file}", f"keyfile {broker.key_file}"]
    lines += ["require_certificate true", "use_identity_as_username true"]
    return [*lines, f"crlfile {crl_file}"] if crl_file else lines


@contextmanager
def mosquitto(folder: Path, *lines: str, port: int | None = None) -> Iterator[BrokerAddress]:
    """Run mosquitto with these further lines of configuration; what it says is in `folder`/mosquitto.log."""
    assert MOSQUITTO is not None
    port = port or free_port()
    general = ["allow_anonymous true", "persistence false", "set_tcp_nodelay true", f"user {getpass.getuser()}"]
    configuration = folder / "mosquitto.conf"
    configuration.write_text("\n".join([*general, f"listener {port} 127.0.0.1", *lines, ""]))
    with (folder / "mosquitto.log").open("ab") as log:
        process = subprocess.Popen([MOSQUITTO, "-c", str(configuration)], stdout=log, stderr=log)
        try:
            wait_for(lambda: _listens(port) or process.poll() is not None)
            assert process.poll() is None, (folder / "mosquitto.log").read_text()
            yield BrokerAddress("127.0.0.1", port)
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition: Callable[[], bool]) -> None:
    """Look again and again, for PATIENCE_S at most."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


class Party:
    """A connection that notes all that happens to it."""

    def __init__(
        self,
        address: BrokerAddress,
        name: str = "pi",
        filters: tuple[tuple[str, int], ...] = (),
        *,
        tls: Tls | None = None,
        clean_session: bool = True,
        keepalive_s: int = 30,
        will: Outgoing | None = None,
    ) -> None:
        self.came: list[tuple[str, bytes, bool]] = []
        self.lost: list[bool] = []
        self.welcomed = 0
        self.connection = Connection(
            address,
            Identity(name, name),
            filters,
            on_message=self.receive,
            on_connected=self.welcome,
            on_lost=self.lost.append,
            will=lambda: will,
            tls=tls,
            clean_session=clean_session,
            keepalive_s=keepalive_s,
        )

    def receive(self, topic: str, payload: bytes, retained: bool) -> None:
        self.came.append((topic, payload, retained))

    def welcome(self) -> None:
        self.welcomed += 1

    def until(self, condition: Callable[[], bool], *others: Party) -> None:
        """Serve this party and `others` until `condition`, for PATIENCE_S at most."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain: {self.connection.last_failure}"
            for party in (self, *others):
                party.connection.poll(0.002 if others else 0.02)

    def connect(self) -> Party:
        self.connection.connect_now(PATIENCE_S)
        return self

    def publish(self, topic: str, payload: bytes, qos: int = 0, *, retained: bool = False) -> bool:
        return self.connection.publish(Outgoing(topic, payload, qos, retained))
