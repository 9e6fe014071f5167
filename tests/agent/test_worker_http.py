"""The local API over real workers: what an application sees while variants change places."""

from __future__ import annotations

import http.client
import json
import select
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.worker_lab import Lab
from edgefleet_agent.serve.burst import Burst
from edgefleet_agent.serve.server import Server
from edgefleet_agent.settings import ServeSettings
from patience import PATIENCE_S

CLIENT_PER_S = 50.0
BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 0, 0]}]})


class Application(threading.Thread):
    """Asks 50 times a second over one connection, until told to end."""

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__(daemon=True)
        self._address = address
        self.answers: list[tuple[int, str, list[float]]] = []
        """Status, digest, and the values of each."""
        self.ended = threading.Event()

    def run(self) -> None:
        connection = http.client.HTTPConnection(*self._address, timeout=PATIENCE_S)
        due_s = time.monotonic()
        while not self.ended.wait(max(0.0, due_s - time.monotonic())):
            due_s += 1 / CLIENT_PER_S
            connection.request("POST", "/v2/models/model/infer", BODY)
            response = connection.getresponse()
            said = json.loads(response.read())
            values = said["outputs"][0]["data"] if response.status == 200 else []
            self.answers.append((response.status, str(said.get("model_version")), values))
        connection.close()


def test_an_application_sees_no_failure_while_variants_change_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(tmp_path, monkeypatch, [3.0, 5.0]).started()
    server = Server(ServeSettings(enabled=True, port=0), lab.inference, lab.note)

    def served() -> dict[int, Callable[[], None]]:
        return dict.fromkeys(lab.inference.answers(), lab.inference.listen) | server.descriptors()

    burst = Burst(served, lab.inference.descriptors, lambda: server.has_clients, lambda: lab.inference.busy, None)

    def turn() -> None:
        """As the agent's loop has it."""
        select.select([*server.descriptors(), *lab.inference.descriptors()], [], [], 0.02)
        burst.serve()
        lab.inference.tick(lab.active, lab.clock())
        server.tick(lab.clock())

    def until_answers(count: int, digest: str) -> None:
        """Turn the loop until so many more requests were answered by a variant."""
        before, end_s = len(application.answers), time.monotonic() + PATIENCE_S
        while sum(one[1] == digest for one in application.answers[before:]) < count:
            assert time.monotonic() < end_s
            turn()

    server.tick(lab.clock())
    assert server.address is not None
    application = Application(server.address)
    first, second = (one.digest for one in lab.variants)
    try:
        application.start()
        until_answers(10, first)
        lab.active = lab.variants[1]
        until_answers(25, second)
        application.ended.set()
        while application.is_alive():
            turn()
    finally:
        application.ended.set()
        server.close()
        lab.inference.stop()
    wanted = {first: [3, 6, 0, 0], second: [5, 10, 0, 0]}
    assert [answer for answer in application.answers if answer[0] != 200] == []
    assert all(values == wanted[digest] for _, digest, values in application.answers)
