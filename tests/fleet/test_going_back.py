"""A variant that passes its self-test and fails at work: the one before comes back, and the bad one never does."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from itertools import permutations
from pathlib import Path

import pytest

from edgefleet_demo.processes import free_port
from fleet_lab import Lab, LabOpener, write_lab_package
from patience import PATIENCE_S

PI = "pi-1"
RATE_PER_S = 50
FIRST_ORDER, *OTHER_ORDERS = permutations(("agent", "broker", "server"))
ORDERS = [[FIRST_ORDER], pytest.param(OTHER_ORDERS, marks=pytest.mark.full)]


def next_window(lab: Lab, digest: str) -> None:
    before = lab.store.telemetry(PI, digest).windows
    lab.wait(lambda: lab.store.telemetry(PI, digest).windows > before, "a new window")


def rolled_back(lab: Lab, tmp_path: Path) -> tuple[str, int]:
    """Commit a good variant, and have a bad one gone back from; returns the good one's digest, the generation."""
    good = lab.deploy(write_lab_package(tmp_path / "good", seed=1))
    assert lab.wait_for_outcomes(good) == {PI: "committed"}
    running = str(lab.device(PI).digest)
    bad = lab.deploy(write_lab_package(tmp_path / "bad", version="2.0.0", release=2, degrades=True))
    assert lab.wait_for_outcomes(bad) == {PI: "rolled_back"}
    return running, bad[PI]


@pytest.mark.parametrize("orders", ORDERS, ids=["one order", "every other order"])
def test_it_rolls_back_and_no_restart_brings_the_bad_version_again(
    lab: Lab, tmp_path: Path, orders: list[tuple[str, ...]]
) -> None:
    agent = lab.start_agent(PI, probation_s=30.0)
    lab.wait_for_devices(PI)
    running, generation = rolled_back(lab, tmp_path)
    assert str(lab.device(PI).reason).startswith("errors: ")
    next_window(lab, running)
    sent = lab.settled_sent_bytes(PI)

    def restart(who: str) -> None:
        nonlocal agent
        if who == "agent":
            agent.kill()
            agent = lab.start_agent(PI, probation_s=30.0)
        elif who == "broker":
            lab.broker_process.kill()
            lab.broker_process = lab.broker.start(lab.group)
        else:
            lab.server.kill()
            lab.start_server()

    for order in orders:
        for who in order:
            restart(who)
        next_window(lab, running)
        row = lab.device(PI)
        assert (str(row.state), row.generation, row.digest) == ("rolled_back", generation, running), order
    assert lab.settled_sent_bytes(PI) == sent
    kinds = [kind for kind, _ in lab.store.events(PI)]
    assert (kinds.count("rolling_back"), kinds.count("activated"), kinds.count("accepted")) == (1, 2, 2)

    # A newer decision is another matter.
    again = lab.deploy(write_lab_package(tmp_path / "third", seed=3, version="3.0.0", release=3))
    lab.wait(lambda: str(lab.device(PI).state) == "probation", "the probation of the third")
    assert lab.device(PI).generation == again[PI]


class Client(threading.Thread):
    """Asks the local API 50 times a second, and counts what went wrong."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        data = [0.001] * 64
        body = {"inputs": [{"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": data}]}
        self._request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v2/models/model/infer", json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        self.answers: list[str] = []
        self.failures: list[str] = []
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(1 / RATE_PER_S):
            try:
                with urllib.request.urlopen(self._request, timeout=PATIENCE_S) as reply:  # noqa: S310 - this machine
                    self.answers.append(json.load(reply)["model_version"])
            except (OSError, urllib.error.HTTPError) as error:
                self.failures.append(str(error))


def test_no_request_fails_while_variants_change_places(lab_opener: LabOpener, tmp_path: Path) -> None:
    lab, port = lab_opener(), free_port()
    lab.start_agent(PI, settings=f"[serve]\nenabled = true\nport = {port}\n")
    lab.wait_for_devices(PI)
    first = lab.deploy(write_lab_package(tmp_path / "first", seed=1))
    assert lab.wait_for_outcomes(first) == {PI: "committed"}
    before = str(lab.device(PI).digest)
    client = Client(port)
    client.start()
    lab.wait(lambda: len(client.answers) > RATE_PER_S, "answers")
    second = lab.deploy(write_lab_package(tmp_path / "second", seed=2, version="2.0.0", release=2))
    assert lab.wait_for_outcomes(second) == {PI: "committed"}
    after = str(lab.device(PI).digest)
    counted = len(client.answers)
    lab.wait(lambda: len(client.answers) > counted + RATE_PER_S, "answers of the second")
    client.ended.set()
    client.join()
    assert client.failures == []
    assert set(client.answers) == {before, after}
    # One switch: what answers, answers until the other does.
    assert client.answers == sorted(client.answers, key=lambda digest: digest == after)


@pytest.mark.parametrize("how", ["agent", "device"])
def test_a_first_install_that_fails_at_work_leaves_no_model_and_says_why(lab: Lab, tmp_path: Path, how: str) -> None:
    agent = lab.start_agent(PI, probation_s=30.0)
    lab.wait_for_devices(PI)
    generations = lab.deploy(write_lab_package(tmp_path / "bad", degrades=True))
    assert lab.wait_for_outcomes(generations) == {PI: "no_model"}
    row = lab.device(PI)
    assert (row.digest, str(row.reason)[:8]) == (None, "errors: ")
    if how == "agent":
        agent.kill()
        lab.start_agent(PI)
        lab.wait(lambda: lab.device(PI).online, "online")
    assert lab.device(PI).generation == generations[PI]
    slots = lab.state_folder(PI) / "slots"
    lab.wait(lambda: not list(slots.iterdir()), "the bad variant to be removed")
