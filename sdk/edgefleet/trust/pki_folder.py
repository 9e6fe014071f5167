"""DATA/pki on disk: where it is, who may write at a time, and the authority that signs there.

What is issued and revoked is the business of `pki`.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from cryptography import x509

from edgefleet.errors import InputError, StorageError, TrustError
from edgefleet.trust.certificates import Authority, key_from_pem

PKI_FOLDER = "pki"
ISSUING_FILE = "issuing-ca.crt"
ISSUING_KEY_FILE = "issuing-ca.key"

Content = TypeVar("Content")


def folder_of(data: Path) -> Path:
    """DATA/pki; raises InputError where there is none."""
    folder = data / PKI_FOLDER
    if not folder.is_dir():
        raise InputError(
            f"opening the certificates in {folder}", "there are none",
            "restore them from a backup; a new fleet begins with: edgefleet keys init",
        )  # fmt: skip
    return folder


def issuer_of(folder: Path) -> Authority:
    """The issuing authority and its key; raises StorageError and TrustError."""
    certificate = read(folder / ISSUING_FILE, x509.load_pem_x509_certificate)
    key = read(folder / ISSUING_KEY_FILE, key_from_pem)
    if key.public_key() != certificate.public_key():
        # What it signed now, nobody would take.
        raise TrustError(
            f"reading {folder / ISSUING_FILE}", "its key is another's: a rotation was cut off",
            "run: edgefleet keys rotate issuing",
        )  # fmt: skip
    return Authority(certificate, key)


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


def read(path: Path, parse: Callable[[bytes], Content]) -> Content:
    """What `parse` makes of a file here; raises StorageError where there is none, TrustError where it is damaged."""
    with translated(path):
        content = path.read_bytes()
    try:
        return parse(content)
    except (ValueError, TrustError) as error:
        raise TrustError(f"reading {path}", "it is damaged", f"restore {path.parent} from a backup") from error


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
        remedy = "let this user read and write there, and try again"
        if isinstance(error, FileNotFoundError):
            remedy = f"restore {Path(where).parent} from a backup"
        raise StorageError(f"opening {where}", found, remedy) from error
