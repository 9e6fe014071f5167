"""The messages: one pydantic model each. What is signed is in `signed`.

Identity never comes from a payload: the topic says which device speaks.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator

from edgefleet.package.digest import Digest
from edgefleet.protocol.measurements import Accuracy, Energy, Latency, Memory, Stamp, Statistics, Thermal
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
    BENCHMARKING = "benchmarking"
    """The candidates are measured on the device."""
    ACTIVATING = "activating"
    """The slot is being switched, its worker warm before the old one drains; not interruptible."""
    PROBATION = "probation"
    """The wanted variant runs and is watched; the committed one is kept."""
    COMMITTED = "committed"
    """The wanted variant runs, and has shown itself."""
    ROLLING_BACK = "rolling_back"
    """The committed variant is being put back; not interruptible."""
    ROLLED_BACK = "rolled_back"
    """The wanted variant failed its probation; the one committed before runs."""
    FAILED = "failed"
    """The wanted variant was not installed; the committed one still runs."""
    NO_MODEL = "no_model"
    """There is no verified variant to run; the device says why."""


TERMINAL_STATES = frozenset({State.COMMITTED, State.ROLLED_BACK, State.FAILED, State.NO_MODEL})


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


class Evidence(StrEnum):
    """What a commitment rests on."""

    SUFFICIENT = "sufficient"
    """Every gate of the probation was judged on enough windows and inferences, and passed."""
    INSUFFICIENT = "insufficient"
    """The probation came to its end with too little to judge by; no gate failed."""


class DeviceState(Message):
    """Lifecycle state of a device, its active variant and what the last generation came to."""

    enrolment_id: str
    generation: Generation
    state: State
    reason: str | None = None
    active: ActiveVariant | None = None
    """What it infers with; in PROBATION that is the new one."""
    previous: ActiveVariant | None = None
    """The committed variant that it goes back to, while another is in probation."""
    evidence: Evidence | None = None
    """Of a generation that ended as COMMITTED by a probation."""
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
    PRIOR = "prior"
    """What devices of one hardware class chose of a package version: the body is a Prior, or the status `gone`."""


_NEEDS = {
    RequestKind.METADATA: "digest", RequestKind.BLOCKS: "digest", RequestKind.LOCATE: "digest",
    RequestKind.TRUST: "name", RequestKind.RENEW: "body", RequestKind.PRIOR: "digest",
}  # fmt: skip


class Request(Message):
    """A request to the hubs. Blocks named here are the credit: the hub sends these and no byte more.

    `fresh` drops what the hub still holds for the same device and blob (after a restart, a reconnect or a
    stall); otherwise the blocks are added behind it.
    """

    req_id: str = Field(max_length=64)
    kind: RequestKind
    digest: Digest | None = None
    """Of the blob, for METADATA, BLOCKS and LOCATE; of the package version's index, for PRIOR."""
    name: Annotated[str, Field(pattern=r"^(\d{1,12}\.)?[a-z][a-z0-9-]{0,31}\.json$")] | None = None
    """Of the file, for TRUST: `timestamp.json`, `12.root.json`; for PRIOR: `edgefleet.prior.prior_name`'s."""
    body: Annotated[bytes, Field(max_length=8192)] = b""
    blocks: Annotated[tuple[tuple[Count, Seq], ...], Field(max_length=MAX_RANGES, fail_fast=True)] = ()
    """Ranges (first block, number of blocks), in the order in which they are wanted."""
    credit_bytes: Annotated[int, Field(ge=0, le=MAX_CREDIT_BYTES)] = 0
    fresh: bool = False
    shared: bool = False
    """The device listens to the blob's shared topic as well."""
    deflate: bool = False
    """For METADATA: the body may come deflated (RFC 1950). What matches the digest as it came was not."""

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


class Window(Part):
    """One telemetry window: what one variant did in `duration_s` seconds."""

    started: Stamp
    duration_s: Annotated[float, Field(ge=0)]
    digest: Digest
    count: Count
    """Inferences that gave a result."""
    errors: Count
    latency: Latency
    energy: Energy
    thermal: Thermal
    cpu_share: Annotated[float, Field(ge=0)]
    """Processor time of agent and worker, as a share of one core."""
    memory: Memory
    statistics: Statistics = Statistics()
    accuracy: Accuracy | None

    @property
    def achieved_per_s(self) -> float:
        """Inferences a second, whatever one of them takes."""
        return self.count / self.duration_s if self.duration_s else 0.0

    @model_validator(mode="after")
    def _sketches_have_every_inference(self) -> Self:
        for part in ("preprocess", "inference", "end_to_end"):
            found = getattr(self.latency, part).count
            if found != self.count:
                raise ValueError(f"latency.{part} is of {found} inferences, count is {self.count}")
        return self


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
