"""A device that installs one package version up to its self-test: the agent's own `Install` on a real connection.

It is the agent's code path for metadata, requests, credit, pieces, sha256 of each block, write, fsync and rename,
without acceptance, trust, worker and telemetry. As a program it says `ready` once connected, waits for a line,
installs, and prints one JSON line; what happens on the way (`lost`, `connected`, `piece` after a silence) is printed
with the monotonic time, which all processes of a machine share.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from edgefleet.mqtt import BrokerAddress, Connection, Identity, Outgoing, Tls
from edgefleet.protocol import topics
from edgefleet.protocol.messages import Reply, Request, RequestKind, State, Status
from edgefleet.protocol.signed import Action, Deployment, Desired, PackageVersion
from edgefleet.protocol.topics import TOPICS, Role, TopicName
from edgefleet_agent import acquisition, facts
from edgefleet_agent.acquisition import Means
from edgefleet_agent.install import Install, InstallError
from edgefleet_agent.slots import Slots
from edgefleet_device_profiles.profile import Runtime

POLL_S = 0.1
SILENCE_S = 1.0
PROFILE = "generic-x86-64"
FAR_FUTURE = 4e9


@dataclass(frozen=True, slots=True)
class Plan:
    """What to install, as whom, from where."""

    fleet: str
    device: str
    host: str
    port: int
    index_digest: str
    folder: str
    """State folder; slots are made in it."""
    identity: str | None = None
    """Folder with the device's key and certificate; None means plain TCP."""


@dataclass(slots=True)
class Outcome:
    """What it took, from the reservation of the disk to the slot whose files are all verified."""

    kind: str = "done"
    state: str = ""
    reason: str | None = None
    seconds: float = 0.0
    pull_s: float = 0.0
    """Of these, until the last block was verified."""
    verified_bytes: int = 0
    received_bytes: int = 0
    reused_bytes: int = 0
    bad_blocks: int = 0
    requests: dict[str, int] = field(default_factory=dict)
    refusals: dict[str, int] = field(default_factory=dict)
    cpu_s: float = 0.0
    at: float = 0.0


class _NoSelfTest:
    """Random bytes are no model: no child process is started for them."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def stop(self) -> None: ...


vars(acquisition)["SelfTest"] = _NoSelfTest


class Device:
    """One device: a connection and one installation; whoever owns it polls."""

    def __init__(self, plan: Plan, said: Callable[[str], None] = lambda _kind: None) -> None:
        """`said` hears `lost`, `connected`, `piece` for the first one after a silence, and refusals by their status."""
        self.plan = plan
        self.install: Install | None = None
        self.outcome = Outcome()
        self._said = said
        self._requests = 0
        self._piece_at = 0.0
        self._was_connected = False
        self._began = self._cpu = 0.0
        tls = None
        if plan.identity is not None:
            home = Path(plan.identity)
            tls = Tls(home / "ca.crt", home / "device.crt", home / "device.key")
        self.connection = Connection(
            BrokerAddress(plan.host, plan.port),
            Identity(plan.device, plan.device),
            topics.filters_read_by(Role.DEVICE, plan.fleet, plan.device),
            on_message=self._receive,
            on_connected=self._connected,
            tls=tls,
        )

    def begin(self) -> None:
        """Begin the installation."""
        profile = facts.load_profile(PROFILE)
        slots = Slots(Path(self.plan.folder))
        runtimes = {Runtime.ONNXRUNTIME: "1.30.0"}
        self.install = Install(_desired(self.plan), profile, runtimes, Means(slots, self), resumed=False)

    @property
    def done(self) -> bool:
        """The files are verified, or it failed."""
        return bool(self.outcome.state)

    def tick(self) -> None:
        """One turn, after the connection was polled."""
        if self._was_connected and not self.connection.connected:
            self._was_connected = False
            self._said("lost")
        install = self.install
        if install is None or self.done:
            return
        try:
            install.tick(time.monotonic())
        except InstallError as error:
            self.outcome.reason = str(error)
            self._end(State.FAILED)
            return
        if install.state is State.DOWNLOADING and not self._began:
            self._began, self._cpu = time.perf_counter(), time.process_time()
        if install.state is State.VERIFYING and not self.outcome.pull_s:
            self.outcome.pull_s = time.perf_counter() - self._began
        if install.state is State.SELF_TEST:
            self._end(install.state)

    def descriptors(self) -> dict[int, Callable[[], None]]:
        """What else wakes the loop."""
        descriptors = [] if self.install is None else self.install.descriptors()
        return dict.fromkeys(descriptors, _nothing)

    def _end(self, state: State) -> None:
        outcome, install = self.outcome, self.install
        if install is None:
            return
        outcome.state = str(state)
        outcome.seconds = time.perf_counter() - self._began
        outcome.pull_s = outcome.pull_s or outcome.seconds
        outcome.cpu_s = time.process_time() - self._cpu
        outcome.at = time.monotonic()
        outcome.received_bytes = install.pulled_bytes
        outcome.reused_bytes = install.reused_bytes
        outcome.bad_blocks = install.bad_blocks
        outcome.verified_bytes = install.progress.verified_bytes if install.progress else 0
        install.close()

    # What an installation needs of its agent ----------------------------------------------------------

    def request(self, request: Request) -> bool:
        """Send a request to the hubs."""
        topic = topics.topic_for(self.plan.fleet, TopicName.REQUEST, self.plan.device)
        qos = TOPICS[TopicName.REQUEST].qos
        sent = self.connection.publish(Outgoing(topic, request.encode(), qos, retained=False))
        kind = RequestKind(request.kind).value
        self.outcome.requests[kind] = self.outcome.requests.get(kind, 0) + sent
        return sent

    def listen(self, sha12: str, *, wanted: bool) -> None:
        """Subscribe to a blob's shared topic, or leave it."""
        shared = topics.filter_for(self.plan.fleet, TopicName.SHARED, sha12=sha12)
        if wanted:
            self.connection.subscribe([(shared, TOPICS[TopicName.SHARED].qos)])
        else:
            self.connection.unsubscribe([shared])

    def next_req_id(self) -> str:
        """Unique over restarts of this process."""
        self._requests += 1
        return f"{time.monotonic_ns()}-{self._requests}"

    def note(self, kind: str, text: str) -> None:
        """Events go nowhere here."""

    def _connected(self) -> None:
        self._was_connected = True
        self._said("connected")
        if self.install is not None:
            self.install.on_connected()

    def _receive(self, topic: str, payload: bytes, _retained: bool) -> None:
        address, install = topics.parse(self.plan.fleet, topic), self.install
        if address is None or install is None or self.done:
            return
        now = time.monotonic()
        try:
            if address.name is TopicName.REPLY:
                reply = Reply.decode(payload)
                if reply.status is not Status.OK:
                    self.outcome.refusals[reply.status] = self.outcome.refusals.get(reply.status, 0) + 1
                    self._said(reply.status)
                install.on_reply(reply, now)
            elif (
                address.name in (TopicName.BLOCKS, TopicName.SHARED)
                and address.sha12 is not None
                and address.piece is not None
            ):
                if now - self._piece_at > SILENCE_S:
                    self._said("piece")
                self._piece_at = now
                install.on_piece(address.sha12, address.piece, payload, now)
        except InstallError as error:
            self.outcome.reason = str(error)
            self._end(State.FAILED)


def _nothing() -> None:
    """The descriptor only wakes the loop."""


def _desired(plan: Plan) -> Desired:
    version = PackageVersion(package="benchmark", version="1.0.0", release=1, index_digest=plan.index_digest)
    deployment = Deployment(
        deployment_id="benchmark", fleet=plan.fleet, serial=1, target=version, selector="all", expires=FAR_FUTURE
    )
    return Desired(
        fleet=plan.fleet,
        device=plan.device,
        enrolment_id="0" * 16,
        generation=1,
        action=Action.INSTALL,
        deployment=deployment,
        valid_until=FAR_FUTURE,
        install_timeout_s=3600.0,
    )


def say(kind: str) -> None:
    """One line for whoever started us."""
    print(json.dumps({"kind": kind, "at": time.monotonic()}), flush=True)


def main(plan: Plan) -> None:
    """The device process."""
    device = Device(plan, say)
    while not device.connection.connected:
        device.connection.poll(POLL_S)
    print("ready", flush=True)
    sys.stdin.readline()
    device.begin()
    while not device.done:
        device.tick()
        device.connection.poll(POLL_S, device.descriptors())
    print(json.dumps(asdict(device.outcome)), flush=True)
    device.connection.close()


if __name__ == "__main__":
    main(Plan(**json.loads(sys.argv[1])))
