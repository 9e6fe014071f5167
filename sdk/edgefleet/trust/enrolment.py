"""Who belongs to the fleet: enrolment of a device, renewal of its certificate, two machines under one name.

The server's store is the record, handed in by the caller; the broker is told elsewhere.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgefleet.durable import write_file, write_private
from edgefleet.errors import InputError, StorageError, TrustError
from edgefleet.identity import (
    CA_FILE,
    CERTIFICATE_FILE,
    IDENTITY_FILE,
    KEY_FILE,
    RENEWED_FILE,
    ROOT_FILE,
    BrokerEntry,
    IdentityEntry,
)
from edgefleet.protocol.signed import ALL_DEVICES
from edgefleet.protocol.topics import check_name
from edgefleet.trust import certificates, issued, pki
from edgefleet.trust.online import metadata_folder
from edgefleet.trust.pki_folder import folder_of, read
from edgefleet.trust.repository import Repository
from edgefleet.trust.setup import read_fleet

# A reply may be lost, and then the device asks again; a device that asks for ever gets no more than these.
RENEWALS_PER_DAY = 3
DAY_S = 86400.0

_TAKEN = {ALL_DEVICES: "every device's in a deployment", pki.BROKER: "the broker's own certificate's"}


class EnrolmentRow(Protocol):
    """What the store remembers of a device that was enrolled."""

    @property
    def enrolment_id(self) -> str:
        """Changes with each enrolment, never with a renewal."""

    @property
    def revoked_at(self) -> float | None:
        """When it was removed from the fleet, seconds since 1970."""

    @property
    def hardware_serial(self) -> str | None:
        """Of the machine that first spoke under it, or was named beforehand."""


class EnrolmentStore(Protocol):
    """The part of the server's store that enrolment needs."""

    def enrolment(self, device: str) -> EnrolmentRow | None:
        """The newest enrolment of a device, revoked or not."""

    def transaction(self) -> AbstractContextManager[None]:
        """Nobody else writes while it lasts; all that is written in it is there at its end, or nothing."""

    def add_enrolment(
        self, device: str, enrolment_id: str, not_after: float, serial_number: str, now: float, *,
        hardware_serial: str | None = None,
    ) -> None:  # fmt: skip
        """Record an enrolment, or the new certificate of the same one."""


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A device that has just been enrolled, and the files that go to it."""

    device: str
    enrolment_id: str
    serial_number: str
    not_after: float
    files: Mapping[str, bytes]
    """File name → content. No private key where the device made its own."""

    def write(self, folder: Path) -> None:
        """Write the identity folder; `identity.json` comes last: with it the folder is whole. Raises StorageError."""
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for name, content in self.files.items():
                if name == IDENTITY_FILE:
                    # An earlier enrolment's renewal would go before the new certificate.
                    (folder / RENEWED_FILE).unlink(missing_ok=True)
                (write_private if name == KEY_FILE else write_file)(folder / name, content)
        except OSError as error:
            raise StorageError(
                f"writing the identity of {self.device} to {folder}", error.strerror or str(error),
                "mend that and enrol it with --again",
            ) from error  # fmt: skip


def enroll(
    data: Path, store: EnrolmentStore, device: str, *, host: str, port: int, now: float, tls: bool = True,
    csr_pem: bytes | None = None, again: bool = False, hardware_serial: str | None = None,
) -> Enrolled:  # fmt: skip
    """Make a device part of the fleet. Without `csr_pem` its key is made here, and is in the files.

    Raises InputError (name, broker, enrolled already and not `again`) and TrustError (the signing request). With
    `again` every certificate that the device had is revoked; the broker must then be told.
    """
    check_name("device", device)
    if device in _TAKEN:
        raise InputError(f"enrolling {device}", f"that name is {_TAKEN[device]}", "choose another")
    _check_free(store, device, again=again)
    fleet, root, authority = read_fleet(data), _newest_root(data), read(folder_of(data) / pki.ROOT_FILE, bytes)
    broker = _checked_broker(device, host, port, tls=tls)
    key_pem = None
    if csr_pem is None:
        key_pem, csr_pem = certificates.make_key_and_csr(device)
    enrolment_id = secrets.token_hex(8)
    chain = pki.issue_device(data, csr_pem, fleet, device, enrolment_id, now)
    facts = certificates.read_certificate(chain)
    try:
        with store.transaction():
            # Another command may have enrolled it meanwhile.
            _check_free(store, device, again=again)
            # First: from here on nothing is renewed for the former enrolment, so nothing escapes the revocation.
            store.add_enrolment(
                device, enrolment_id, facts.not_after, facts.serial_number, now, hardware_serial=hardware_serial
            )
    except InputError:
        pki.revoke_number(data, facts.serial_number, now)
        raise
    pki.revoke(data, device, now, keep=facts.serial_number)
    entry = IdentityEntry(fleet=fleet, device=device, enrolment_id=enrolment_id, broker=broker)
    files = {
        **({KEY_FILE: key_pem} if key_pem is not None else {}),
        CERTIFICATE_FILE: chain,
        CA_FILE: authority,
        ROOT_FILE: root,
        IDENTITY_FILE: entry.model_dump_json(indent=2).encode() + b"\n",
    }
    return Enrolled(device, enrolment_id, facts.serial_number, facts.not_after, files)


def _check_free(store: EnrolmentStore, device: str, *, again: bool) -> None:
    known = store.enrolment(device)
    if known is not None and known.revoked_at is None and not again:
        raise InputError(
            f"enrolling {device}", "a device of this name is enrolled",
            "choose another name, or give --again to replace its certificate",
        )  # fmt: skip


def check_target(folder: Path, csr_pem: bytes | None, *, again: bool) -> None:
    """Refuse to write over an identity or a key that is not meant, and where nothing can be written.

    Raises InputError and StorageError, before anything is issued or revoked.
    """
    doing = f"writing an identity to {folder}"
    check_place(folder, doing)
    if (folder / IDENTITY_FILE).exists() and not again:
        raise InputError(doing, "there is one already", "name another folder, or give --again")
    key_file = folder / KEY_FILE
    if not key_file.exists():
        return
    if csr_pem is None and not again:
        raise InputError(doing, f"there is a key already ({KEY_FILE})", "give its --csr, or name another folder")
    if csr_pem is not None and not certificates.same_key(key_file.read_bytes(), csr_pem):
        raise InputError(doing, f"{KEY_FILE} in it is not the key of the signing request", "name another folder")


def check_place(folder: Path, doing: str) -> None:
    """Refuse a folder that nothing can be written to, without making it; raises StorageError."""
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not there.is_dir():
        raise StorageError(doing, f"{there} is no folder", "name another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise StorageError(doing, f"nothing can be written to {there}", "let this user write there, or name another")


def renew(data: Path, store: EnrolmentStore, device: str, csr_pem: bytes, now: float) -> bytes:
    """A new certificate for a device of the fleet, and its issuer's (PEM); raises TrustError with the reason.

    `device` is who asks, by the topic of the request. The enrolment stays the same; the old certificate holds until
    it ends, because the device may not have got the new one.
    """
    doing = f"renewing the certificate of {device}"
    row = store.enrolment(device)
    if row is None or row.revoked_at is not None:
        found = "it is not enrolled" if row is None else "it was removed from the fleet"
        raise TrustError(doing, found, "enrol it: edgefleet enroll")
    entries = issued.issued(folder_of(data), device)
    recent = [one for one in entries if one.enrolment_id == row.enrolment_id and 0 <= now - one.issued_at < DAY_S]
    if len(recent) >= RENEWALS_PER_DAY:
        raise TrustError(doing, f"{len(recent)} certificates were issued to it within a day", "ask again tomorrow")
    chain = pki.issue_device(data, csr_pem, read_fleet(data), device, row.enrolment_id, now)
    facts = certificates.read_certificate(chain)
    with store.transaction():
        if overtaken := _overtaken(row, store.enrolment(device)):
            # What revoked everything of that name did so before this one was on the list.
            pki.revoke_number(data, facts.serial_number, now)
            raise TrustError(doing, overtaken, "enrol it: edgefleet enroll")
        store.add_enrolment(device, row.enrolment_id, facts.not_after, facts.serial_number, now)
    return chain


def _overtaken(before: EnrolmentRow, after: EnrolmentRow | None) -> str | None:
    """What happened to an enrolment meanwhile that ends it; None: nothing. Pure."""
    if after is None or after.revoked_at is not None:
        return "it was removed from the fleet"
    return None if after.enrolment_id == before.enrolment_id else "it was enrolled anew"


def flag_reason(row: EnrolmentRow, serial: str | None) -> str | None:
    """Why a device that reports this hardware serial gets no deployments, or None: pure.

    A machine that tells none is let through: a virtual machine has none, and who forges one can leave it out.
    """
    expected = row.hardware_serial
    if not expected or not serial or _plain(expected) == _plain(serial):
        return None
    return f"two machines under one identity: it was enrolled on hardware {expected}, this one is {serial}"


def _plain(serial: str) -> str:
    """The same number as /proc/cpuinfo, the device tree or a person writes it."""
    return serial.strip().strip("\0").lower().lstrip("0")


def _newest_root(data: Path) -> bytes:
    """For a device to start from: from the newest TUF root it has the fewest steps to go."""
    repository = Repository(metadata_folder(data))
    return repository.root_bytes(repository.root().signed.version)


def _checked_broker(device: str, host: str, port: int, *, tls: bool) -> BrokerEntry:
    if not tls and host not in ("localhost", "127.0.0.1", "::1"):
        raise InputError(
            f"enrolling {device}", f"{host} is not this machine, and without TLS anybody could speak as {device}",
            "leave --no-tls out",
        )  # fmt: skip
    return BrokerEntry(host=host, port=port, tls=tls)
