"""Broker, hub and server killed while devices pull; slow, greedy and hostile peers; a blob withdrawn in mid-pull.

Each fleet here limits the rate, so that there is a middle to hit. Nothing is asserted of time.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import fake_clock
from edgefleet import identity
from edgefleet.mqtt import BrokerAddress, Connection, Identity, Outgoing, Tls
from edgefleet.package.digest import BLOCK_BYTES, block_count
from edgefleet.package.layout import Package
from edgefleet.package.manifest import Layer
from edgefleet.protocol import topics
from edgefleet.protocol.messages import Reply, Request, RequestKind, Status
from edgefleet.protocol.topics import PIECE_UNIT_BYTES, TOPICS, TopicName
from edgefleet.trust import pki
from edgefleet_demo import scene
from faults.matrix import sampled
from faults.patient import Patient
from fleet_lab import Lab, LabOpener, write_lab_package
from patience import PATIENCE_S

HIDDEN = 5000  # 1.5 MB: 25 blocks
SLOW_MB_PER_S = 0.6
YEAR_S = 365 * 86400
AGAIN_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Kill:
    """Who is killed, and at which share of the pull."""

    who: tuple[str, ...]
    share: float

    def __str__(self) -> str:
        return f"{' and '.join(self.who)} at {self.share:.0%}"


WHO = [
    ("broker",), ("hub",), ("broker", "hub"), ("hub for 5 s",), ("broker", "hub for 5 s"), ("server",),
    ("broker", "server"), ("broker", "device"),
]  # fmt: skip
KILLS = [Kill(who, share) for who in WHO for share in (0.0, 0.1, 0.5, 0.9)]


def hub_of(lab: Lab) -> int:
    """Process id of the server's hub."""
    command = ["pgrep", "-P", str(lab.server.pid), "-f", "edgefleet.cli hub"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(found.stdout.split()[0])


def kill(who: str, lab: Lab, patient: Patient) -> Callable[[], object]:
    """SIGKILL; returns what starts it again."""
    if who == "broker":
        lab.broker_process.kill()
        return lambda: setattr(lab, "broker_process", lab.broker.start(lab.group))
    if who == "server":
        lab.server.kill()
        return lab.start_server
    if who == "device":
        patient.stop()
        return patient.start
    hub = hub_of(lab)
    if who == "hub for 5 s":
        # Its server would start another at once: this one stands still, and is killed 5 s later.
        os.kill(hub, signal.SIGSTOP)
        return lambda: kill_later(hub)
    os.kill(hub, signal.SIGKILL)
    return lambda: None  # the server starts it again


def kill_later(process: int) -> None:
    """SIGKILL after 5 s."""
    time.sleep(5)
    os.kill(process, signal.SIGKILL)


def pulled(lab: Lab, name: str) -> float:
    """Share of the pull that is verified."""
    row = lab.device(name)
    return (row.verified_bytes or 0) / row.total_bytes if row.total_bytes else 0.0


@pytest.mark.parametrize("case", sampled("processes", KILLS))
def test_killed_in_mid_pull(case: Kill, lab_opener: LabOpener, tmp_path: Path) -> None:
    lab = lab_opener(rate_limit_mb_per_s=SLOW_MB_PER_S)
    patient = Patient(lab, "pi-1")
    patient.start()
    package = write_lab_package(tmp_path / "package", hidden=HIDDEN)
    generation = patient.deploy(package)
    lab.wait(lambda: case.share == 0.0 or pulled(lab, patient.name) >= case.share, f"{case.share:.0%} of the pull")
    for again in [kill(who, lab, patient) for who in case.who]:
        again()
    assert patient.outcome(generation) == "committed"
    patient.assert_committed(package, again_bytes=AGAIN_BYTES)


def test_a_slow_device_holds_up_nobody(lab_opener: LabOpener, tmp_path: Path) -> None:
    lab = lab_opener()
    fast, slow = [Patient(lab, name) for name in ("pi-1", "pi-2", "pi-3")], Patient(lab, "pi-slow")
    for each in [*fast, slow]:
        each.start()
    agent = slow.agent
    assert agent is not None
    generations = lab.deploy(write_lab_package(tmp_path / "package", hidden=HIDDEN))
    # It takes nothing at all: the broker's and the hub's buffers fill.
    os.kill(agent.pid, signal.SIGSTOP)
    slow_generation = generations.pop(slow.name)
    assert set(lab.wait_for_outcomes(generations).values()) == {"committed"}
    assert lab.store.outcome(slow.name, slow_generation) is None
    os.kill(agent.pid, signal.SIGCONT)
    assert slow.outcome(slow_generation) == "committed"


def test_a_thousand_requests_a_second_from_one_device(lab_opener: LabOpener, tmp_path: Path) -> None:
    lab = lab_opener()
    package = write_lab_package(tmp_path / "package", hidden=HIDDEN)
    patient = Patient(lab, "pi-1")
    patient.start()
    answers: list[Status] = []

    def hear(topic: str, payload: bytes, _retained: bool) -> None:
        address = topics.parse(scene.FLEET, topic)
        if address is not None and address.name is TopicName.REPLY:
            answers.append(Reply.decode(payload).status)

    greedy = lab.connect("greedy", on_message=hear)
    generation = patient.deploy(package)
    sent, deadline = 0, time.monotonic() + PATIENCE_S
    while lab.store.outcome(patient.name, generation) is None or sent < 3000:
        assert time.monotonic() < deadline
        for _ in range(20):
            sent += 1
            request = Request(req_id=f"g-{sent}", kind=RequestKind.METADATA, digest=package.digest)
            topic = topics.topic_for(scene.FLEET, TopicName.REQUEST, "greedy")
            greedy.publish(Outgoing(topic, request.encode(), TOPICS[TopicName.REQUEST].qos, retained=False))
        greedy.poll(0.01)
    greedy.close()
    assert patient.outcome(generation) == "committed"
    patient.assert_committed(package)
    # Most were not served at all: neither with the blob nor with a refusal each.
    assert answers.count(Status.OK) < sent / 4
    assert answers.count(Status.BUSY) < sent / 20
    assert Status.BUSY in answers


def test_a_blob_withdrawn_in_mid_pull(lab_opener: LabOpener, tmp_path: Path) -> None:
    lab = lab_opener(rate_limit_mb_per_s=SLOW_MB_PER_S)
    patient = Patient(lab, "pi-1")
    patient.start()
    first = write_lab_package(tmp_path / "first")
    assert patient.outcome(patient.deploy(first)) == "committed"
    newer = write_lab_package(tmp_path / "newer", hidden=HIDDEN, version="2.0.0", release=2)
    generation = patient.deploy(newer)
    lab.wait(lambda: 0.1 < pulled(lab, patient.name) < 1, "a tenth of the pull")
    model = model_of(newer)
    (lab.data / "blobs" / "sha256" / model.removeprefix("sha256:")).unlink()
    assert patient.outcome(generation) == "failed"
    patient.assert_refused(first, "gone", generation)


def model_of(package: Package) -> str:
    """Digest of the model's layer."""
    manifest = package.manifest(package.index.manifests[0].digest)
    return next(layer.digest for layer in manifest.layers if layer.media_type == Layer.MODEL)


def test_a_hub_that_lies_loads_nothing(lab_opener: LabOpener, tmp_path: Path) -> None:
    """A stolen hub identity: wrong bytes under the right names, for as long as it likes."""
    lab = lab_opener(rate_limit_mb_per_s=SLOW_MB_PER_S)
    patient = Patient(lab, "pi-1")
    patient.start()
    first = write_lab_package(tmp_path / "first")
    assert patient.outcome(patient.deploy(first)) == "committed"
    newer = write_lab_package(tmp_path / "newer", hidden=HIDDEN, version="2.0.0", release=2)
    liar = _as_hub(lab, "edgefleet-hub-2")
    rng, sha12 = random.Random(3), topics.short_digest(model_of(newer))
    size = newer.blobs.path(model_of(newer)).stat().st_size
    generation, deadline = patient.deploy(newer), time.monotonic() + PATIENCE_S
    while lab.store.outcome(patient.name, generation) is None:
        assert time.monotonic() < deadline
        number = rng.randrange(block_count(size)) * 4
        topic = topics.topic_for(scene.FLEET, TopicName.BLOCKS, patient.name, sha12=sha12, piece=number)
        liar.publish(Outgoing(topic, rng.randbytes(4 * PIECE_UNIT_BYTES), 0, retained=False))
        liar.poll(0.002)
    liar.close()
    assert patient.outcome(generation) == "failed"
    patient.assert_refused(first, "damaged", generation)
    assert patient.outcome(patient.deploy(newer)) == "committed"
    patient.assert_committed(newer, again_bytes=AGAIN_BYTES)


def _as_hub(lab: Lab, name: str) -> Connection:
    certificate, key = pki.ensure_service(lab.data, name, time.time())
    ca_file = identity.load(lab.home("pi-1") / "identity").ca_file
    connection = Connection(
        BrokerAddress("127.0.0.1", lab.broker.port),
        Identity(name, name),
        [],
        on_message=lambda *_: None,
        on_connected=lambda: None,
        tls=Tls(ca_file, certificate, key),
    )
    connection.connect_now()
    return connection


@pytest.mark.parametrize("when", ["over a power cut", "while it pulls"])
def test_the_clock_jumps_back_a_year(
    when: str, lab_opener: LabOpener, tmp_path: Path, need: Callable[[bool, str], None]
) -> None:
    """As without a battery, or by hand: TLS, trust, installation and telemetry go on."""
    lab = lab_opener(rate_limit_mb_per_s=SLOW_MB_PER_S)
    patient = Patient(lab, "pi-1")
    prefix, clock = fake_clock.following(tmp_path)
    agent = patient.start(*prefix)
    first = write_lab_package(tmp_path / "first")
    assert patient.outcome(patient.deploy(first)) == "committed"
    newer = write_lab_package(tmp_path / "newer", hidden=HIDDEN, version="2.0.0", release=2)
    generation = patient.deploy(newer)
    lab.wait(lambda: 0.1 < pulled(lab, patient.name) < 1, "a tenth of the pull")
    if when == "while it pulls":
        clock.write_text(str(-YEAR_S))
    else:
        patient.stop()
        agent = patient.start(*fake_clock.behind(need, "-365d"))
    assert patient.outcome(generation) == "committed"
    third = write_lab_package(tmp_path / "third", version="3.0.0", release=3, seed=3)
    assert patient.outcome(patient.deploy(third)) == "committed"
    patient.assert_committed(third)
    # Each line of the log begins with the date as the agent knows it.
    said = agent.log_file.read_text().splitlines()[-1]
    assert said.startswith(time.strftime("%Y-%m-%d", time.localtime(time.time() - YEAR_S)))


@pytest.mark.full
@pytest.mark.parametrize("jump_s", [YEAR_S, -YEAR_S], ids=["forward", "back"])
def test_the_clock_jumps_on_probation(
    jump_s: int, first: Package, package: Package, patient: Patient, tmp_path: Path
) -> None:
    """Its limit is an hour of running time: it is neither over at once nor drawn out, but judged by what was seen."""
    prefix, clock = fake_clock.following(tmp_path)
    patient.start(*prefix)
    assert patient.outcome(patient.deploy(first)) == "committed"
    patient.stop()
    patient.probation_s = 3600.0
    patient.start(*prefix)
    generation = patient.deploy(package)
    patient.lab.wait(lambda: patient.state_of(generation) == "probation", "the probation")
    clock.write_text(str(jump_s))
    assert patient.outcome(generation) == "committed"
    patient.assert_committed(package)
    spent_s = json.loads((patient.state / "journal.json").read_text())["probation_s"]
    assert 0 <= spent_s < patient.probation_s / 10


@pytest.mark.full
def test_a_committed_slot_that_is_damaged_between_two_starts(package: Package, patient: Patient) -> None:
    """Nobody deploys anything: the agent pulls it again by itself, the damaged block of it alone."""
    patient.start()
    generation = patient.deploy(package)
    assert patient.outcome(generation) == "committed"
    patient.stop()
    model = next(patient.state.glob("slots/*/model.onnx"))
    model.write_bytes(b"?" + model.read_bytes()[1:])
    sent = patient.lab.settled_sent_bytes(patient.name)
    patient.start()
    patient.lab.wait(lambda: patient.has_said("restored"), "the variant to be pulled again")
    assert patient.state_of(generation) == "committed"
    patient.assert_committed(package)
    assert 0 < patient.lab.settled_sent_bytes(patient.name) - sent <= 2 * BLOCK_BYTES
