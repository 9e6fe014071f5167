"""TLS 1.2 or later with client certificates: the files, and a context made of them.

Nothing is kept: files are read anew for each attempt, so that a renewed certificate counts at once.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgefleet.errors import TransportError


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files; `certificate_file` holds our certificate and the chain below the root in `ca_file`."""

    ca_file: Path
    certificate_file: Path
    key_file: Path

    def context(self) -> ssl.SSLContext:
        """A client's context that checks the broker's chain and name; raises TransportError naming the bad file."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        with _reading(self.ca_file):
            context.load_verify_locations(self.ca_file)
        for file in (self.certificate_file, self.key_file):
            with _reading(file):
                file.open("rb").close()
        with _reading(self.certificate_file, self.key_file):
            # Without a password given, an encrypted key would ask for one at the terminal.
            context.load_cert_chain(self.certificate_file, self.key_file, password="")
        return context


@contextmanager
def _reading(*files: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        is_pem_trouble = isinstance(error, ssl.SSLError)
        found = "not a certificate and its key in PEM" if is_pem_trouble and len(files) > 1 else error.strerror
        raise TransportError(
            f"reading {' and '.join(map(str, files))}",
            "not certificates in PEM" if is_pem_trouble and len(files) == 1 else found or str(error),
            "enrol this device again, or give the right files",
        ) from error
