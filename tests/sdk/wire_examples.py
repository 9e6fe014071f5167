"""One example of every message class; `tests/golden` holds their bytes."""

from __future__ import annotations

from edgefleet.protocol.decisions import (
    CandidateRecord,
    Conditions,
    DecisionRecord,
    Objective,
    Prior,
    Standing,
)
from edgefleet.protocol.measurements import (
    Accuracy,
    Clock,
    Durations,
    EstimatedEnergy,
    Latency,
    MeasuredEnergy,
    Memory,
    Stamp,
    Statistics,
    TensorStatistics,
    Thermal,
)
from edgefleet.protocol.messages import (
    Ack,
    ActiveVariant,
    DeviceState,
    Event,
    Facts,
    Online,
    Progress,
    Reply,
    Request,
    RequestKind,
    State,
    Status,
    Telemetry,
    Window,
)
from edgefleet.protocol.record import Message
from edgefleet.protocol.signed import (
    COMMAND_TYPE,
    DEPLOYMENT_TYPE,
    DESIRED_TYPE,
    Action,
    Command,
    CommandName,
    Deployment,
    Desired,
    Envelope,
    PackageVersion,
    Signature,
    SignedDesired,
)
from edgefleet.sketch import Sketch
from edgefleet_device_profiles.detect import MachineFacts
from edgefleet_device_profiles.profile import Runtime

INDEX = "sha256:" + "1" * 64
MANIFEST = "sha256:" + "2" * 64
BLOB = "sha256:" + "3" * 64

KEYID = "5a" * 32


def envelope(message: Message, payload_type: str) -> Envelope:
    """A message in an envelope whose signature proves nothing."""
    signature = Signature(keyid=KEYID, sig=b"\xff" * 64)
    return Envelope(payload=message.encode(), payload_type=payload_type, signatures=(signature,))


TARGET = PackageVersion(package="digits", version="1.2.0", release=7, index_digest=INDEX)
FALLBACK = PackageVersion(package="digits", version="1.1.0", release=6, index_digest="sha256:" + "4" * 64)
DEPLOYMENT = Deployment(
    deployment_id="digits-1.2.0-0a1b2c3d",
    fleet="home",
    serial=1_750_000_000,
    target=TARGET,
    fallback=FALLBACK,
    selector="pi-kitchen,nuc-cellar",
    expires=1_790_000_000.5,
)
SIGNED_DEPLOYMENT = envelope(DEPLOYMENT, DEPLOYMENT_TYPE)
DESIRED = Desired(
    fleet="home",
    device="pi-kitchen",
    enrolment_id="e1",
    generation=1_750_000_000,
    action=Action.INSTALL,
    deployment=DEPLOYMENT,
    valid_until=1_750_600_000.5,
    install_timeout_s=3600.0,
)


def signed_desired(**changes: object) -> SignedDesired:
    """What the server signs: DESIRED with `changes`, the deployment in its envelope."""
    fields = DESIRED.model_dump(exclude={"deployment"}) | {"deployment": SIGNED_DEPLOYMENT} | changes
    return SignedDesired.model_validate(fields)


def desired_envelope(**changes: object) -> Envelope:
    """The payload of the desired topic."""
    return envelope(signed_desired(**changes), DESIRED_TYPE)


COMMAND = Command(
    fleet="home",
    device="pi-kitchen",
    enrolment_id="e1",
    command_id="c0ffee",
    name=CommandName.REPORT,
    expires=1_750_000_060.0,
)
FACTS = Facts(
    enrolment_id="e1",
    boot_id="b1",
    connection=3,
    agent_version="0.1.0",
    profile="raspberry-pi-5",
    simulated=True,
    simulated_reason="the processor is amd64, the profile's is arm64",
    machine=MachineFacts(
        architecture="amd64",
        cpu_model="Some CPU @ 2.0GHz",
        cores=2,
        memory_mib=2048,
        board=None,
        serial="10000000deadbeef",
        os="Größe Linux",
        python="3.11.7",
        runtimes={Runtime.ONNXRUNTIME: "1.22.0"},
    ),
)
ACTIVE = ActiveVariant(
    digest=MANIFEST, index_digest=INDEX, name="onnxruntime-int8", runtime="onnxruntime", precision="int8"
)
STATE = DeviceState(
    enrolment_id="e1",
    generation=1_750_000_000,
    state=State.FAILED,
    reason="self-test: it ended with exit code 1",
    active=ACTIVE,
    progress=Progress(verified_bytes=61440, total_bytes=61441),
    pulled_bytes=122_880,
    reused_bytes=61_440,
    bad_blocks=1,
)
REQUEST = Request(
    req_id="3-14",
    kind=RequestKind.BLOCKS,
    digest=BLOB,
    blocks=((0, 4), (9, 1)),
    credit_bytes=5 * 61440,
    fresh=True,
)
TRUST_REQUEST = Request(req_id="3-15", kind=RequestKind.TRUST, name="1763703600.snapshot.json")
RENEWAL = Request(req_id="3-16", kind=RequestKind.RENEW, body=b"-----BEGIN CERTIFICATE REQUEST-----\n")


def durations(*values_s: float, times: int = 1) -> Durations:
    """A window's durations in seconds, each `times` times."""
    sketch = Sketch()
    for value_s in values_s:
        sketch.add(value_s, times)
    return Durations.of(sketch)


def latency(*values_s: float, times: int = 1) -> Latency:
    """Latency of a window whose runtime took `values_s`, each `times` times; the rest took none."""
    found = durations(*values_s, times=times)
    return Latency(preprocess=durations(*[0.0] * len(values_s), times=times), inference=found, end_to_end=found)


STARTED = Stamp(boot_id="b1", monotonic_s=512.5, wall_s=1_750_000_100.25, clock=Clock.SYNCED)
WINDOW = Window(
    started=STARTED,
    duration_s=10.5,
    digest=MANIFEST,
    count=200,
    errors=1,
    latency=Latency(
        preprocess=durations(0.0, 0.000125, times=100),
        inference=durations(0.0015, 0.00225, times=100),
        end_to_end=durations(0.002, 0.0025, times=100),
    ),
    energy=MeasuredEnergy(joules=36.75, duration_s=10.25, samples=10250, scope="package"),
    thermal=Thermal(temperature_c=61.5, frequency_mhz=2400.0, throttled=False, undervoltage=False),
    cpu_share=0.125,
    memory=Memory(agent_bytes=32_000_000, worker_bytes=48_000_000),
    statistics=Statistics(
        inputs=(TensorStatistics(name="x", values=6400, not_finite=0, mean=0.5, std=0.25, min=0.0, max=1.0),),
        outputs=(TensorStatistics(name="y", values=0, not_finite=1000, mean=None, std=None, min=None, max=None),),
    ),
    accuracy=Accuracy(correct=190, labelled=200),
)
ESTIMATED_WINDOW = WINDOW.model_copy(
    update={
        "started": Stamp(boot_id="b1", monotonic_s=523.0, wall_s=1_750_000_000.0, clock=Clock.FLOOR),
        "count": 3,
        "latency": latency(0.0015, times=3),
        "accuracy": None,
        "energy": EstimatedEnergy(
            joules=46.0,
            low_j=27.5,
            high_j=120.0,
            duration_s=10.25,
            scope="board_input",
            reason="the board is simulated",
        ),
        "thermal": Thermal(reason="no sensor says"),
        "cpu_share": 0.0,
        "memory": Memory(agent_bytes=None, worker_bytes=None),
        "statistics": Statistics(),
    }
)


SPOOL = "5b00150015b00150"


def telemetry(
    seq: int, oldest_seq: int = 1, window: Window = WINDOW, enrolment_id: str = "e1", spool_id: str = SPOOL
) -> Telemetry:
    return Telemetry(
        enrolment_id=enrolment_id, spool_id=spool_id, boot_id="b1", seq=seq, oldest_seq=oldest_seq, window=window
    )


def event(seq: int, oldest_seq: int = 1, enrolment_id: str = "e1", spool_id: str = SPOOL) -> Event:
    return Event(
        enrolment_id=enrolment_id,
        spool_id=spool_id,
        boot_id="b1",
        seq=seq,
        oldest_seq=oldest_seq,
        at=1_750_000_000.0 + seq,
        kind="accepted",
        text=f"event {seq}",
    )


def online(connection: int, enrolment_id: str = "e1", *, online: bool) -> Online:
    return Online(online=online, enrolment_id=enrolment_id, connection=connection)


DECISION = DecisionRecord(
    hardware_class="h0123456789abcdef",
    index_digest=INDEX,
    objective=Objective.LATENCY,
    conditions=Conditions.LIVE,
    throttled_share=0.25,
    complete=True,
    chosen=MANIFEST,
    threads=2,
    reason="onnxruntime-int8 with 2 threads: p90 1.2 ms; the best of 2 by latency",
    command="edgefleet agent bench",
    agent_version="0.1.0",
    candidates=(
        CandidateRecord(
            digest=MANIFEST, name="onnxruntime-int8", threads=2, size_bytes=122_000, standing=Standing.CHOSEN,
            reason="p90 1.2 ms", runs=20_000, p50_s=0.001, p90_s=0.0012, low_s=0.00118, high_s=0.00122,
            inference_p90_s=0.0011, energy_j=0.004, memory_bytes=50_000_000,
        ),
        CandidateRecord(
            digest=MANIFEST, name="onnxruntime-int8", threads=4, size_bytes=122_000, standing=Standing.FAILED,
            reason="it was ended by signal 11", runs=0, p50_s=None, p90_s=None, low_s=None, high_s=None,
            inference_p90_s=None, energy_j=None, memory_bytes=None,
        ),
    ),
)  # fmt: skip
PRIOR = Prior(
    hardware_class="h0123456789abcdef",
    index_digest=INDEX,
    objective=Objective.LATENCY,
    digest=MANIFEST,
    threads=2,
    inference_p90_s=0.0011,
    devices=3,
    at=1_750_000_000.5,
)

EXAMPLES: dict[str, Message] = {
    "ack": Ack(spool_id=SPOOL, seq=42),
    "command": COMMAND,
    "decision": DECISION,
    "deployment": DEPLOYMENT,
    "desired": DESIRED,
    "desired_signed": signed_desired(),
    "device_state": STATE,
    "envelope": envelope(COMMAND, COMMAND_TYPE),
    "event": event(12, 11),
    "facts": FACTS,
    "online": online(3, online=False),
    "prior": PRIOR,
    "reply": Reply(req_id="3-1", status=Status.OK, part=1, parts=2, body=b"\x00\xff\xfe\xfb?>"),
    "request": REQUEST,
    "request_renewal": RENEWAL,
    "request_trust": TRUST_REQUEST,
    "telemetry": telemetry(13, 11),
    "telemetry_estimated": telemetry(14, 11, ESTIMATED_WINDOW),
}
