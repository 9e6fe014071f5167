"""A thief on the server, with every key that is there: what he tries is refused, or changes nothing, on a real device.

Broker, server and agent are real processes; the thief writes into the server's store what he wants published. What
each check refuses in detail is in tests/sdk/test_trust_desired.py.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgefleet.protocol.messages import State
from edgefleet.protocol.signed import Action, Deployment, Envelope, PackageVersion, SignedDesired
from edgefleet.server import control
from edgefleet.server.data_folder import STORE_FILE
from edgefleet.server.publishing import import_package, version_of
from edgefleet.server.store import Store
from edgefleet.trust.deployments import sign_deployment
from edgefleet.trust.keys import KeyFolder
from edgefleet.trust.online import load_online, sign_desired
from edgefleet_demo import broker as brokers
from edgefleet_demo.processes import Process, ProcessGroup
from fleet_lab import Lab, open_lab, write_lab_package

PI, OTHER = "pi-1", "pi-2"
pytestmark = pytest.mark.service


@dataclass
class Thief:
    """Holds the server's folder; of the operators he has what a test hands him."""

    lab: Lab
    first: Envelope
    """What an operator signed first: release 1."""
    second: Envelope
    """What both devices run: release 2."""
    accepted: int
    """The generation in which the device was told so."""
    unsigned: PackageVersion
    """Blobs on the server that no release key ever signed."""
    agent: Process

    def desired(self, deployment: Envelope, **changes: Any) -> Envelope:
        """Signed by the server's own key, for the device as it is enrolled now, above all generations."""
        fleet, enrolment_id = Deployment.decode(self.second.payload).fleet, self.lab.device(PI).enrolment_id
        fields: dict[str, Any] = {
            "fleet": fleet, "device": PI, "enrolment_id": enrolment_id, "generation": self.next_generation(),
            "action": Action.INSTALL, "valid_until": time.time() + 1e6, "install_timeout_s": 60.0,
            "deployment": deployment, **changes,
        }  # fmt: skip
        return sign_desired(SignedDesired(**fields), load_online(self.lab.data))

    def next_generation(self) -> int:
        """Above everything that was ever published to the device."""
        return max(self.lab.device(PI).generation, self.lab.store.desired_generations()[PI]) + 1

    def signed_by(self, keys: KeyFolder, name: str, target: PackageVersion, **changes: Any) -> Envelope:
        """A deployment of his own making, with whatever key he has."""
        made = Deployment.decode(self.second.payload)
        fields = {"deployment_id": f"stolen-{time.time_ns()}", "serial": made.serial + 1, "target": target, **changes}
        return sign_deployment(made.model_copy(update=fields), keys.signer(name))

    def operator(self, target: PackageVersion, **changes: Any) -> Envelope:
        """A deployment by a stolen operator's key."""
        return self.signed_by(self.lab.keys, "operator-default", target, **changes)

    def publish(self, envelope: Envelope) -> None:
        """Have the server publish it on the device's topic, whomever it is for."""
        row = (PI, self.next_generation(), self.lab.device(PI).enrolment_id, "stolen", envelope.encode())
        self.lab.store._db.execute("INSERT OR REPLACE INTO desired VALUES (?, ?, ?, ?, ?, NULL, NULL)", row)

    def refused(self) -> list[str]:
        """What the device said of what it refused."""
        return [text for kind, text in self.lab.store.events(PI) if kind == "refused"]

    def is_refused(self, envelope: Envelope, why: str) -> None:
        """Publish it, and wait until the device has said why it does not take it."""
        said = len(self.refused())
        self.publish(envelope)
        self.lab.wait(lambda: any(why in text for text in self.refused()[said:]), f"a refusal: {why}")


def digests(folder: Path) -> set[str]:
    return {path.name for path in (folder / "slots").iterdir()}


def is_inferring(lab: Lab, digest: str | None) -> None:
    """A window of that variant comes in that was not there before."""
    assert digest is not None
    before = lab.store.telemetry(PI, digest).windows
    lab.wait(lambda: lab.store.telemetry(PI, digest).windows > before, "a new window")


def deployment_of(lab: Lab, device: str = PI) -> Envelope:
    row = lab.store.desired(device)
    assert row is not None
    return SignedDesired.decode(row.signed.payload).deployment


@pytest.fixture(scope="module")
def _thief(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Thief | None]:
    if brokers.find_mosquitto() is None:
        yield None
        return
    folder = tmp_path_factory.mktemp("stolen")
    with ProcessGroup(folder / "logs") as group:
        lab = open_lab(folder, group, brokers.BrokerKind.MOSQUITTO)
        agents = {name: lab.start_agent(name) for name in (PI, OTHER)}
        lab.wait_for_devices(PI, OTHER)
        signed = []
        for release in (1, 2):
            package = write_lab_package(folder / f"p{release}", version=f"{release}.0", release=release, seed=release)
            assert set(lab.wait_for_outcomes(lab.deploy(package)).values()) == {State.COMMITTED}
            signed.append(deployment_of(lab))
        evil = write_lab_package(folder / "evil", version="6.6.6", release=666, seed=666)
        import_package(evil, lab.data)
        yield Thief(lab, signed[0], signed[1], lab.device(PI).generation, version_of(evil), agents[PI])


@pytest.fixture(name="thief")
def _ready(_thief: Thief | None, need: Callable[[bool, str], None]) -> Thief:
    need(_thief is not None, "mosquitto (a system package)")
    assert _thief is not None
    return _thief


def foreign_operator(thief: Thief) -> Envelope:
    keys = KeyFolder(thief.lab.folder / "foreign")
    keys.create("operator-foreign")
    return thief.desired(thief.signed_by(keys, "operator-foreign", thief.unsigned))


def of_the_other_device(thief: Thief) -> Envelope:
    row = thief.lab.store.desired(OTHER)
    assert row is not None
    return row.signed


def own_target(thief: Thief) -> Envelope:
    """The server's own key under a deployment, and under the target's name."""
    deployment = Deployment.decode(thief.second.payload).model_copy(update={"target": thief.unsigned, "serial": 2**31})
    return thief.desired(sign_deployment(deployment, load_online(thief.lab.data)))


def older_release(thief: Thief) -> Envelope:
    return thief.desired(thief.operator(Deployment.decode(thief.first.payload).target))


TRIES: dict[str, tuple[Callable[[Thief], Envelope], str]] = {
    "own target": (own_target, "0 of 1 needed"),
    "foreign operator": (foreign_operator, "0 of 1 needed"),
    "unsigned package": (lambda thief: thief.desired(thief.operator(thief.unsigned)), "no release key signed"),
    "another's content under a signed name": (
        lambda thief: thief.desired(thief.operator(thief.unsigned.model_copy(update={"version": "2.0"}))),
        "the signed lab@2.0 is another one",
    ),
    "replay to another device": (of_the_other_device, f"it is for the device {OTHER}"),
    "an older decision": (lambda thief: thief.desired(thief.first), "is below"),
    "a lower release": (older_release, "release 1 of lab is below 2"),
    "a fallback that there is not": (
        lambda thief: thief.desired(thief.second, action=Action.FALLBACK), "asks for the fallback"
    ),
    "a serial that nothing could follow": (
        lambda thief: thief.desired(thief.operator(Deployment.decode(thief.second.payload).target, serial=2**39)),
        "lies in the future",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", TRIES)
def test_with_every_key_of_the_server_nothing_is_installed(thief: Thief, what: str) -> None:
    make, why = TRIES[what]
    before, slots = thief.lab.device(PI), digests(thief.lab.state_folder(PI))
    thief.is_refused(make(thief), why)
    is_inferring(thief.lab, before.digest)
    assert (thief.lab.device(PI).digest, thief.lab.device(PI).index_digest) == (before.digest, before.index_digest)
    assert digests(thief.lab.state_folder(PI)) == slots


def test_the_same_generation_again_is_acted_on_by_nobody(thief: Thief) -> None:
    """Its words may be others: the device says again what came of the first."""
    lab, before = thief.lab, thief.lab.device(PI)
    events = len(lab.store.events(PI))
    thief.publish(thief.desired(thief.first, generation=thief.accepted))
    # Messages of a topic come in their order: when the next one was refused, this one has been judged.
    thief.is_refused(of_the_other_device(thief), "it is for the device")
    assert not [kind for kind, _ in lab.store.events(PI)[events:] if kind == "accepted"]
    is_inferring(lab, before.digest)
    assert lab.device(PI).digest == before.digest


def test_what_was_signed_for_the_former_enrolment_is_foreign_to_the_new_one(thief: Thief) -> None:
    lab = thief.lab
    thief.publish(thief.desired(thief.second))
    digest, former = lab.device(PI).digest, lab.device(PI).enrolment_id
    thief.agent.stop()
    lab.enrol(PI, again=True)
    lab.start_agent(PI)
    lab.wait(lambda: lab.device(PI).enrolment_id != former, "the hello of the new enrolment")
    lab.wait(lambda: lab.device(PI).digest == digest, "its state")
    thief.is_refused(thief.desired(thief.second, enrolment_id=former), former)
    # The order of decisions outlives the enrolment.
    thief.is_refused(thief.desired(thief.first), "is below")
    is_inferring(lab, digest)
    assert lab.device(PI).digest == digest


def test_a_restored_backup_is_harmless_and_the_next_deployment_works(lab: Lab, tmp_path: Path) -> None:
    lab.start_agent(PI)
    lab.wait_for_devices(PI)
    packages = [
        write_lab_package(tmp_path / f"p{number}", version=f"{number}.0", release=number, seed=number)
        for number in (1, 2, 3)
    ]
    assert lab.wait_for_outcomes(lab.deploy(packages[0])) == {PI: State.COMMITTED}
    lab.server.stop()
    shutil.copytree(lab.data, tmp_path / "backup")
    lab.start_server()
    assert lab.wait_for_outcomes(lab.deploy(packages[1])) == {PI: State.COMMITTED}
    digest, generation = lab.device(PI).digest, lab.device(PI).generation
    lab.server.stop()
    lab.store.close()
    shutil.rmtree(lab.data)
    shutil.copytree(tmp_path / "backup", lab.data)

    lab.store = Store(lab.data / STORE_FILE)
    lab.start_server()
    lab.wait(lambda: lab.device(PI).online and lab.device(PI).generation == generation, "the device's own state")
    # The server knows nothing of release 2; the device goes on with it, and its telemetry is taken.
    assert lab.store.desired_generations()[PI] < generation
    is_inferring(lab, digest)
    assert lab.device(PI).digest == digest
    operator = lab.keys.signer("operator-default")
    _, back = control.deploy(lab.store, lab.data, version_of(packages[0]), PI, operator, time.time())
    assert lab.wait_for_outcomes(back) == {PI: State.FAILED}
    assert lab.device(PI).digest == digest
    assert lab.wait_for_outcomes(lab.deploy(packages[2])) == {PI: State.COMMITTED}
    assert lab.device(PI).digest != digest
