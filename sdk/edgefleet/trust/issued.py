"""The list of certificates that were issued, one JSON line each, and the list of those that are revoked (the CRL).

It decides on no certificate. A device may hold two at a time, the old one and its renewal: revoking it means both.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from pydantic import BaseModel, ConfigDict, ValidationError

from edgefleet.durable import write_file
from edgefleet.trust.certificates import NOT_BEFORE, Authority
from edgefleet.trust.pki_folder import read

ISSUED_FILE = "issued.jsonl"
CRL_FILE = "crl.pem"
# Longer than any certificate lives: what ended that long ago needs no line in the list (RFC 5280, section 3.3).
FORGET_AFTER_S = 3 * 365 * 86400.0


class Issued(BaseModel):
    """One certificate that was issued."""

    model_config = ConfigDict(frozen=True)

    name: str
    """Its common name."""
    serial_number: str
    """Hexadecimal."""
    enrolment_id: str
    """Empty for the server's own."""
    issued_at: float
    not_after: float


def record(folder: Path, entry: Issued) -> None:
    """Append to the list, on disk before the certificate is handed out: what is not listed cannot be revoked."""
    descriptor = os.open(folder / ISSUED_FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "r+b") as stream:
        # A power cut in the middle of a line must not swallow the next one.
        end = stream.seek(0, os.SEEK_END)
        torn = end > 0 and os.pread(stream.fileno(), 1, end - 1) != b"\n"
        stream.write((b"\n" if torn else b"") + entry.model_dump_json().encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def issued(folder: Path, name: str | None = None) -> list[Issued]:
    """Everything that was issued, or all of one name, oldest first."""
    try:
        lines = (folder / ISSUED_FILE).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    entries = []
    for line in lines:
        try:
            entries.append(Issued.model_validate_json(line))
        except ValidationError:
            # A line that a power cut tore: its certificate was never handed out.
            continue
    return [entry for entry in entries if name is None or entry.name == name]


def write_crl(folder: Path, authority: Authority, serial_numbers: list[str], now: float) -> None:
    """Add certificates to the revocation list of `authority` and replace the file.

    It is valid for as long as its authority: a broker refuses everybody once the list has expired, and each
    revocation makes a new one anyway. It begins in 2020, for brokers whose clock is not set.
    """
    old = _read(folder, authority)
    builder = x509.CertificateRevocationListBuilder(
        issuer_name=authority.certificate.subject,
        last_update=NOT_BEFORE,
        next_update=authority.certificate.not_valid_after_utc,
    )
    kept = {entry.serial_number: entry.revocation_date_utc for entry in old or ()}
    moment = datetime.fromtimestamp(int(now), UTC)
    revoked = {int(number, 16): moment for number in serial_numbers} | kept
    for number, at in revoked.items():
        if now - at.timestamp() < FORGET_AFTER_S:
            entry = x509.RevokedCertificateBuilder(serial_number=number, revocation_date=at).build()
            builder = builder.add_revoked_certificate(entry)
    above = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = builder.add_extension(above, critical=False)
    builder = builder.add_extension(x509.CRLNumber(_number(old) + 1), critical=False)
    crl = builder.sign(authority.key, hashes.SHA256())
    write_file(folder / CRL_FILE, crl.public_bytes(serialization.Encoding.PEM))


def revoked_numbers(folder: Path) -> set[str]:
    """Serial numbers (hexadecimal) that the list holds."""
    crl = read(folder / CRL_FILE, x509.load_pem_x509_crl)
    return {f"{entry.serial_number:x}" for entry in crl}


def crl_end(folder: Path) -> float:
    """When the revocation list expires, seconds since 1970."""
    end = read(folder / CRL_FILE, x509.load_pem_x509_crl).next_update_utc
    return end.timestamp() if end else float("inf")


def _read(folder: Path, authority: Authority) -> x509.CertificateRevocationList | None:
    """The list so far; one that another authority signed is not continued."""
    if not (folder / CRL_FILE).exists():
        return None
    crl = read(folder / CRL_FILE, x509.load_pem_x509_crl)
    return crl if crl.is_signature_valid(authority.key.public_key()) else None


def _number(crl: x509.CertificateRevocationList | None) -> int:
    return 0 if crl is None else crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
