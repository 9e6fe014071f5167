"""A fleet's keys, metadata and enrolments in files, hubs that answer in memory, and an agent without a broker.

The trust process is the real one. Nothing here asserts.
"""

from __future__ import annotations

import json
import select
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edgefleet.mqtt import Outgoing
from edgefleet.package.digest import digest_of
from edgefleet.protocol.messages import DeviceState, Event, Reply, Request, RequestKind, Status
from edgefleet.protocol.signed import (
    Action,
    Command,
    CommandName,
    Deployment,
    Envelope,
    PackageVersion,
    SignedDesired,
)
from edgefleet.protocol.topics import TopicName, parse, topic_for
from edgefleet.trust import deployments, enrolment, online, setup
from edgefleet.trust.keys import KeyFolder
from edgefleet.trust.online import metadata_folder
from edgefleet.trust.repository import Repository
from edgefleet_agent import broker_link
from edgefleet_agent.agent import Agent
from edgefleet_agent.settings import Settings, load
from patience import PATIENCE_S

FLEET, DEVICE = "home", "pi-kitchen"
SETTINGS = """
profile = "generic-x86-64"
state_folder = "state"
[source]
kind = "replay"
path = "inputs.npz"
[telemetry]
window_s = 0.5
[selection]
candidates = 1
threads = [1]
[probation]
deadline_s = 1
"""


@dataclass
class Row:
    """An enrolment as the server's store has it."""

    enrolment_id: str
    revoked_at: float | None = None
    hardware_serial: str | None = None


@dataclass
class Rows:
    """The part of the server's store that enrolment needs."""

    rows: dict[str, Row] = field(default_factory=dict)

    def enrolment(self, device: str) -> Row | None:
        return self.rows.get(device)

    def transaction(self) -> AbstractContextManager[None]:
        return nullcontext()

    def add_enrolment(
        self, device: str, enrolment_id: str, not_after: float, serial_number: str, now: float, *,
        hardware_serial: str | None = None,
    ) -> None:  # fmt: skip
        assert not_after > now, serial_number
        self.rows[device] = Row(enrolment_id, hardware_serial=hardware_serial)


@dataclass
class Fleet:
    """A founded fleet below one folder."""

    folder: Path
    rows: Rows = field(default_factory=Rows)
    serial: int = 0

    @classmethod
    def found(cls, folder: Path) -> Fleet:
        folder.mkdir(parents=True, exist_ok=True)
        setup.init(FLEET, KeyFolder(folder / "keys"), folder / "data", root_keys=1, root_threshold=1)
        return cls(folder)

    def copy(self, folder: Path) -> Fleet:
        shutil.copytree(self.folder, folder)
        return Fleet(folder)

    @property
    def keys(self) -> KeyFolder:
        return KeyFolder(self.folder / "keys")

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def publish(self, release: int = 1, package: str = "digits", *, now: float | None = None) -> PackageVersion:
        """Sign a package version of its own index into the metadata."""
        index = json.dumps({"package": package, "release": release}).encode()
        digest = digest_of(index)
        version = PackageVersion(package=package, version=f"1.{release}.0", release=release, index_digest=digest)
        repository = Repository(metadata_folder(self.data))
        repository.add_target(version, index, self.keys.signer("release"), now)
        repository.publish(online.load_online(self.data), now)
        return version

    def deployment(self, target: PackageVersion, **changes: Any) -> Deployment:
        self.serial += 1
        values = {
            "deployment_id": f"{target.package}-{self.serial}", "fleet": FLEET, "serial": self.serial, "target": target,
            "selector": "all", "expires": time.time() + 1e6, **changes,
        }  # fmt: skip
        return Deployment.model_validate(values)

    def sign(self, deployment: Deployment) -> Envelope:
        return deployments.sign_deployment(deployment, self.keys.signer("operator-default"))

    def desired(self, generation: int, deployment: Deployment | Envelope, enrolment_id: str, **changes: Any) -> bytes:
        """An envelope for the desired topic."""
        signed = deployment if isinstance(deployment, Envelope) else self.sign(deployment)
        values = {
            "fleet": FLEET, "device": DEVICE, "enrolment_id": enrolment_id, "generation": generation,
            "action": Action.INSTALL, "valid_until": time.time() + 1e5, "install_timeout_s": 3600.0,
            "deployment": signed, **changes,
        }  # fmt: skip
        return online.sign_desired(SignedDesired(**values), online.load_online(self.data)).encode()

    def command(self, command_id: str, name: CommandName, enrolment_id: str, **changes: Any) -> bytes:
        """An envelope for the commands topic."""
        values = {
            "fleet": FLEET, "device": DEVICE, "enrolment_id": enrolment_id, "command_id": command_id, "name": name,
            "expires": time.time() + 60, **changes,
        }  # fmt: skip
        return online.sign_command(Command(**values), online.load_online(self.data)).encode()

    def enroll(self, folder: Path, *, tls: bool = True, port: int = 9, now: float | None = None) -> str:
        """Write an identity folder; returns the enrolment's id."""
        made = enrolment.enroll(
            self.data, self.rows, DEVICE, host="127.0.0.1", port=port, tls=tls, now=now or time.time(), again=True
        )
        made.write(folder)
        return made.enrolment_id


class Hubs:
    """Answers as the hubs do; `without` are file names that it says nothing about."""

    def __init__(self, fleet: Fleet, part_bytes: int = 1024) -> None:
        self.fleet = fleet
        self.part_bytes = part_bytes
        self.asked: list[Request] = []
        self.without: set[str] = {RequestKind.METADATA, RequestKind.BLOCKS, RequestKind.LOCATE}
        self.instead: dict[str, Callable[[Request], list[Reply]]] = {}

    def answer(self, request: Request) -> list[Reply]:
        self.asked.append(request)
        what = request.name or request.kind
        if what in self.without:
            return []
        if what in self.instead:
            return self.instead[what](request)
        if request.kind is RequestKind.RENEW:
            chain = enrolment.renew(self.fleet.data, self.fleet.rows, DEVICE, request.body, time.time())
            return self.parts(request, chain)
        path = metadata_folder(self.fleet.data) / (request.name or "")
        if request.kind is not RequestKind.TRUST or not path.exists():
            return [Reply(req_id=request.req_id, status=Status.GONE)]
        return self.parts(request, path.read_bytes())

    def parts(self, request: Request, content: bytes) -> list[Reply]:
        size = self.part_bytes
        chunks = [content[at : at + size] for at in range(0, len(content), size)] or [b""]
        return [
            Reply(req_id=request.req_id, status=Status.OK, part=number, parts=len(chunks), body=chunk)
            for number, chunk in enumerate(chunks)
        ]


class Wire:
    """Stands in for the broker connection: what is published is kept."""

    def __init__(self) -> None:
        self.connected = True
        self.taken_over = False
        self.last_failure: str | None = None
        self.sent: list[Outgoing] = []
        self.reconnects = 0

    def publish(self, message: Outgoing) -> bool:
        if self.connected:
            self.sent.append(message)
        return self.connected

    def poll(self, _timeout_s: float, _readers: object = None) -> None:
        return None

    def reconnect(self) -> None:
        self.reconnects += 1

    def close(self) -> None:
        self.connected = False


class Device:
    """An agent on a Wire, and the hubs that answer it."""

    def __init__(self, settings: Settings, hubs: Hubs, patch: pytest.MonkeyPatch) -> None:
        self.wire = Wire()
        patch.setattr(broker_link, "open_connection", lambda *_, **__: self.wire)
        self._patch = patch
        self.agent = Agent(settings)
        self.hubs = hubs
        self.enrolment_id = self.agent.own.enrolment_id
        self._seen = 0
        self.agent._restore()

    def receive(self, name: TopicName, payload: bytes, fleet: str = FLEET, device: str = DEVICE) -> None:
        topic = topic_for(fleet, name, device, sha12="0" * 12)
        self.agent._receive(topic, payload, name is TopicName.DESIRED)

    def turn(self) -> None:
        """One turn of the loop, and the hubs' answers to what it asked."""
        self.agent.tick(time.monotonic())
        new, self._seen = self.wire.sent[self._seen :], len(self.wire.sent)
        for message in new:
            address = parse(FLEET, message.topic)
            if address is not None and address.name is TopicName.REQUEST:
                for reply in self.hubs.answer(Request.decode(message.payload)):
                    self.receive(TopicName.REPLY, reply.encode())

    def until(self, ready: Callable[[], bool], what: str) -> None:
        """Turn the loop until something holds."""
        deadline = time.monotonic() + PATIENCE_S
        while not ready():
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}: not within {PATIENCE_S} s; events: {self.events()}")
            select.select(list(self.agent._readers()), [], [], 0.02)
            self.turn()

    def settle(self) -> None:
        """Turn the loop until no trust job runs or waits."""
        self.until(lambda: not self.agent._trust.sessions() and not self.agent._trust._waiting, "the trust jobs")

    def desire(self, payload: bytes) -> None:
        """Receive a desired state and wait for its verdict."""
        self.receive(TopicName.DESIRED, payload)
        self.settle()

    def events(self) -> list[tuple[str, str]]:
        self.agent._spool.restart()
        return [(message.kind, message.text) for message in self.agent._spool.due(0.0) if isinstance(message, Event)]

    def states(self) -> list[DeviceState]:
        """Every state that was published, in order."""
        topic = topic_for(FLEET, TopicName.STATE, DEVICE)
        return [DeviceState.decode(message.payload) for message in self.wire.sent if message.topic == topic]

    @property
    def generation(self) -> int:
        desired = self.agent.journal.entry.desired
        return desired.generation if desired else 0

    def forget_inference(self) -> None:
        """For a committed variant that has no files."""
        self._patch.setattr(self.agent._inference, "tick", lambda *_: None)

    def close(self) -> None:
        self.agent._shut_down()


def write_settings(folder: Path) -> Settings:
    (folder / "agent.toml").write_text(SETTINGS)
    return load(folder / "agent.toml")
