"""What is signed: deployments by operators, desired states and commands by the server, each in a DSSE envelope.

It describes and unpacks; no signature is made or verified here.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self

from pydantic import ConfigDict, Field

from edgefleet.package.digest import Digest
from edgefleet.protocol.record import Count, Generation, Message, MessageError, Name, Part

ALL_DEVICES = "all"
DEPLOYMENT_TYPE = "application/vnd.edgefleet.deployment.v1+json"
DESIRED_TYPE = "application/vnd.edgefleet.desired.v1+json"
COMMAND_TYPE = "application/vnd.edgefleet.command.v1+json"


class Signature(Part):
    """One signature of an envelope."""

    keyid: Annotated[str, Field(pattern=r"^[0-9a-f]{8,128}$")]
    sig: bytes


class Envelope(Message):
    """Signed bytes, as DSSE 1.0 writes them (github.com/secure-systems-lab/dsse, envelope.md).

    `payload_type` says what the payload is; who may sign which type is `edgefleet.trust`'s business.
    """

    model_config = ConfigDict(populate_by_name=True)

    payload: bytes
    payload_type: str = Field(alias="payloadType", max_length=128)
    signatures: Annotated[tuple[Signature, ...], Field(min_length=1, max_length=16, fail_fast=True)]


class PackageVersion(Part):
    """One version of a package, by the digest of its index; a TUF target of the same name says the same."""

    package: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,62}$")]
    release: Count
    index_digest: Digest


class Deployment(Message):
    """What an operator decided and signed: one package version for the devices of a selector."""

    deployment_id: str
    fleet: Name
    serial: Generation
    """Above that of every earlier deployment of the fleet (the Unix time, or one more than the last): devices never
    go back to an older decision."""
    target: PackageVersion
    fallback: PackageVersion | None = None
    selector: str
    """`all`, or device names with commas between them: a device that is not meant refuses."""
    downgrade: bool = False
    """The operator wants a lower release than the one that runs."""
    expires: float
    """Wall clock, seconds since 1970: nothing is begun for it afterwards."""

    def selects(self, device: str) -> bool:
        """Whether the selector means this device."""
        return self.selector == ALL_DEVICES or device in [name.strip() for name in self.selector.split(",")]


class Action(StrEnum):
    """What the device shall do with a desired state."""

    INSTALL = "install"
    """Run the deployment's package version."""
    FALLBACK = "fallback"
    """Run the deployment's fallback."""
    NONE = "none"
    """Keep what runs."""


class _DesiredFields(Message):
    fleet: Name
    device: Name
    enrolment_id: str
    generation: Generation
    action: Action
    valid_until: float
    """Wall clock, seconds since 1970: no new install after it."""
    install_timeout_s: float = Field(gt=0)
    """On the agent's own running time."""


class SignedDesired(_DesiredFields):
    """What the server signs for one device: the payload of the envelope on the desired topic."""

    deployment: Envelope
    """Signed by an operator; nothing but its target or its fallback may be installed."""


class Desired(_DesiredFields):
    """A desired state taken out of its envelopes. Accepted once: by its own device, with a generation above the last
    accepted; holding one proves nothing about its signatures.
    """

    deployment: Deployment

    @property
    def wanted(self) -> PackageVersion | None:
        """The package version that the action names; None for NONE, or for a fallback that there is not."""
        chosen = {Action.INSTALL: self.deployment.target, Action.FALLBACK: self.deployment.fallback}
        return chosen.get(self.action)

    @classmethod
    def unwrap(cls, envelope: Envelope) -> Self:
        """Read the content of an envelope WITHOUT verifying any signature; raises MessageError."""
        _check_type(envelope, DESIRED_TYPE)
        signed = SignedDesired.decode(envelope.payload)
        _check_type(signed.deployment, DEPLOYMENT_TYPE)
        deployment = Deployment.decode(signed.deployment.payload)
        return cls(**signed.model_dump(exclude={"deployment"}), deployment=deployment)


def _check_type(envelope: Envelope, wanted: str) -> None:
    if envelope.payload_type != wanted:
        raise MessageError(f"Envelope: payloadType: {envelope.payload_type!r} where {wanted} belongs")


class CommandName(StrEnum):
    """What a device may be told to do, once."""

    REPORT = "report"
    """Publish facts and state again."""
    RENEW = "renew"
    """Renew the certificate now."""


class Command(Message):
    """The payload of an envelope on the commands topic, signed by the server's online key."""

    fleet: Name
    device: Name
    enrolment_id: str
    command_id: str = Field(max_length=64)
    name: CommandName
    expires: float
    """Wall clock; 60 s after it was issued."""
