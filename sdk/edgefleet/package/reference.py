"""Names of packages in registries: `oci://HOST[:PORT]/REPOSITORY:TAG`, or `@sha256:…` in the tag's place.

Parses only. Source: OCI distribution-spec 1.1, pulling manifests (grammar of names and tags).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgefleet.errors import InputError

SCHEME = "oci://"
_PATTERN = re.compile(
    r"(?P<host>[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252})(?::[0-9]{1,5})?)"
    r"/(?P<repository>[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127})|@(?P<digest>sha256:[0-9a-f]{64}))"
)
_LOOPBACK = frozenset({"localhost", "127.0.0.1"})


@dataclass(frozen=True, slots=True)
class Reference:
    """A package in a registry; it has a tag or a digest, never both."""

    host: str
    """With its port, where one was given."""
    repository: str
    tag: str | None
    digest: str | None

    @property
    def target(self) -> str:
        """What the registry is asked for: the tag or the digest."""
        return self.digest or self.tag or ""

    @property
    def loopback(self) -> bool:
        """Whether the registry is on this machine, so that no network sees what is sent."""
        return self.host.partition(":")[0] in _LOOPBACK

    def __str__(self) -> str:
        return f"{SCHEME}{self.host}/{self.repository}{'@' if self.digest else ':'}{self.target}"


def is_reference(text: str) -> bool:
    """Whether `text` means a registry, and not a file or folder."""
    return text.startswith(SCHEME)


def parse(text: str) -> Reference:
    """Read a reference; raises InputError."""
    found = _PATTERN.fullmatch(text.removeprefix(SCHEME)) if is_reference(text) else None
    if found is None:
        raise InputError(
            f"reading {text!r}", "it is not the name of a package in a registry", f"write {SCHEME}HOST/REPOSITORY:TAG"
        )
    return Reference(**found.groupdict())
