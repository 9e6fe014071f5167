"""X.509 as this fleet uses it: keys, signing requests, and what each kind of certificate says.

It touches no file and decides on nobody: who gets a certificate is the business of `pki` and `enrolment`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgefleet.errors import InputError, TrustError

# A board without a clock starts in 1970 or at its last shutdown: what begins in 2020 holds before the clock is set.
NOT_BEFORE = datetime(2020, 1, 1, tzinfo=UTC)
IDENTITY_URI = re.compile(r"urn:edgefleet:(?P<fleet>[a-z0-9-]+):(?P<device>[a-z0-9-]+):(?P<enrolment_id>[0-9a-f]+)")

PrivateKey = ec.EllipticCurvePrivateKey
_CLIENT = (ExtendedKeyUsageOID.CLIENT_AUTH,)
_SERVER = (ExtendedKeyUsageOID.SERVER_AUTH,)


@dataclass(frozen=True, slots=True)
class Authority:
    """Something that signs certificates."""

    certificate: x509.Certificate
    key: PrivateKey


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """What a certificate says; `fleet`, `device` and `enrolment_id` are None where it is not a device's."""

    common_name: str
    serial_number: str
    """Hexadecimal."""
    not_after: float
    """Seconds since 1970."""
    fleet: str | None
    device: str | None
    enrolment_id: str | None


def make_key() -> PrivateKey:
    """A private key on P-256, which every broker and board takes."""
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: PrivateKey, passphrase: bytes | None = None) -> bytes:
    """PKCS #8, encrypted where there is a passphrase."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        encryption = serialization.BestAvailableEncryption(passphrase)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def key_from_pem(pem: bytes, passphrase: bytes | None = None) -> PrivateKey:
    """Read a key that `key_to_pem` wrote; raises TrustError."""
    doing = "reading the private key of a certificate authority"
    try:
        key = serialization.load_pem_private_key(pem, passphrase)
    except (TypeError, ValueError) as error:
        if b"ENCRYPTED" in pem:
            found, remedy = "its passphrase is missing or wrong", "give the passphrase that it was made with"
        else:
            found, remedy = "it is no PEM private key", "restore it from a backup"
        raise TrustError(doing, found, remedy) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TrustError(doing, "it is not a key on an elliptic curve", "use the key that this fleet was made with")
    return key


def to_pem(*certificates: x509.Certificate) -> bytes:
    """Certificates one behind the other."""
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates)


# Authorities -------------------------------------------------------------------------------------------


def root_certificate(fleet: str, not_after: float) -> Authority:
    """A root authority that may sign issuing authorities and nothing below them (RFC 5280, section 4.2.1.9)."""
    key = make_key()
    name = _name("edgefleet root authority", fleet)
    # Nothing but an issuing authority stands between it and a leaf.
    return Authority(_authority(name, name, key, key, not_after, 1), key)


def issuing_certificate(root: Authority, fleet: str, number: int, not_after: float) -> Authority:
    """An issuing authority: it signs leaves and their revocation list, and no further authority."""
    key = make_key()
    name = _name(f"edgefleet issuing authority {number}", fleet)
    return Authority(_authority(name, root.certificate.subject, key, root.key, not_after, 0), key)


def _authority(
    name: x509.Name, issuer: x509.Name, key: PrivateKey, signer: PrivateKey, not_after: float, path_length: int
) -> x509.Certificate:
    builder = _builder(name, issuer, key.public_key(), signer, not_after)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
    return builder.sign(signer, hashes.SHA256())


# Leaves ------------------------------------------------------------------------------------------------


def device_certificate(
    issuer: Authority, csr: x509.CertificateSigningRequest, *, fleet: str, device: str, enrolment_id: str,
    not_after: float,
) -> x509.Certificate:  # fmt: skip
    """A device's certificate: good for being a client, never for being a broker or a server."""
    names = [x509.UniformResourceIdentifier(f"urn:edgefleet:{fleet}:{device}:{enrolment_id}")]
    return _leaf(issuer, csr.public_key(), device, names, _CLIENT, not_after)


def service_certificate(
    issuer: Authority, key: PrivateKey, name: str, hosts: Sequence[str], not_after: float
) -> x509.Certificate:
    """A certificate of the server's own: the broker is a server only, a hub a client only, the server both.

    It is a TLS server for `hosts` where there are any, and a client of the name `name` unless that is the broker.
    """
    usages = (*(_SERVER if hosts else ()), *(() if name == "broker" else _CLIENT))
    names: list[x509.GeneralName] = [host_name(host) for host in hosts]
    return _leaf(issuer, key.public_key(), name, names, usages, not_after)


def host_name(host: str) -> x509.GeneralName:
    """A host as it stands in a certificate; raises InputError."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not re.fullmatch(r"(?!.*\.\.)[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", host):
        raise InputError(
            f"reading the host {host!r}", "it is neither a host name nor an IP address", "write it as devices will"
        )
    return x509.DNSName(host)


def _leaf(
    issuer: Authority, public_key: CertificatePublicKeyTypes, name: str, names: Sequence[x509.GeneralName],
    usages: Sequence[x509.ObjectIdentifier], not_after: float,
) -> x509.Certificate:  # fmt: skip
    builder = _builder(_name(name), issuer.certificate.subject, public_key, issuer.key, not_after)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage(list(usages)), critical=False)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(list(names)), critical=False)
    return builder.sign(issuer.key, hashes.SHA256())


# Signing requests --------------------------------------------------------------------------------------


def make_key_and_csr(device: str) -> tuple[bytes, bytes]:
    """(private key, signing request) of a device, both PEM: made where the key shall stay."""
    key = make_key()
    request = x509.CertificateSigningRequestBuilder().subject_name(_name(device)).sign(key, hashes.SHA256())
    return key_to_pem(key), request.public_bytes(serialization.Encoding.PEM)


def check_csr(csr_pem: bytes, device: str) -> x509.CertificateSigningRequest:
    """Read a signing request and check name, signature and kind of key; raises TrustError.

    Extensions that it asks for are ignored: the authority alone says what a certificate may do.
    """
    doing = f"reading the signing request of {device}"
    again = f"make one with: edgefleet enroll --make-csr {device}"
    try:
        csr = x509.load_pem_x509_csr(csr_pem)
        names = [attribute.value for attribute in csr.subject]
        sound = csr.is_signature_valid
        key = csr.public_key()
    except Exception as error:
        raise TrustError(doing, f"it is not a readable signing request ({error})", again) from error
    if not sound:
        raise TrustError(doing, "it is not signed by the key that it names", again)
    if names != [device]:
        raise TrustError(doing, f"it is for {' '.join(map(str, names)) or 'nobody'!r}", again)
    curve = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1)
    if not curve and not (isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048):
        raise TrustError(doing, "its key is neither on P-256 or P-384 nor RSA of 2048 bits or more", again)
    return csr


def same_key(key_pem: bytes, csr_pem: bytes) -> bool:
    """Whether a private key is that of a signing request."""
    try:
        key = serialization.load_pem_private_key(key_pem, None)
        return key.public_key() == x509.load_pem_x509_csr(csr_pem).public_key()
    except (TypeError, ValueError, UnsupportedAlgorithm):
        return False


def read_certificate(pem: bytes) -> CertificateFacts:
    """What the first certificate of a chain says; raises TrustError. Its signature is not checked here."""
    try:
        certificate = x509.load_pem_x509_certificates(pem)[0]
        (common_name,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        found = IDENTITY_URI.fullmatch(" ".join(_alternative_names(certificate, x509.UniformResourceIdentifier)))
    except (ValueError, IndexError) as error:
        raise TrustError("reading a certificate", f"it is not one ({error})", "ask for a new one") from error
    fields = found.groupdict() if found else {}
    return CertificateFacts(
        common_name=str(common_name.value),
        serial_number=f"{certificate.serial_number:x}",
        not_after=certificate.not_valid_after_utc.timestamp(),
        fleet=fields.get("fleet"),
        device=fields.get("device"),
        enrolment_id=fields.get("enrolment_id"),
    )


def hosts_of(certificate: x509.Certificate) -> list[str]:
    """Host names and addresses that a certificate is a server for."""
    return [*_alternative_names(certificate, x509.DNSName), *_alternative_names(certificate, x509.IPAddress)]


def _alternative_names(certificate: x509.Certificate, kind: type[x509.GeneralName]) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in names if isinstance(name, kind)]


# What all have in common -------------------------------------------------------------------------------


def _name(common_name: str, fleet: str | None = None) -> x509.Name:
    organization = [] if fleet is None else [x509.NameAttribute(NameOID.ORGANIZATION_NAME, fleet)]
    return x509.Name([*organization, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    name: x509.Name, issuer: x509.Name, public_key: CertificatePublicKeyTypes, signer: PrivateKey, not_after: float
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=name,
        public_key=public_key,
        serial_number=x509.random_serial_number(),
        not_valid_before=NOT_BEFORE,
        not_valid_after=datetime.fromtimestamp(int(not_after), UTC),
    )
    own = x509.SubjectKeyIdentifier.from_public_key(public_key)
    above = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    return builder.add_extension(own, critical=False).add_extension(above, critical=False)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
