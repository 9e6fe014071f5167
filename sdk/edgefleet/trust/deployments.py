"""Deployments: the operator's signature over a decision, and its package version as a TUF target.

It decides nothing; `edgefleet.server.control` fills a deployment in, and the device's client verifies it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from securesystemslib.signer import Signer
from tuf.api.metadata import TargetFile

from edgefleet.errors import InputError, TrustError
from edgefleet.protocol.signed import DEPLOYMENT_TYPE, Deployment, Envelope, PackageVersion
from edgefleet.trust.envelope import sign

MOST_AHEAD_S: Final = 2 * 86_400.0
"""Serials and generations are Unix times; clocks that differ by more than this are not taken for clocks."""


def sign_deployment(deployment: Deployment, signer: Signer) -> Envelope:
    """The deployment in an envelope signed by an operator's key."""
    return sign(deployment.encode(), DEPLOYMENT_TYPE, signer)


def target_path(version: PackageVersion) -> str:
    """Name of the TUF target of a package version: `packages/{package}@{version}`."""
    return path_of(version.package, version.version)


def path_of(package: str, version: str) -> str:
    """Name of the TUF target of a package's version."""
    return f"packages/{package}@{version}"


def package_version(target: TargetFile) -> PackageVersion:
    """What a target says; raises ValueError when it was not written by add_target."""
    custom = target.custom if isinstance(target.custom, dict) else {}
    return PackageVersion.model_validate({**custom, "index_digest": f"sha256:{target.hashes.get('sha256')}"})


def check_new_version(version: PackageVersion, known: Sequence[PackageVersion]) -> None:
    """Refuse a name that is taken and a release counter that does not rise; raises InputError. Pure."""
    doing = f"signing {version.package}@{version.version}"
    of_package = [one for one in known if one.package == version.package]
    if any(one.version == version.version for one in of_package):
        raise InputError(doing, "that version is signed already, with another content", "give it a new version")
    last = max((one.release for one in of_package), default=-1)
    if version.release <= last:
        raise InputError(
            doing, f"its release counter {version.release} is not above {last}", "package it again with a higher one"
        )


def check_number(kind: str, number: int, latest: float, doing: str) -> None:
    """Refuse a serial or a generation that lies far ahead of `latest`, the latest time that is known to be past.

    A device acts on rising numbers only: nothing could ever follow such a one, and whoever holds a stolen key for a
    minute would end all deployments for good. Raises TrustError. Pure.
    """
    if number > latest + MOST_AHEAD_S:
        remedy = "set the clock of the machine that signed it, and sign it again"
        raise TrustError(doing, f"its {kind} {number} lies in the future", remedy)
