"""DATA/pki on disk: where it is, who may write at a time, and the authority that signs there.

What is issued and revoked is the business of `pki`.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509

from edgefleet.errors import InputError, StorageError, TrustError
from edgefleet.trust.certificates import Authority, key_from_pem

PKI_FOLDER = "pki"
ISSUING_FILE = "issuing-ca.crt"
ISSUING_KEY_FILE = "issuing-ca.key"


def folder_of(data: Path) -> Path:
    """DATA/pki; raises InputError where there is none."""
    folder = data / PKI_FOLDER
    if not folder.is_dir():
        raise InputError(f"opening the certificates in {folder}", "there are none", "run: edgefleet keys init")
    return folder


def issuer_of(folder: Path) -> Authority:
    """The issuing authority and its key; raises OSError and TrustError."""
    certificate = x509.load_pem_x509_certificate((folder / ISSUING_FILE).read_bytes())
    return Authority(certificate, key_from_pem((folder / ISSUING_KEY_FILE).read_bytes()))


def lasting_issuer(folder: Path, now: float) -> Authority:
    """The issuing authority while it lasts (Unix time); raises TrustError afterwards."""
    issuer = issuer_of(folder)
    end = issuer.certificate.not_valid_after_utc
    if now >= end.timestamp():
        raise TrustError(
            "issuing a certificate",
            f"the issuing authority ended on {end:%Y-%m-%d}",
            "make a new one: edgefleet keys rotate issuing",
        )
    return issuer


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One writer at a time: the server renews while a command enrols or revokes. Raises StorageError."""
    with translated(folder):
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


@contextmanager
def translated(folder: Path) -> Iterator[None]:
    """Whatever the disk refuses becomes a StorageError that names the file."""
    try:
        yield
    except OSError as error:
        where, found = error.filename or folder, error.strerror or str(error)
        raise StorageError(f"writing {where}", found, "let this user write there, and try again") from error
