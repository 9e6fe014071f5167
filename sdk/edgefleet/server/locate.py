"""Where a blob can be had over HTTP: an address made from a template, signed and short-lived for our own endpoint.

The signature is an HMAC-SHA256 over digest and expiry; it names nobody, so it is good for whoever holds it, until
it expires. What it opens is verified by digest on the device anyway.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from edgefleet.durable import write_private
from edgefleet.errors import InputError

KEY_FILE = "http.key"
KEY_BYTES = 32
URL_VALID_S = 6 * 3600


@dataclass(frozen=True, slots=True)
class Locator:
    """`template` with `{digest}` in it; with a key the address is signed."""

    template: str
    key: bytes | None = None

    def url(self, digest: str, now: float) -> str:
        """Where a device gets the blob."""
        plain = self.template.replace("{digest}", digest)
        if self.key is None:
            return plain
        expires = int(now) + URL_VALID_S
        return f"{plain}?expires={expires}&signature={signature(self.key, digest, expires)}"


def check_template(template: str) -> str:
    """Return a template that can name a blob; raises InputError."""
    if "{digest}" not in template or not template.startswith(("http://", "https://")):
        raise InputError(
            f"reading the address {template!r}",
            "it is no http address with {digest} in it",
            "write it as https://HOST/blobs/{digest}",
        )
    return template


def public_template(host: str, port: int, *, tls: bool) -> str:
    """The address of our own endpoint as devices reach it; raises InputError when the host is none."""
    if host in ("", "0.0.0.0", "::", "*"):  # noqa: S104 - refused
        raise InputError(
            f"serving blobs on {host}:{port}", "devices cannot reach that name", "give --blob-url with the host's name"
        )
    name = f"[{host}]" if ":" in host else host
    return f"{'https' if tls else 'http'}://{name}:{port}/blobs/{{digest}}"


def signature(key: bytes, digest: str, expires: int) -> str:
    """Hexadecimal HMAC-SHA256."""
    return hmac.new(key, f"{digest}\n{expires}".encode(), sha256).hexdigest()


def is_valid(key: bytes, digest: str, expires: str, given: str, now: float) -> bool:
    """Whether the parameters of a signed address are ours and have not expired."""
    if not (expires.isdecimal() and expires.isascii() and len(expires) < 16) or int(expires) < now:
        return False
    return hmac.compare_digest(signature(key, digest, int(expires)).encode(), given.encode())


def ensure_key(data: Path) -> bytes:
    """The signing key of the data folder, made when there is none; raises OSError."""
    if not (data / KEY_FILE).exists():
        write_private(data / KEY_FILE, secrets.token_bytes(KEY_BYTES))
    return load_key(data)


def load_key(data: Path) -> bytes:
    """The signing key of the data folder; raises InputError."""
    try:
        key = (data / KEY_FILE).read_bytes()
    except OSError as error:
        raise InputError(
            f"reading {data / KEY_FILE}", error.strerror or str(error), "copy it from the server that has --http"
        ) from error
    if len(key) != KEY_BYTES:
        raise InputError(f"reading {data / KEY_FILE}", f"{len(key)} bytes", "remove it and start the server again")
    return key
