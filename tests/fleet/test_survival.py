"""What must not bring a fleet down: hostile messages, dying workers, newer decisions, damaged blobs, restarts."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from edgefleet.mqtt import Outgoing
from edgefleet.protocol import topics
from edgefleet.protocol.topics import TopicName
from edgefleet_demo import scene
from fleet_lab import Lab, LabOpener, write_lab_package

LARGE = 32_768


def committed(lab: Lab, tmp_path: Path, name: str = "pi-1") -> str:
    """Start an agent, give it a variant, and return the variant's digest."""
    lab.start_agent(name)
    lab.wait_for_devices(name)
    assert lab.wait_for_outcomes(lab.deploy(write_lab_package(tmp_path / "first"), name)) == {name: "committed"}
    return str(lab.device(name).digest)


def next_window(lab: Lab, digest: str, name: str = "pi-1") -> None:
    before = lab.store.telemetry(name, digest).windows
    lab.wait(lambda: lab.store.telemetry(name, digest).windows > before, "a new window")


def worker_of(agent_pid: int) -> int:
    """Process id of the one worker below an agent; 0 when there is none."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            command = (path.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == agent_pid and b"edgefleet_agent.worker" in command:
            return int(path.parent.name)
    return 0


def is_alive(pid: int) -> bool:
    """Running or stopped; a zombie is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("name", "payload"),
    [
        (TopicName.ONLINE, {"online": True, "enrolment_id": "x", "connection": 10**20}),
        (TopicName.STATE, {"enrolment_id": "x", "generation": 2**63 - 1, "state": "idle"}),
        (TopicName.STATE, {"enrolment_id": "x", "generation": 1, "state": "no such state"}),
        (TopicName.TELEMETRY, {"enrolment_id": "x", "spool_id": "y", "boot_id": "b", "seq": 10**30}),
        (TopicName.REQUEST, {"req_id": "r", "kind": "blocks", "digest": "sha256:" + "0" * 64, "blocks": [[0, 10**9]]}),
        (TopicName.FACTS, [1, 2, 3]),
        (TopicName.EVENTS, "\0"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_hostile_device_does_not_stop_the_server(lab: Lab, tmp_path: Path, name: TopicName, payload: object) -> None:
    hostile = lab.connect("evil")
    topic = topics.topic_for(scene.FLEET, name, "evil")
    assert hostile.publish(Outgoing(topic, json.dumps(payload).encode(), 1, retained=True))
    hostile.poll(0.2)
    digest = committed(lab, tmp_path)
    lab.server.kill()
    lab.start_server()
    next_window(lab, digest)
    assert lab.server.exit_code is None
    hostile.close()


def test_a_killed_worker_is_replaced_and_said(lab: Lab, tmp_path: Path) -> None:
    agent = lab.start_agent("pi-1")
    lab.wait_for_devices("pi-1")
    lab.wait_for_outcomes(lab.deploy(write_lab_package(tmp_path / "p")))
    digest = str(lab.device("pi-1").digest)
    next_window(lab, digest)
    os.kill(worker_of(agent.pid), signal.SIGKILL)
    next_window(lab, digest)
    assert ("worker_ended", "it was ended by signal 9") in lab.store.events("pi-1")
    assert agent.exit_code is None


def test_no_worker_outlives_its_agent(lab: Lab, tmp_path: Path) -> None:
    agent = lab.start_agent("pi-1")
    lab.wait_for_devices("pi-1")
    lab.wait_for_outcomes(lab.deploy(write_lab_package(tmp_path / "p")))
    next_window(lab, str(lab.device("pi-1").digest))
    worker = worker_of(agent.pid)
    os.kill(worker, signal.SIGSTOP)  # as if it hung in its runtime
    agent.kill()
    lab.wait(lambda: not is_alive(worker), "the worker's end")


def test_a_newer_decision_replaces_a_pull_under_way(lab_opener: LabOpener, tmp_path: Path) -> None:
    lab = lab_opener(rate_limit_mb_per_s=3.0)
    lab.start_agent("pi-1")
    lab.wait_for_devices("pi-1")
    first = lab.deploy(write_lab_package(tmp_path / "large", hidden=LARGE))
    lab.wait(lambda: (lab.device("pi-1").verified_bytes or 0) > 0, "the first blocks")
    second = lab.deploy(write_lab_package(tmp_path / "small", version="2.0.0", release=2, seed=5))
    assert second["pi-1"] > first["pi-1"]
    assert lab.wait_for_outcomes(second) == {"pi-1": "committed"}
    staging = lab.state_folder("pi-1") / "staging"
    lab.wait(lambda: not list(staging.iterdir()), "what was half pulled to be removed")


def test_deploying_what_runs_costs_no_bytes(lab: Lab, tmp_path: Path) -> None:
    digest = committed(lab, tmp_path)
    sent = lab.settled_sent_bytes("pi-1")
    again = lab.deploy(write_lab_package(tmp_path / "again"))
    assert lab.wait_for_outcomes(again) == {"pi-1": "committed"}
    row = lab.device("pi-1")
    assert (row.digest, lab.settled_sent_bytes("pi-1")) == (digest, sent)
    next_window(lab, digest)


def test_deploying_again_repairs_a_damaged_blob_on_the_server(lab: Lab, tmp_path: Path) -> None:
    package = write_lab_package(tmp_path / "p", hidden=4000)
    lab.start_agent("pi-1")
    lab.wait_for_devices("pi-1")
    first = lab.deploy(package)
    model = max((lab.data / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    model.write_bytes(bytes(model.stat().st_size))
    assert lab.wait_for_outcomes(first) == {"pi-1": "no_model"}
    assert lab.wait_for_outcomes(lab.deploy(package)) == {"pi-1": "committed"}


def test_a_device_that_is_gone_stays_offline_through_restarts(lab: Lab, tmp_path: Path) -> None:
    agent = lab.start_agent("pi-2")
    committed(lab, tmp_path, "pi-1")
    lab.wait(lambda: bool((row := lab.store.device("pi-2")) and row.online), "pi-2 online")
    agent.kill()
    lab.wait(lambda: not lab.device("pi-2").online, "pi-2 offline")
    lab.server.kill()
    lab.start_server()
    lab.wait(lambda: lab.device("pi-1").online, "pi-1 online again")
    next_window(lab, str(lab.device("pi-1").digest))
    assert not lab.device("pi-2").online
    lab.start_agent("pi-2")
    lab.wait(lambda: lab.device("pi-2").online, "pi-2 online again")


def test_an_idle_server_costs_nothing_while_the_broker_is_away(lab_opener: LabOpener, tmp_path: Path) -> None:
    lab = lab_opener(rate_limit_mb_per_s=3.0)
    lab.start_agent("pi-1")
    lab.wait_for_devices("pi-1")
    lab.deploy(write_lab_package(tmp_path / "p", hidden=LARGE))
    lab.wait(lambda: (lab.device("pi-1").verified_bytes or 0) > 0, "the first blocks")
    lab.broker_process.kill()
    lab.wait(lambda: not (lab.store.server() or {"connected": 1})["connected"], "the server to notice")
    used = [cpu_seconds(lab.server.pid)]
    began = time.monotonic()
    lab.wait(lambda: time.monotonic() - began > 1.5, "a while")
    used.append(cpu_seconds(lab.server.pid))
    assert used[1] - used[0] < 0.3 * (time.monotonic() - began)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
