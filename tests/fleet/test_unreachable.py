"""Brokers that cannot be reached: commands give up and say so, agents never do."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from edgefleet.server.data_folder import STORE_FILE
from edgefleet.server.store import Store
from edgefleet.trust import enrolment, setup
from edgefleet.trust.keys import KeyFolder
from edgefleet_demo import scene
from edgefleet_demo.processes import EDGEFLEET, ProcessGroup, free_port
from fleet_lab import Lab, write_lab_package
from patience import PATIENCE_S


def run(*arguments: str) -> tuple[int, str]:
    done = subprocess.run([*EDGEFLEET, *arguments], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    lines = done.stderr.strip().splitlines()
    return done.returncode, lines[-1] if lines else ""


def deploy(lab: Lab, package: str, *more: str) -> tuple[int, str]:
    return run("deploy", package, "--data", str(lab.data), "--keys", str(lab.keys.folder), *more)


def test_server_without_a_broker_fails(tmp_path: Path) -> None:
    broker = f"127.0.0.1:{free_port()}"
    setup.init("demo", KeyFolder(tmp_path / "keys"), tmp_path / "d", root_keys=1, root_threshold=1)
    code, line = run("server", "--data", str(tmp_path / "d"), "--broker", broker)
    assert code == 6
    assert line == (
        f"edgefleet: connecting to the MQTT broker {broker}: Connection refused; "
        "check that it runs and that the address is right"
    )


def test_deploy_without_a_broker_fails_and_records_nothing(lab: Lab, tmp_path: Path) -> None:
    lab.start_agent("pi-1")
    lab.wait_for_devices("pi-1")
    lab.publish(write_lab_package(tmp_path / "p"))
    lab.broker_process.kill()
    lab.wait(lambda: not (lab.store.server() or {"connected": 1})["connected"], "the server to notice")
    code, line = deploy(lab, "lab@1.0.0")
    assert code == 6
    assert line.startswith("edgefleet: deploying lab@1.0.0: the server cannot reach its MQTT broker")
    assert lab.store.desired("pi-1") is None


def test_deploy_without_a_server_says_so(lab: Lab, tmp_path: Path) -> None:
    lab.publish(write_lab_package(tmp_path / "p"))
    lab.server.stop()
    code, line = deploy(lab, "lab@1.0.0")
    assert (code, "no server is running on" in line) == (6, True)


def test_agent_without_a_broker_keeps_trying_and_says_so(tmp_path: Path) -> None:
    port, data = free_port(), tmp_path / "d"
    setup.init("demo", KeyFolder(tmp_path / "keys"), data, root_keys=1, root_threshold=1)
    store = Store(data / STORE_FILE)
    enrolment.enroll(data, store, "pi-1", host="127.0.0.1", port=port, now=time.time()).write(tmp_path / "identity")
    device = scene.DemoDevice("pi-1", "generic-x86-64")
    settings = scene.write_settings(tmp_path, device, tmp_path / "none.npz")
    with ProcessGroup(tmp_path / "logs") as group:
        agent = group.start("agent", [*EDGEFLEET, "agent", "run", "--config", str(settings)])
        deadline = time.monotonic() + PATIENCE_S
        while agent.log_file.read_text().count("trying again in") < 3 and time.monotonic() < deadline:
            assert agent.exit_code is None
            time.sleep(0.05)
        text = agent.log_file.read_text()
    assert text.count(f"broker 127.0.0.1:{port}: Connection refused; trying again in") >= 3
    assert agent.exit_code == 0


def test_a_server_on_a_folder_that_is_taken(lab: Lab) -> None:
    code, line = run("server", "--data", str(lab.data), "--broker", lab.broker.address)
    assert (code, "another server is running on it" in line) == (7, True)


def test_deploying_to_an_unknown_device_names_those_there_are(lab: Lab, tmp_path: Path) -> None:
    lab.start_agent("pi-1")
    lab.wait_for_devices("pi-1")
    lab.publish(write_lab_package(tmp_path / "p"))
    code, line = deploy(lab, "lab@1.0.0", "--to", "pi-2")
    assert (code, line.endswith("pi-2 is not a device here; there are: pi-1")) == (2, True)
    assert lab.store.desired("pi-1") is None


def test_a_folder_that_is_no_package(lab: Lab, tmp_path: Path) -> None:
    code, line = run("publish", str(tmp_path), "--data", str(lab.data), "--keys", str(lab.keys.folder))
    assert (code, line.startswith(f"edgefleet: opening the package {tmp_path}: ")) == (2, True)


def test_a_version_that_nobody_published(lab: Lab) -> None:
    lab.start_agent("pi-1")
    lab.wait_for_devices("pi-1")
    code, line = deploy(lab, "lab@9.9.9")
    assert (code, "lab@9.9.9" in line) == (2, True)
    assert lab.store.desired("pi-1") is None
