"""The local API over real workers that answer a client by themselves: as it sees it, and as the agent does."""

from __future__ import annotations

import http.client
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from agent.fake_runtime.ai_edge_litert.interpreter import HANG, REFUSE, SEGFAULT, SLEEP
from agent.test_serve_worker import Api
from agent.worker_lab import Lab
from edgefleet_agent.serve.habit import LEND_AFTER
from edgefleet_agent.serve.phase import Phase
from edgefleet_agent.supervise import Worker
from patience import PATIENCE_S

TEXT = json.dumps({
    "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}],
    "parameters": {"binary_data_output": True},
}).encode()  # fmt: skip
HEADERS = {"Inference-Header-Content-Length": str(len(TEXT))}


class Answered(NamedTuple):
    status: int
    said: dict[str, object]
    values: list[float]

    @property
    def digest(self) -> object:
        return self.said.get("model_version")


class Application:
    """One kept connection; its calls wait, so they are made in a thread of the test's."""

    def __init__(self, api: Api) -> None:
        self.api = api
        assert api.server.address is not None
        self._connection = http.client.HTTPConnection(*api.server.address, timeout=PATIENCE_S)

    def _infer(self, *values: float) -> Answered:
        # Head and body are sent one after the other here.
        self._connection.request(
            "POST", "/v2/models/model/infer", TEXT + np.array(values, np.float32).tobytes(), HEADERS
        )
        response = self._connection.getresponse()
        body = response.read()
        length = int(response.headers.get("Inference-Header-Content-Length", len(body)))
        return Answered(response.status, json.loads(body[:length]), np.frombuffer(body[length:], np.float32).tolist())

    def infer(self, *values: float) -> Answered:
        return self.api.done(lambda _: self._infer(*values))

    def infer_often(self, times: int, meanwhile: Callable[[int], None] = lambda _: None) -> list[Answered]:
        """The first value counts up."""

        def ask(_address: str) -> list[Answered]:
            found = []
            for number in range(times):
                meanwhile(number)
                found.append(self._infer(number, 1, 0, 0))
            return found

        return self.api.done(ask)

    def infer_until(self, digest: str) -> list[Answered]:
        def ask(_address: str) -> list[Answered]:
            found = [self._infer(1, 0, 0, 0)]
            while found[-1].digest != digest:
                found.append(self._infer(1, 0, 0, 0))
            return found

        return self.api.done(ask)

    def is_healthy(self) -> bool:
        def ask(_address: str) -> bool:
            self._connection.request("GET", "/v2/health/ready")
            response = self._connection.getresponse()
            response.read()
            return response.status == 200

        return self.api.done(ask)

    @property
    def is_lent(self) -> bool:
        return Phase.LENT in {each.phase for each in self.api.server._connections.values()}


@pytest.fixture(name="swap")
def _swap() -> str:
    return "warm"


@pytest.fixture(name="application")
def _application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swap: str) -> Iterator[Application]:
    lab = Lab(tmp_path, monkeypatch, [3.0, 5.0], worker={"swap": swap})
    api = Api(lab.started())
    application = Application(api)
    answers = application.infer_often(LEND_AFTER)
    assert [one.values for one in answers] == [[3.0 * number, 3, 0, 0] for number in range(LEND_AFTER)]
    assert application.is_lent
    yield application
    api.close()
    lab.inference.stop()


def worker_of(application: Application) -> Worker:
    serving = application.api.lab.inference._serving
    assert serving is not None
    assert serving._worker is not None
    return serving._worker


def test_its_answers_are_the_same_and_every_one_is_counted(application: Application) -> None:
    usual = application.infer(7, 1, 0, 0)
    assert application.is_healthy()
    assert not application.is_lent
    here = application.infer(7, 1, 0, 0)
    assert (usual.status, usual.values) == (here.status, here.values) == (200, [21, 3, 0, 0])
    for answer in (usual, here):
        answer.said["parameters"].pop("inference_s")  # type: ignore[attr-defined]
    assert usual.said == here.said
    lab = application.api.lab
    application.api.until(lambda: sum(window.count for window in lab.windows) == LEND_AFTER + 2)
    assert "worker_ended" not in dict(lab.noted)


@pytest.mark.parametrize("swap", ["warm", "stop-start"])
def test_no_request_fails_while_variants_change_places(application: Application) -> None:
    lab = application.api.lab
    first, second = lab.variants

    def switch(number: int) -> None:
        if number == 20:
            lab.active = second

    answers = application.infer_often(60, switch) + application.infer_until(second.digest)
    assert {one.status for one in answers} == {200}
    changed = [one.digest for one in answers].index(second.digest)
    assert {one.digest for one in answers[:changed]} == {first.digest}
    assert {one.digest for one in answers[changed:]} == {second.digest}
    assert {one.status for one in application.infer_often(2 * LEND_AFTER)} == {200}
    assert worker_of(application)._lent_before >= 1


def test_a_worker_that_dies_in_the_middle_is_said_and_dies_once(application: Application) -> None:
    failed = application.infer(SEGFAULT, 0, 0, 0)
    assert (failed.status, failed.said) == (503, {"error": "it was ended by signal 11"})
    lab = application.api.lab
    lab.again()
    assert application.infer(1, 0, 0, 0).values == [3, 0, 0, 0]
    assert [what for what, _ in lab.noted if what == "worker_ended"] == ["worker_ended"]


def test_a_runtime_that_hangs_is_noticed(application: Application) -> None:
    api = application.api
    begun = api.begin(lambda _: application._infer(HANG, 0, 0, 0))
    # Its clock goes on as soon as the worker is at it.
    api.until(lambda: worker_of(application).lent[0])
    api.lab.ahead_s += api.lab.settings.worker.hang_s + 1.0
    api.until(begun.done)
    hang_s = api.lab.settings.worker.hang_s
    assert begun.result()[:2] == (503, {"error": f"an inference did not end within {hang_s:.0f} s"})


def test_a_worker_that_dies_in_between_costs_no_answer(application: Application) -> None:
    os.kill(worker_of(application).pid, signal.SIGKILL)
    lab = application.api.lab
    lab.until(lambda: not lab.inference.ready)
    assert not application.is_lent
    assert application.infer(1, 0, 0, 0).values == [3, 0, 0, 0]


def test_a_runtime_that_refuses_is_said_and_goes_on(application: Application) -> None:
    failed = application.infer(REFUSE, 0, 0, 0)
    assert (failed.status, "the runtime refused" in str(failed.said["error"])) == (500, True)
    assert application.infer(1, 0, 0, 0).values == [3, 0, 0, 0]


def test_others_are_answered_beside_it(application: Application) -> None:
    api = application.api
    begun = api.begin(lambda _: application._infer(SLEEP, 1, 0, 0))
    lab = api.lab
    assert lab.answered(2, 0, 0, 0) == (lab.variants[0].digest, [6, 0, 0, 0])
    api.until(begun.done)
    assert begun.result().values == [3 * SLEEP, 3, 0, 0]


def test_a_client_that_goes_is_forgotten(application: Application) -> None:
    application._connection.close()
    server = application.api.server
    application.api.until(lambda: not server.has_clients)
