"""A device's identity folder, as the agent reads it: who it is, where its broker is, and which files prove it.

It verifies nothing and makes no key; it is light enough for the agent's main process.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgefleet.durable import write_private
from edgefleet.errors import InputError, short_line
from edgefleet.protocol.record import Name

IDENTITY_FILE = "identity.json"
KEY_FILE = "device.key"
CERTIFICATE_FILE = "device.crt"
RENEWED_FILE = "renewed.pem"
"""Key and chain of a renewal in one file: one rename replaces both, so that no crash leaves a key without its
certificate.
"""
CA_FILE = "ca.crt"
ROOT_FILE = "root.json"
RENEW_BEFORE_S = 60 * 86400.0


class BrokerEntry(BaseModel):
    """Where the fleet's broker listens, and whether it wants certificates (without them: loopback only)."""

    model_config = ConfigDict(frozen=True)

    host: str = Field(min_length=1)
    port: int = Field(ge=1, le=65535)
    tls: bool


class IdentityEntry(BaseModel):
    """Content of `identity.json`."""

    model_config = ConfigDict(frozen=True)

    fleet: Name
    device: Name
    enrolment_id: str = Field(pattern=r"^[0-9a-f]{8,64}$")
    broker: BrokerEntry


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """One device of one fleet. Files are looked up at each use: a renewal replaces them while the agent runs."""

    fleet: str
    device: str
    enrolment_id: str
    host: str
    port: int
    tls: bool
    folder: Path

    @property
    def key_file(self) -> Path:
        """The private key, PEM."""
        renewed = self.folder / RENEWED_FILE
        return renewed if renewed.exists() else self.folder / KEY_FILE

    @property
    def certificate_file(self) -> Path:
        """The device's certificate and that of its issuer, PEM."""
        renewed = self.folder / RENEWED_FILE
        return renewed if renewed.exists() else self.folder / CERTIFICATE_FILE

    @property
    def ca_file(self) -> Path:
        """The fleet's root authority, PEM."""
        return self.folder / CA_FILE

    @property
    def root_file(self) -> Path:
        """The TUF root to start from."""
        return self.folder / ROOT_FILE

    @property
    def not_after(self) -> float:
        """End of the certificate, seconds since 1970; raises InputError where there is none."""
        doing = f"reading the certificate {self.certificate_file}"
        try:
            return certificate_end(self.certificate_file.read_text(encoding="ascii"))
        except FileNotFoundError as error:
            raise InputError(doing, "there is none", "enrol this device: edgefleet enroll") from error
        except (OSError, ValueError, IndexError) as error:
            raise InputError(doing, f"it is not readable ({error})", "enrol this device again") from error


def load(folder: Path) -> DeviceIdentity:
    """Read an identity folder; raises InputError. Whether its certificate still holds is for the broker to say."""
    path = folder / IDENTITY_FILE
    doing = f"reading the device's identity {path}"
    try:
        entry = IdentityEntry.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(
            doing, "there is none", "make one with edgefleet enroll, and name its folder as `identity`"
        ) from error
    except OSError as error:
        raise InputError(doing, error.strerror or str(error), "let the agent's user read it") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(doing, short_line(f"{where}: {first['msg']}"), "enrol this device again") from error
    identity = DeviceIdentity(
        fleet=entry.fleet,
        device=entry.device,
        enrolment_id=entry.enrolment_id,
        host=entry.broker.host,
        port=entry.broker.port,
        tls=entry.broker.tls,
        folder=folder,
    )
    _check_files(identity, doing)
    return identity


def _check_files(identity: DeviceIdentity, doing: str) -> None:
    needed = [identity.root_file]
    if identity.tls:
        needed += [identity.key_file, identity.certificate_file, identity.ca_file]
    missing = [path.name for path in needed if not path.is_file()]
    if missing:
        remedy = "bring all files of the folder that edgefleet enroll wrote"
        raise InputError(doing, f"{', '.join(missing)} is not beside it", remedy)


def needs_renewal(not_after: float, now: float) -> bool:
    """Whether a certificate that ends at `not_after` is to be renewed: from 60 days before its end (Unix times)."""
    return now >= not_after - RENEW_BEFORE_S


def write_renewed(identity: DeviceIdentity, key_pem: bytes, chain_pem: bytes) -> None:
    """Replace key and certificate, both or none even in a power cut; raises OSError. The caller has verified them."""
    write_private(identity.folder / RENEWED_FILE, key_pem.rstrip() + b"\n" + chain_pem)


def certificate_end(pem: str) -> float:
    """`notAfter` of the first certificate in a PEM text, seconds since 1970 (RFC 5280, section 4.1); ValueError."""
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    head, _, rest = pem.partition(begin)
    body, found, _ = rest.partition(end)
    if not found:
        raise ValueError(f"no certificate in {len(head)} characters")
    to_be_signed = _items(_items(ssl.PEM_cert_to_DER_cert(f"{begin}{body}{end}"))[0][1])[0][1]
    fields = _items(to_be_signed)
    # [0] version, serial number, algorithm, issuer, validity
    tag, content = _items(fields[4][1])[1]
    text = content.decode("ascii")
    # UTCTime has two digits of the year, and 50 and above are the last century.
    century = "" if tag == 0x18 else ("19" if text[:2] >= "50" else "20")
    return datetime.strptime(century + text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


def _items(der: bytes) -> list[tuple[int, bytes]]:
    """(tag, content) of the values that stand behind each other in DER; ValueError where they are cut off."""
    items, at = [], 0
    while at < len(der):
        tag, length, start = der[at], der[at + 1], at + 2
        if length & 0x80:
            octets = length & 0x7F
            length, start = int.from_bytes(der[start : start + octets]), start + octets
        if start + length > len(der):
            raise ValueError("the certificate is cut off")
        items.append((tag, der[start : start + length]))
        at = start + length
    return items
