"""The messages: one pydantic model each. What is signed is in `signed`.

Identity never comes from a payload: the topic says which device speaks.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from edgefleet.package.digest import Digest
from edgefleet.protocol.record import Count, Generation, Message, Part, Seq
from edgefleet_device_profiles.detect import MachineFacts

# 24 KiB of content are 32 KiB of base64, which every broker passes.
REPLY_PART_BYTES = 24 * 1024
MAX_CREDIT_BYTES = 4 * 1024 * 1024
MAX_RANGES = 128


class State(StrEnum):
    """Where a device is in its lifecycle."""

    IDLE = "idle"
    """Nothing was asked yet."""
    RESOLVING = "resolving"
    """The deployment's index is being fetched and verified."""
    SELECTING = "selecting"
    """A variant is chosen and its manifest fetched."""
    DOWNLOADING = "downloading"
    """Blocks are being pulled."""
    VERIFYING = "verifying"
    """Every file is hashed as a whole."""
    SELF_TEST = "self_test"
    """The variant runs its golden inputs in a child process."""
    ACTIVATING = "activating"
    """The slot is being switched; not interruptible."""
    COMMITTED = "committed"
    """The wanted variant runs."""
    FAILED = "failed"
    """The wanted variant was not installed; the committed one still runs."""
    NO_MODEL = "no_model"
    """There is no verified variant to run; the device says why."""


TERMINAL_STATES = frozenset({State.COMMITTED, State.FAILED, State.NO_MODEL})


class Online(Message):
    """Connected or not; `connection` is a persisted counter, so an older will marks nothing offline."""

    online: bool
    enrolment_id: str
    connection: Count


class Facts(Message):
    """What a device is. Sent after each connect; it is also the agent's hello."""

    enrolment_id: str
    boot_id: str
    connection: Count
    agent_version: str
    profile: str
    simulated: bool
    """The host is not the profile's board."""
    simulated_reason: str | None = None
    machine: MachineFacts


class Progress(Part):
    """Bytes verified on disk, and bytes that the variant has."""

    verified_bytes: Count
    total_bytes: Count


class ActiveVariant(Part):
    """The variant that the device infers with."""

    digest: Digest
    index_digest: Digest
    name: str
    runtime: str
    precision: str


class DeviceState(Message):
    """Lifecycle state of a device, its active variant and what the last generation came to."""

    enrolment_id: str
    generation: Generation
    state: State
    reason: str | None = None
    active: ActiveVariant | None = None
    progress: Progress | None = None
    """Of this generation; it stays when the installation has ended."""
    pulled_bytes: Count = 0
    """Bytes received over the wire for this generation, restarts and repeated blocks included."""
    reused_bytes: Count = 0
    """Bytes of this generation that were on the device already, in blocks of an earlier variant."""
    bad_blocks: Count = 0
    """Blocks that did not match their digest and were asked for again."""


class RequestKind(StrEnum):
    """What is asked for."""

    METADATA = "metadata"
    """A small blob, whole, in parts on the reply topic."""
    BLOCKS = "blocks"
    """Blocks of a blob, as raw pieces on the block topic."""
    TRUST = "trust"
    """A file of the TUF repository by `name`, in parts on the reply topic; `gone` where there is none."""
    RENEW = "renew"
    """A certificate for the signing request in `body` (PEM); the reply's body is the chain (PEM)."""
    LOCATE = "locate"
    """Where a blob can be had over HTTP: the reply's body is a URL, or the status is `gone`."""


_NEEDS = {
    RequestKind.METADATA: "digest", RequestKind.BLOCKS: "digest", RequestKind.LOCATE: "digest",
    RequestKind.TRUST: "name", RequestKind.RENEW: "body",
}  # fmt: skip


class Request(Message):
    """A request to the hubs. Blocks named here are the credit: the hub sends these and no byte more.

    `fresh` drops what the hub still holds for the same device and blob (after a restart, a reconnect or a
    stall); otherwise the blocks are added behind it.
    """

    req_id: str = Field(max_length=64)
    kind: RequestKind
    digest: Digest | None = None
    """Of the blob, for METADATA, BLOCKS and LOCATE."""
    name: Annotated[str, Field(pattern=r"^(\d{1,12}\.)?[a-z][a-z0-9-]{0,31}\.json$")] | None = None
    """Of the file, for TRUST: `timestamp.json`, `12.root.json`."""
    body: Annotated[bytes, Field(max_length=8192)] = b""
    blocks: Annotated[tuple[tuple[Count, Seq], ...], Field(max_length=MAX_RANGES, fail_fast=True)] = ()
    """Ranges (first block, number of blocks), in the order in which they are wanted."""
    credit_bytes: Annotated[int, Field(ge=0, le=MAX_CREDIT_BYTES)] = 0
    fresh: bool = False
    shared: bool = False
    """The device listens to the blob's shared topic as well."""

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Self:
        needed = _NEEDS[self.kind]
        if not getattr(self, needed):
            raise ValueError(f"a request for {self.kind} needs {needed}")
        return self


class Status(StrEnum):
    """Outcome of a request."""

    OK = "ok"
    """The body is (a part of) what was asked for."""
    BUSY = "busy"
    """Ask again after retry_after_s."""
    GONE = "gone"
    """The hub does not have this blob."""
    DENIED = "denied"
    """The device may not have it; the body says why."""
    BAD = "bad"
    """The request made no sense; the body says why."""


class Reply(Message):
    """Answer to a request."""

    req_id: str
    status: Status
    retry_after_s: Annotated[float, Field(ge=0, le=3600)] | None = None
    part: Count = 0
    parts: Annotated[int, Field(ge=1)] = 1
    body: bytes = b""
    """base64url in JSON."""
    shared: bool | None = None
    """To a request for blocks: whether to listen to the blob's shared topic from now on; null: as before."""


class Latency(Part):
    """Percentiles of one window in milliseconds; null where there were too few runs, with the reason."""

    p50_ms: float | None
    p90_ms: float | None
    reason: str | None = None


class Accuracy(Part):
    """How many of the window's labelled inputs were answered correctly."""

    correct: Count
    labelled: Count


class MeasuredPower(Part):
    """Mean power over a window, read from a sensor."""

    source: Literal["measured"] = "measured"
    watts: float
    scope: str


class EstimatedPower(Part):
    """Mean power over a window, from the profile's model; the truth lies between low and high."""

    source: Literal["estimated"] = "estimated"
    watts: float
    low_w: float
    high_w: float
    scope: str
    reason: str
    """Why it was not measured."""


Power = Annotated[MeasuredPower | EstimatedPower, Field(discriminator="source")]


class Window(Part):
    """One telemetry window: what one variant did in `duration_s` seconds."""

    started_at: float
    """Wall clock, seconds since 1970."""
    duration_s: float
    digest: Digest
    count: Count
    errors: Count
    latency: Latency
    accuracy: Accuracy | None
    power: Power


class Spooled(Message):
    """What every message from the spool carries; (spool_id, seq) names it once and for all."""

    enrolment_id: str
    spool_id: str
    """Random, made with the spool: a spool that was lost and begun anew never repeats a name."""
    boot_id: str
    seq: Seq
    oldest_seq: Seq
    """The lowest number that the spool still holds: nothing below it will ever come again."""


class Telemetry(Spooled):
    """A window on its way to the store."""

    window: Window


class Event(Spooled):
    """Something that happened on the device."""

    at: float
    kind: str
    text: str


class Ack(Message):
    """Everything up to `seq` of this spool is committed to the store; the spool may delete it."""

    spool_id: str
    seq: Count
