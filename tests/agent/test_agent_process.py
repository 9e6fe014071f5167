"""The agent as a process: over mutual TLS on a real mosquitto under wrong clocks, and alone for 400 days."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import fake_clock
from agent.agent_lab import DEVICE, FLEET, Fleet, write_settings
from edgefleet import identity as identities
from edgefleet.mqtt import BrokerAddress, Connection, Identity, Tls
from edgefleet.package.layout import Package
from edgefleet.protocol.messages import ActiveVariant, State
from edgefleet.protocol.signed import Action, Desired, PackageVersion
from edgefleet.protocol.topics import SERVER_USER
from edgefleet.trust import broker
from edgefleet_agent.journal import Enrolment
from edgefleet_agent.slots import MANIFEST_FILE, file_name, layers_to_pull
from edgefleet_agent.state_folder import Installed, open_folder, record_installed
from edgefleet_demo.processes import EDGEFLEET, Process, ProcessGroup, free_port
from fleet_lab import write_lab_package
from patience import PATIENCE_S

PATH = f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"


@pytest.fixture(name="group")
def _group(tmp_path: Path) -> Iterator[ProcessGroup]:
    (tmp_path / "logs").mkdir()
    with ProcessGroup(tmp_path / "logs") as group:
        yield group


def tool(need: Callable[[bool, str], None], name: str) -> str:
    found = shutil.which(name, path=PATH)
    need(found is not None, name)
    assert found is not None
    return found


def start_broker(home: Fleet, folder: Path, group: ProcessGroup, mosquitto: str) -> int:
    port = free_port()
    configuration = broker.write(
        home.data, folder, FLEET, hosts=("127.0.0.1",), port=port, user=getpass.getuser(), now=time.time(),
        listen="127.0.0.1",
    )  # fmt: skip
    group.start("broker", (mosquitto, "-c", str(configuration)))
    return port


def run_agent(folder: Path, group: ProcessGroup, *before: str, label: str = "agent") -> Process:
    if not (folder / "inputs.npz").exists():
        rng = np.random.default_rng(2)
        np.savez(folder / "inputs.npz", x=rng.random((8, 1, 8, 8), dtype=np.float32))
    write_settings(folder)
    return group.start(label, (*before, *EDGEFLEET, "agent", "run", "--config", str(folder / "agent.toml")))


def until(ready: Callable[[], bool], process: Process) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not ready():
        said = process.log_file.read_text()
        assert time.monotonic() < deadline, said
        assert process.exit_code is None, said
        time.sleep(0.02)


class Listener:
    """The server's place at the broker: hears what the device says."""

    def __init__(self, home: Fleet, port: int) -> None:
        pki = home.data / "pki"
        self.heard: list[str] = []
        self.connection = Connection(
            BrokerAddress("127.0.0.1", port), Identity(SERVER_USER, SERVER_USER),
            [(f"edgefleet/1/{FLEET}/d/+/online", 1)],
            on_message=lambda _topic, payload, _retained: self.heard.append(payload.decode()),
            on_connected=lambda: None,
            tls=Tls(pki / "root-ca.crt", pki / f"{SERVER_USER}.crt", pki / f"{SERVER_USER}.key"),
        )  # fmt: skip

    def hears_online(self) -> bool:
        self.connection.poll(0.02)
        return any(json.loads(payload)["online"] for payload in self.heard)


def test_with_a_clock_of_2021_it_connects(
    home: Fleet, tmp_path: Path, group: ProcessGroup, need: Callable[[bool, str], None]
) -> None:
    port = start_broker(home, tmp_path / "broker", group, tool(need, "mosquitto"))
    home.enroll(tmp_path / "identity", port=port)
    agent = run_agent(tmp_path, group, *fake_clock.behind(need, "@2021-03-01 00:00:00"))
    listener = Listener(home, port)
    until(listener.hears_online, agent)
    listener.connection.close()


def test_with_a_clock_of_2040_it_says_why_in_one_line_and_goes_on(
    home: Fleet, tmp_path: Path, group: ProcessGroup, need: Callable[[bool, str], None]
) -> None:
    port = start_broker(home, tmp_path / "broker", group, tool(need, "mosquitto"))
    home.enroll(tmp_path / "identity", port=port)
    agent = run_agent(tmp_path, group, *fake_clock.behind(need, "@2040-03-01 00:00:00"))
    until(lambda: "2040-03-01" in agent.log_file.read_text(), agent)
    (line, *_) = [line for line in agent.log_file.read_text().splitlines() if "2040-03-01" in line]
    assert f"127.0.0.1:{port}" in line
    assert "expired" in line
    assert "clock" in line


def commit_variant(home: Fleet, folder: Path) -> None:
    """A state folder as an installation leaves it, with a variant that ONNX Runtime runs."""
    own = identities.load(folder / "identity")
    enrolment = Enrolment(fleet=own.fleet, device=own.device, enrolment_id=own.enrolment_id)
    package = write_lab_package(folder / "package")
    version = home.publish()
    deployment = home.deployment(version)
    desired = Desired(
        fleet=FLEET, device=DEVICE, enrolment_id=own.enrolment_id, generation=5, action=Action.INSTALL,
        valid_until=time.time() + 60, install_timeout_s=60.0, deployment=deployment,
    )  # fmt: skip
    put_into_slot(folder / "state", package, enrolment, desired, version)


def put_into_slot(
    state_folder: Path, package: Package, enrolment: Enrolment, desired: Desired, version: PackageVersion
) -> None:
    state = open_folder(state_folder, enrolment)
    digest = next(entry.digest for entry in package.index.manifests)
    spec = package.spec(package.manifest(digest))
    active = ActiveVariant(
        digest=digest, index_digest=version.index_digest, name=spec.name, runtime=spec.runtime, precision=spec.precision
    )
    slot = state.slots.path(digest)
    slot.mkdir()
    for layer in layers_to_pull(package.manifest(digest)):
        shutil.copyfile(package.blobs.path(layer.digest), slot / file_name(layer))
    (slot / MANIFEST_FILE).write_bytes(package.blobs.read(digest, doing="testing"))
    record_installed(state.slots, Installed(enrolment=enrolment, desired=desired, active=active))
    state.slots.activate(digest)
    state.journal.record(
        state=State.COMMITTED, active=active, running=version, desired=desired, deployment=desired.deployment
    )
    state.lock.close()


def spooled(folder: Path, text: str) -> int:
    """Messages in the spool whose kind is `text` or whose body holds it; 0 while there is no spool yet."""
    query = "SELECT count(*) FROM messages WHERE kind = ? OR body LIKE ?"
    try:
        with sqlite3.connect(f"file:{folder / 'state' / 'spool.sqlite'}?mode=ro", uri=True) as db:
            (found,) = db.execute(query, (text, f'%"{text}"%')).fetchone()
    except sqlite3.OperationalError:
        return 0
    return int(found)


@pytest.mark.parametrize("journal", ["whole", "damaged"])
def test_alone_and_400_days_later_it_still_infers(
    home: Fleet, tmp_path: Path, group: ProcessGroup, need: Callable[[bool, str], None], journal: str
) -> None:
    """No broker, every certificate and all metadata expired, a reboot: the committed slot runs from its digests."""
    home.enroll(tmp_path / "identity", port=free_port())
    commit_variant(home, tmp_path)
    if journal == "damaged":
        (tmp_path / "state" / "journal.json").write_bytes(b"")
    agent = run_agent(tmp_path, group, *fake_clock.behind(need, "+400d"))
    until(lambda: spooled(tmp_path, "window") > 0, agent)
    assert "Connection refused" in agent.log_file.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_is_no_strike(
    home: Fleet, tmp_path: Path, group: ProcessGroup, number: signal.Signals
) -> None:
    """As a terminal's Ctrl-C and timeout(1) send it: the agent ends its worker, and says nothing against it."""
    home.enroll(tmp_path / "identity", port=free_port())
    commit_variant(home, tmp_path)
    agent = run_agent(tmp_path, group, "setsid")
    until(lambda: spooled(tmp_path, "window") > 0, agent)
    os.killpg(agent.pid, number)
    assert agent.wait(PATIENCE_S) == 0
    said = agent.log_file.read_text()
    assert "Traceback" not in said
    assert spooled(tmp_path, "worker_ended") == 0, said


def test_two_machines_with_one_identity_say_so_and_neither_ends(
    home: Fleet, tmp_path: Path, group: ProcessGroup, need: Callable[[bool, str], None]
) -> None:
    port = start_broker(home, tmp_path / "broker", group, tool(need, "mosquitto"))
    folders = [tmp_path / name for name in ("first", "second")]
    home.enroll(folders[0] / "identity", port=port)
    shutil.copytree(folders[0] / "identity", folders[1] / "identity")
    agents = [run_agent(folder, group, label=folder.name) for folder in folders]
    until(lambda: any(spooled(folder, "taken_over") for folder in folders), agents[0])
    lines = [line for agent in agents for line in agent.log_file.read_text().splitlines() if "taken_over" in line]
    assert all("another client may be using the same name" in line for line in lines)
    assert [agent.exit_code for agent in agents] == [None, None]
