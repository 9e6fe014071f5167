"""The fleet's certificates on disk: made once, issued to devices and to the server's own processes, revoked.

Which device may have one is decided in `enrolment`; what stands in one, in `certificates`.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from edgefleet.durable import sync_folder, write_file, write_private
from edgefleet.errors import InputError, TrustError
from edgefleet.identity import needs_renewal
from edgefleet.protocol.topics import HUB_USERS, SERVER_USER, check_name
from edgefleet.trust import certificates
from edgefleet.trust.certificates import NOT_BEFORE, Authority, make_key_and_csr, read_certificate, to_pem
from edgefleet.trust.issued import Issued, crl_end, issued, record, revoked_numbers, write_crl
from edgefleet.trust.pki_folder import (
    ISSUING_FILE,
    ISSUING_KEY_FILE,
    PKI_FOLDER,
    folder_of,
    issuer_of,
    lasting_issuer,
    locked,
    read,
)

__all__ = ["make_key_and_csr", "read_certificate"]

ROOT_KEY_FILE = "root-ca.key"
ROOT_FILE = "root-ca.crt"
CHAIN_FILE = "ca-chain.crt"
BROKER = "broker"
SERVICES = (BROKER, SERVER_USER, *HUB_USERS)
# Further hubs get theirs from `ensure_service` when they are first started.
FIRST_SERVICES = SERVICES[:3]
LOCAL_HOSTS = ("localhost", "127.0.0.1")

DAY_S = 86400.0
ROOT_LIFE_S = 20 * 365 * DAY_S
ISSUING_LIFE_S = 10 * 365 * DAY_S
SERVICE_LIFE_S = 2 * 365 * DAY_S
DEVICE_LIFE_S = 365 * DAY_S


def create_fleet_pki(
    keys_folder: Path, data: Path, fleet: str, hosts: Sequence[str] = LOCAL_HOSTS, *,
    now: float | None = None, passphrase: bytes | None = None,
) -> None:  # fmt: skip
    """Make both authorities, the server's own certificates and an empty revocation list.

    The root's key goes to `keys_folder` (encrypted where there is a passphrase), all else to DATA/pki. The folder
    appears whole or not at all. `hosts` are the names that devices reach the broker by. Raises InputError.
    """
    check_name("fleet", fleet)
    moment = _checked_time(now)
    target, key_file = data / PKI_FOLDER, keys_folder / ROOT_KEY_FILE
    doing = f"making the certificates of fleet {fleet}"
    for path in (target, key_file):
        if path.exists():
            raise InputError(doing, f"{path} is there already", "keep it, or begin with new folders")
    making = data / f".{PKI_FOLDER}.new"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True, mode=0o700)
    root = certificates.root_certificate(fleet, moment + ROOT_LIFE_S)
    write_file(making / ROOT_FILE, to_pem(root.certificate))
    _write_issuing(
        making, certificates.issuing_certificate(root, fleet, 1, moment + ISSUING_LIFE_S), root.certificate, moment
    )
    for name in FIRST_SERVICES:
        _write_service(making, name, hosts, moment)
    keys_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(key_file, certificates.key_to_pem(root.key, passphrase))
    making.rename(target)
    sync_folder(data)


def replace_issuing(keys_folder: Path, data: Path, fleet: str, *, now: float, passphrase: bytes | None = None) -> None:
    """Make a new issuing authority, after a theft of the old one's key or before its end.

    Nothing that the old one signed is accepted by a broker that has read the new files: the server's own
    certificates are made anew here, devices must be enrolled again. Raises InputError and TrustError.
    """
    folder = folder_of(data)
    with locked(folder):
        key_file = keys_folder / ROOT_KEY_FILE
        if not key_file.exists():
            raise InputError(
                "making a new issuing authority", f"{key_file} is not there", "name the operator's folder as --keys"
            )
        key = certificates.key_from_pem(key_file.read_bytes(), passphrase)
        certificate = read(folder / ROOT_FILE, x509.load_pem_x509_certificate)
        if key.public_key() != certificate.public_key():
            raise TrustError(
                "making a new issuing authority", f"{key_file} is not the key of {folder / ROOT_FILE}",
                "name the keys of this fleet",
            )  # fmt: skip
        hosts = _hosts(folder)
        number = 1 + sum(1 for _ in folder.glob("issuing-ca.*.old"))
        # A copy, and none where there is nothing: one that was cut off here is given again.
        if (folder / ISSUING_FILE).exists():
            write_file(folder / f"issuing-ca.{number}.old", (folder / ISSUING_FILE).read_bytes())
        authority = certificates.issuing_certificate(
            Authority(certificate, key), fleet, number + 1, now + ISSUING_LIFE_S
        )
        _write_issuing(folder, authority, certificate, now)
        for name in SERVICES:
            if (folder / f"{name}.crt").exists():
                _write_service(folder, name, hosts, now)


def _write_issuing(folder: Path, authority: Authority, root: x509.Certificate, now: float) -> None:
    write_private(folder / ISSUING_KEY_FILE, certificates.key_to_pem(authority.key))
    write_file(folder / ISSUING_FILE, to_pem(authority.certificate))
    write_file(folder / CHAIN_FILE, to_pem(authority.certificate, root))
    write_crl(folder, authority, [], now)


# Issuing -----------------------------------------------------------------------------------------------


def issue_device(data: Path, csr_pem: bytes, fleet: str, device: str, enrolment_id: str, now: float) -> bytes:
    """A device's certificate and its issuer's, PEM, for 365 days; raises TrustError and InputError.

    It never lasts longer than the authority.

    The certificate is on the list of issued ones, on disk, before it is returned.
    """
    check_name("device", device)
    csr = certificates.check_csr(csr_pem, device)
    end = _checked_time(now) + DEVICE_LIFE_S
    folder = folder_of(data)
    with locked(folder):
        issuer = lasting_issuer(folder, now)
        certificate = certificates.device_certificate(
            issuer, csr, fleet=fleet, device=device, enrolment_id=enrolment_id,
            not_after=min(end, issuer.certificate.not_valid_after_utc.timestamp()),
        )  # fmt: skip
        chain = to_pem(certificate, issuer.certificate)
        _record(folder, chain, enrolment_id, now)
    return chain


def issue_short_lived(data: Path, name: str, life_s: float, now: float) -> tuple[bytes, bytes, str]:
    """(key, chain, serial number) for an act of the server's own in the name of somebody, good for `life_s` only."""
    folder = folder_of(data)
    key = certificates.make_key()
    with locked(folder):
        issuer = issuer_of(folder)
        chain = to_pem(certificates.service_certificate(issuer, key, name, (), now + life_s), issuer.certificate)
        _record(folder, chain, "", now)
    return certificates.key_to_pem(key), chain, read_certificate(chain).serial_number


def ensure_service(data: Path, name: str, now: float, hosts: Sequence[str] | None = None) -> tuple[Path, Path]:
    """(certificate, key) of the broker, the server or a hub: made anew from 60 days before its end, or for `hosts`.

    The broker reads its files again when it is told to reload.
    """
    folder = folder_of(data)
    with locked(folder):
        if not _is_good(folder, name, now, hosts):
            _write_service(folder, name, _hosts(folder) if hosts is None else hosts, _checked_time(now))
    return folder / f"{name}.crt", folder / f"{name}.key"


def _is_good(folder: Path, name: str, now: float, hosts: Sequence[str] | None) -> bool:
    """Whether a pair is there, belongs together (a power cut may leave a new key alone) and still holds."""
    certificate_file, key_file = folder / f"{name}.crt", folder / f"{name}.key"
    if not (certificate_file.exists() and key_file.exists()):
        return False
    certificate = read(certificate_file, x509.load_pem_x509_certificate)
    if certificate.public_key() != read(key_file, certificates.key_from_pem).public_key():
        return False
    if hosts is not None and set(certificates.hosts_of(certificate)) != set(hosts):
        return False
    if f"{certificate.serial_number:x}" in revoked_numbers(folder):
        return False
    return not needs_renewal(certificate.not_valid_after_utc.timestamp(), now)


def _write_service(folder: Path, name: str, hosts: Sequence[str], now: float) -> None:
    if name not in SERVICES:
        raise InputError(f"making a certificate for {name!r}", "it is no process of the server's", f"one of {SERVICES}")
    issuer, key = issuer_of(folder), certificates.make_key()
    certificate = certificates.service_certificate(
        issuer, key, name, () if name in HUB_USERS else hosts, now + SERVICE_LIFE_S
    )
    chain = to_pem(certificate, issuer.certificate)
    _record(folder, chain, "", now)
    write_private(folder / f"{name}.key", certificates.key_to_pem(key))
    write_file(folder / f"{name}.crt", chain)


def _record(folder: Path, chain: bytes, enrolment_id: str, now: float) -> None:
    facts = read_certificate(chain)
    record(
        folder,
        Issued(
            name=facts.common_name,
            serial_number=facts.serial_number,
            enrolment_id=enrolment_id,
            issued_at=now,
            not_after=facts.not_after,
        ),
    )


# Revoking ----------------------------------------------------------------------------------------------


def revoke(data: Path, device: str, now: float, *, keep: str | None = None) -> int:
    """Revoke every certificate of a device that has not ended, but for the serial number `keep`; returns how many.

    The broker must be told.
    """
    folder = folder_of(data)
    with locked(folder):
        numbers = [entry.serial_number for entry in issued(folder, device) if entry.not_after > now]
        return _revoke(folder, [number for number in numbers if number != keep], now)


def revoke_number(data: Path, serial_number: str, now: float) -> None:
    """Revoke one certificate."""
    folder = folder_of(data)
    with locked(folder):
        _revoke(folder, [serial_number], now)


def _revoke(folder: Path, numbers: list[str], now: float) -> int:
    known = revoked_numbers(folder)
    fresh = [number for number in numbers if number not in known]
    if fresh:
        write_crl(folder, issuer_of(folder), fresh, now)
    return len(fresh)


def expiries(data: Path) -> list[tuple[str, float]]:
    """(what, Unix time) of everything that ends here: authorities, revocation list, the server's certificates."""
    folder = folder_of(data)
    names = {"root authority": ROOT_FILE, "issuing authority": ISSUING_FILE}
    names |= {f"certificate of {name}": f"{name}.crt" for name in SERVICES}
    found = [
        (what, read(folder / name, read_certificate).not_after)
        for what, name in names.items()
        if (folder / name).exists()
    ]
    return [*found, ("revocation list", crl_end(folder))]


def _hosts(folder: Path) -> list[str]:
    return certificates.hosts_of(read(folder / f"{BROKER}.crt", x509.load_pem_x509_certificate))


def _checked_time(now: float | None) -> float:
    moment = datetime.now(UTC).timestamp() if now is None else now
    if moment <= NOT_BEFORE.timestamp():
        raise InputError(
            "making a certificate", f"this machine's clock says {datetime.fromtimestamp(moment, UTC):%Y-%m-%d}",
            "set the clock",
        )  # fmt: skip
    return moment
