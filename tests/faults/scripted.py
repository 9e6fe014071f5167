"""An installation in this process against a hub that follows a script: virtual time, no broker, no self-test.

The hub answers from a package's blobs; what it has to say can be meddled with on the way. Nothing is asserted here.
"""

from __future__ import annotations

import random
import select
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgefleet.package.digest import BLOCK_BYTES
from edgefleet.package.layout import Package, write_package
from edgefleet.package.manifest import Golden, TensorSpec, VariantFiles, VariantSpec
from edgefleet.protocol.messages import REPLY_PART_BYTES, Reply, Request, RequestKind, State, Status
from edgefleet.protocol.signed import Action, Deployment, Desired, PackageVersion
from edgefleet.protocol.topics import PIECE_UNIT_BYTES, short_digest
from edgefleet_agent import facts
from edgefleet_agent.acquisition import Means
from edgefleet_agent.install import Install, InstallError
from edgefleet_agent.slots import Slots
from edgefleet_device_profiles.profile import Precision, Runtime

BLOCKS = 5
MODEL_BYTES = (BLOCKS - 1) * BLOCK_BYTES + 12_345
IDLE_STEP_S = 0.25
MAX_TURNS = 4000
RUNTIMES = {Runtime.ONNXRUNTIME: "1.30.0"}


def write_bytes_package(folder: Path, *, model_bytes: int = MODEL_BYTES) -> Package:
    """A package of one variant whose model is random bytes (five blocks): for everything before the self-test."""
    folder.mkdir(parents=True)
    model, golden = folder / "model.onnx", folder / "golden.npz"
    model.write_bytes(random.Random(0).randbytes(model_bytes))
    np.savez(golden, x=np.zeros(4))
    tensor = TensorSpec(name="x", dtype="float32", shape=(1, 4))
    spec = VariantSpec(
        name="onnxruntime-fp32",
        runtime=Runtime.ONNXRUNTIME,
        precision=Precision.FP32,
        runtime_version=">=1.20",
        model_file=model.name,
        inputs=(tensor,),
        outputs=(tensor,),
        golden=Golden(samples=1, tolerances={"x": 0.01}),
        architectures=("amd64",),
    )
    files = [VariantFiles(spec, (model,), golden)]
    write_package(folder / "package", name="faults", version="1.0.0", release=1, variants=files)
    return Package(folder / "package")


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message to the device: a reply, or a piece of the blob `sha12` at offset `number` × 15 KiB."""

    reply: Reply | None = None
    sha12: str = ""
    number: int = 0
    content: bytes = b""


Meddle = Callable[[Request, list[Delivery]], list[Delivery]]
"""(request, what answers it) → what arrives."""


@dataclass
class ScriptedHub:
    """Answers requests from a package, and is the host of the installation."""

    package: Package
    meddle: Meddle = lambda _request, deliveries: deliveries
    units: int = 4
    """Size of a piece in units of 15 KiB: 4, 2 or 1."""
    waiting: list[Delivery] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    delivered_bytes: int = 0
    """Bytes of pieces and of metadata."""
    touched: int = 0
    """Answers that were meddled with."""

    def request(self, request: Request) -> bool:
        """A request comes in; what answers it is meddled with and waits."""
        self.requests.append(request)
        answers = self._answer(request)
        arriving = self.meddle(request, answers)
        self.touched += arriving != answers
        self.waiting += arriving
        return True

    def next_req_id(self) -> str:
        """Unique."""
        return f"r-{len(self.requests)}-{len(self.waiting)}"

    def note(self, kind: str, text: str) -> None:
        """Record an event."""
        self.events.append(f"{kind}: {text}")

    def listen(self, sha12: str, *, wanted: bool) -> None:
        """No hub here offers shared delivery."""
        raise AssertionError(f"listens to {sha12}: {wanted}")

    def _answer(self, request: Request) -> list[Delivery]:
        if request.kind not in (RequestKind.METADATA, RequestKind.BLOCKS) or request.digest is None:
            return [Delivery(Reply(req_id=request.req_id, status=Status.GONE))]
        content = self.package.blobs.path(request.digest).read_bytes()
        if request.kind is RequestKind.METADATA:
            step = REPLY_PART_BYTES
            parts = [content[at : at + step] for at in range(0, len(content), step)] or [b""]
            return [
                Delivery(Reply(req_id=request.req_id, status=Status.OK, part=number, parts=len(parts), body=body))
                for number, body in enumerate(parts)
            ]
        blocks = [first + step for first, count in request.blocks for step in range(count)]
        return [piece for block in blocks for piece in self.pieces(request.digest, content, block)]

    def pieces(self, digest: str, content: bytes, block: int) -> list[Delivery]:
        """A block as it travels."""
        step, end = self.units * PIECE_UNIT_BYTES, min(len(content), (block + 1) * BLOCK_BYTES)
        return [
            Delivery(None, short_digest(digest), at // PIECE_UNIT_BYTES, content[at : min(at + step, end)])
            for at in range(block * BLOCK_BYTES, end, step)
        ]


@dataclass(frozen=True, slots=True)
class Ended:
    """How an installation ended: `reason` None means that its files are verified and the self-test would begin."""

    install: Install
    slots: Slots
    reason: str | None

    @property
    def digest(self) -> str:
        """The variant's manifest digest, once it was chosen."""
        return self.install.candidate.digest if self.install.candidate else ""


def desired_of(package: Package) -> Desired:
    """A desired state for it, as it is after its signatures were checked."""
    target = PackageVersion(
        package=package.name, version=package.version, release=package.release, index_digest=package.digest
    )
    deployment = Deployment(deployment_id="faults", fleet="lab", serial=1, target=target, selector="all", expires=4e9)
    return Desired(
        fleet="lab",
        device="pi-1",
        enrolment_id="0" * 16,
        generation=1,
        action=Action.INSTALL,
        deployment=deployment,
        valid_until=4e9,
        install_timeout_s=3600.0,
    )


def install(folder: Path, hub: ScriptedHub, *, max_turns: int = MAX_TURNS) -> Ended:
    """Run one installation to its end in virtual time; raises AssertionError when it does not end."""
    slots = Slots(folder)
    profile = facts.load_profile("generic-x86-64")
    running = Install(desired_of(hub.package), profile, RUNTIMES, Means(slots, hub), resumed=False)
    now = 1000.0
    try:
        for _ in range(max_turns):
            running.tick(now)
            if running.state is State.SELF_TEST:
                return Ended(running, slots, None)
            if not hub.waiting:
                # A job beside the loop may be what it waits for; else time passes.
                jobs = running.descriptors()
                select.select(jobs, [], [], 0.02 if jobs else 0.0)
                now += IDLE_STEP_S
                continue
            delivery = hub.waiting.pop(0)
            now += 0.001
            _deliver(running, hub, delivery, now)
    except InstallError as error:
        return Ended(running, slots, str(error))
    finally:
        running.close()
    raise AssertionError(f"still {running.state} after {max_turns} turns and {now - 1000.0:.0f} virtual seconds")


def _deliver(running: Install, hub: ScriptedHub, delivery: Delivery, now: float) -> None:
    if delivery.reply is not None:
        hub.delivered_bytes += len(delivery.reply.body)
        running.on_reply(delivery.reply, now)
    else:
        hub.delivered_bytes += len(delivery.content)
        running.on_piece(delivery.sha12, delivery.number, delivery.content, now)
