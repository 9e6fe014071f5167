"""The local API over real worker processes: crashes and changes of the variant, as a client sees them."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from agent.fake_runtime.ai_edge_litert.interpreter import REFUSE, SEGFAULT
from agent.worker_lab import Lab
from edgefleet_agent.serve.server import Server
from edgefleet_agent.settings import ServeSettings
from patience import PATIENCE_S

SWITCHED_AFTER, REQUESTS = 20, 60
Answer = tuple[str, list[float]]
T = TypeVar("T")


class Api:
    """An Inference behind a server, turned by the test while a client waits in a thread."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.server = Server(ServeSettings(enabled=True, port=0), lab.inference, lab.note)
        self._threads = ThreadPoolExecutor(1)
        self.turn()

    def turn(self) -> None:
        readers = self.server.descriptors()
        ready, _, _ = select.select([*self.lab.inference.descriptors(), *readers], [], [], 0.02)
        for descriptor in readers.keys() & ready:
            readers[descriptor]()
        self.lab.inference.tick(self.lab.active, self.lab.clock())
        self.server.tick(time.monotonic())

    def until(self, condition: Callable[[], object]) -> None:
        end_s = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > end_s:
                raise TimeoutError
            self.turn()

    def begin(self, work: Callable[[str], T]) -> Future[T]:
        """Have a client do something with HOST:PORT."""
        assert self.server.address is not None
        return self._threads.submit(work, f"127.0.0.1:{self.server.address[1]}")

    def done(self, work: Callable[[str], T]) -> T:
        begun = self.begin(work)
        self.until(begun.done)
        return begun.result()

    def close(self) -> None:
        self.server.close()
        self._threads.shutdown()


@pytest.fixture(name="api")
def _api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    lab = Lab(tmp_path, monkeypatch, [3.0, 5.0])
    api = Api(lab.started())
    yield api
    api.close()
    lab.inference.stop()


def infer(address: str, *values: float) -> Answer:
    """One request by the reference client."""
    with triton.InferenceServerClient(address) as client:
        x = triton.InferInput("x", [1, 4], "FP32")
        x.set_data_from_numpy(np.array([[*values]], np.float32))
        result = client.infer("model", [x])
        return result.get_response()["model_version"], result.as_numpy("y")[0].tolist()


def test_an_inference_goes_through_the_worker_and_back(api: Api) -> None:
    assert api.done(lambda address: infer(address, 1, 2, 3, 4)) == (api.lab.variants[0].digest, [3, 6, 9, 12])


def test_a_runtime_that_refuses_is_said_and_goes_on(api: Api) -> None:
    with pytest.raises(InferenceServerException, match="the runtime refused") as failed:
        api.done(lambda address: infer(address, REFUSE, 0, 0, 0))
    assert failed.value.status() == "500"
    assert api.done(lambda address: infer(address, 1, 0, 0, 0))[1] == [3, 0, 0, 0]


def test_a_worker_that_dies_in_the_middle_is_said_and_started_again(api: Api) -> None:
    with pytest.raises(InferenceServerException, match="signal 11") as failed:
        api.done(lambda address: infer(address, SEGFAULT, 0, 0, 0))
    assert failed.value.status() == "503"
    # Who asks meanwhile waits for the next one.
    begun = api.begin(lambda address: infer(address, 1, 0, 0, 0))
    api.until(lambda: not api.lab.inference.ready)
    api.until(begun.done)
    assert begun.result()[1] == [3, 0, 0, 0]


def test_no_request_fails_while_the_variants_change_places(api: Api) -> None:
    def ask(address: str) -> list[Answer]:
        answers = []
        for count in range(REQUESTS):
            if count == SWITCHED_AFTER:
                api.lab.active = api.lab.variants[1]
            answers.append(infer(address, 1, 0, 0, 0))
        while answers[-1][0] == api.lab.variants[0].digest:
            answers.append(infer(address, 1, 0, 0, 0))
        return answers

    before, after = (
        (variant.digest, [factor, 0.0, 0.0, 0.0]) for variant, factor in zip(api.lab.variants, (3.0, 5.0), strict=True)
    )
    answers = api.done(ask)
    switched = answers.index(after)
    assert switched >= SWITCHED_AFTER
    assert answers == [before] * switched + [after] * (len(answers) - switched)
