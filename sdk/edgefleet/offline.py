"""Who vouches for a bundle: its package and its deployment against the signed metadata that it carries, offline.

Decides nothing about a fleet: whoever imports a bundle into a server verifies it there once more.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from edgefleet.errors import TrustError
from edgefleet.package.bundle import Bundle
from edgefleet.protocol.record import MessageError
from edgefleet.protocol.signed import Deployment, Envelope, PackageVersion
from edgefleet.trust.client import Client

_REMEDY = "take a bundle that was written after `edgefleet publish`"


@dataclass(frozen=True, slots=True)
class Vouched:
    """What the signatures say, as far as the root that they were checked with is the right one."""

    version: PackageVersion
    """Signed by a release key."""
    deployment: Deployment | None
    """Signed by an operator's key, where the bundle carries one."""


def first_root(bundle: Bundle) -> bytes:
    """The oldest root that the bundle carries itself, which proves no more than that its files belong together."""
    roots = sorted((int(name.split(".")[0]), name) for name in bundle.trust_files if name.endswith(".root.json"))
    if not roots:
        raise TrustError("verifying the bundle", "it carries no root metadata", _REMEDY)
    return bundle.trust_files[roots[0][1]]


def check(bundle: Bundle, root: bytes, now: float | None = None) -> Vouched:
    """Follow the bundle's metadata from `root` to the package; `now` is the Unix time, by default the clock's.

    Raises TrustError with the one reason.
    """
    package = bundle.package
    doing = f"verifying the bundle of {package.name} {package.version}"
    with tempfile.TemporaryDirectory(prefix="edgefleet-trust-") as folder:
        client = Client(Path(folder), root, lambda name, _max_bytes: bundle.trust_files.get(name), now)
        try:
            signed = client.target(package.name, package.version)
        except TrustError as error:
            # No server has a part in it: only its file and the reason are the same.
            raise TrustError(doing, error.found, f"{_REMEDY}, and the root of its fleet") from error
        if signed is None:
            raise TrustError(doing, "no release key signed this version", _REMEDY)
        if (signed.index_digest, signed.release) != (package.digest, package.release):
            found = f"the release key signed {signed.index_digest[:19]}…, the bundle holds {package.digest[:19]}…"
            raise TrustError(doing, found, _REMEDY)
        return Vouched(signed, None if bundle.deployment is None else _deployment(client, bundle.deployment, signed))


def _deployment(client: Client, content: bytes, signed: PackageVersion) -> Deployment:
    doing = "verifying the bundle's deployment"
    try:
        envelope = Envelope.decode(content)
        fleet = Deployment.decode(envelope.payload).fleet
    except MessageError as error:
        raise TrustError(doing, f"it is not well formed ({error})", "sign it again") from error
    deployment = client.check_deployment(envelope, fleet=fleet)
    if deployment.target != signed:
        found = f"it is for {deployment.target.package} {deployment.target.version}"
        raise TrustError(doing, found, "give the deployment of this package")
    if deployment.expires < client.reference_time:
        raise TrustError(doing, "it has expired", "sign it again")
    return deployment
