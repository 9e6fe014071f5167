"""One inference over the local API, against the runtime alone and a bare HTTP echo; raw tensors against JSON.

`python benchmarks/serve_speed.py [--rounds N]`: Markdown tables on stdout, everything in build/serve_speed.json.
Clients on kept connections send requests that lie ready as bytes, so that no client's own work is measured. The API
runs in a process of its own with its worker, as in the agent, but without what else the agent does. First table:
ResNet8 int8 in LiteRT on one thread, 3 KB of int8 sent raw to a file that takes int8 (`edgefleet convert --io int8`);
by a client whose requests differ in the values alone, which the worker comes to answer by itself, and by one that gives
each another id, all of which go through the agent: only the first has a limit. Second: 150 KB to a model that does next
to nothing (ONNX Runtime), raw and as JSON. The ways take turns, and a ratio is the median over the rounds. Exit status
1 where one misses its limit.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgefleet.package.manifest import Golden, TensorSpec, VariantSpec
from edgefleet_agent import golden, supervise
from edgefleet_agent.runtimes import Options
from edgefleet_agent.serve.burst import Burst
from edgefleet_agent.serve.datatypes import DATATYPES
from edgefleet_agent.serve.server import Server
from edgefleet_agent.settings import ServeSettings, Settings
from edgefleet_agent.variant import Arrays, Variant
from edgefleet_device_profiles.profile import Precision, Runtime
from worker_speed import Turn, slot, small, turn_us

_OUTPUT = Path(__file__).resolve().parent.parent / "build" / "serve_speed.json"
MOST_OF_ECHO_AND_RUNTIME = 1.5
LEAST_OF_JSON = 4.0
_WARM_UP = 300
_SPEC_FILE = "spec.json"
_SIDES = {"uint8": 224, "float32": 112}
"""Datatype → height and width of three channels that are 150,528 bytes."""

_ECHO = """
import re, socket
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
client, _ = listener.accept()
client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
while data := client.recv(262144):
    while (end := data.find(b"\\r\\n\\r\\n") + 4) < 4:
        data += client.recv(262144)
    length = int(re.search(rb"\\r\\nContent-Length: (\\d+)", data)[1])
    while len(data) < end + length:
        data += client.recv(262144)
    client.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % length + data[end:])
"""


class Listening:
    """A process that prints its port and then answers HTTP."""

    def __init__(self, *command: str) -> None:
        self._process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        port = self._process.stdout.readline()
        if not port:
            raise SystemExit("the server did not start")
        self._port = int(port)

    def connect(self) -> Client:
        """A connection to it."""
        return Client(self._port)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


class Client:
    """One kept connection."""

    def __init__(self, port: int) -> None:
        self._client = socket.create_connection(("127.0.0.1", port))
        self._client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, request: bytes) -> bytes:
        """Send a request, and wait for all of the response."""
        self._client.sendall(request)
        data = self._more()
        while (end := data.find(b"\r\n\r\n") + 4) < 4:
            data += self._more()
        begin = data.index(b"Content-Length: ") + 16
        length = int(data[begin : data.index(b"\r\n", begin)])
        while len(data) < end + length:
            data += self._more()
        return data

    def _more(self) -> bytes:
        data = self._client.recv(262144)
        if not data:
            raise SystemExit("the server is gone")
        return data


def serve(folder: Path) -> None:
    """The API with a worker of the variant in a folder, until killed."""
    settings = Settings.model_validate({"profile": "generic-x86-64", "state_folder": folder})
    spec = VariantSpec.model_validate_json((folder / _SPEC_FILE).read_bytes())
    worker = supervise.inference(folder, spec, "sha256:" + "1" * 64, settings)
    server = Server(ServeSettings(enabled=True, port=0), worker, lambda kind, text: print(kind, text, file=sys.stderr))
    served: dict[int, Callable[[], object]] = {**server.descriptors(), worker.fileno(): worker.messages}
    burst = Burst(lambda: served, tuple, lambda: server.has_clients, lambda: worker.busy, None)
    while not worker.ready:
        select.select([worker], [], [])
        if worker.messages()[1]:
            sys.exit(worker.exit_reason())
    worker.send({"kind": "begin"})
    server.tick(time.monotonic())
    assert server.address is not None
    print(server.address[1], flush=True)
    while True:
        select.select([*served], [], [], 0.1)
        burst.serve()
        server.tick(time.monotonic())


def request(arrays: Arrays, *, raw: bool, **more: object) -> bytes:
    """An inference request as bytes; raw, or as JSON. `more`: what else its JSON says."""
    inputs: list[dict[str, Any]] = [
        {"name": name, "shape": one.shape, "datatype": DATATYPES[one.dtype.name].name} for name, one in arrays.items()
    ]
    for described, one in zip(inputs, arrays.values(), strict=True):
        described.update({"parameters": {"binary_data_size": one.nbytes}} if raw else {"data": one.ravel().tolist()})
    text = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": raw}, **more}).encode()
    body = text + b"".join(one.tobytes() for one in arrays.values() if raw)
    field = f"Inference-Header-Content-Length: {len(text)}\r\n" if raw else ""
    head = f"POST /v2/models/model/infer HTTP/1.1\r\nHost: 127.0.0.1\r\n{field}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def without_result(call: Callable[[], object]) -> Turn:
    """A call of which only the time is wanted."""

    def turn() -> None:
        call()

    return turn


def takes_turns(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Microseconds of each, turn after turn."""
    calls = {name: without_result(way) for name, way in ways.items()}
    for call in calls.values():
        for _ in range(_WARM_UP):
            call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for place in range(rounds):
        for name in list(calls)[:: -1 if place % 2 else 1]:
            taken[name].append(turn_us(calls[name]))
    return taken


def resnet8(work: Path, rounds: int) -> dict[str, list[float]]:
    """3 KB of int8 through the API, the runtime alone and the echo."""
    folder = work / "resnet8"
    spec = slot(folder, small(work))
    (folder / _SPEC_FILE).write_text(spec.model_dump_json())
    variant = Variant(folder, spec.model_dump(mode="json"), Options())
    inputs = golden.inputs(golden.load(folder / "golden.npz"), variant)[0]
    asked = request(inputs, raw=True)
    others = cycle([request(inputs, raw=True, id=f"{number:06}") for number in range(500)])
    api, echo = Listening(__file__, "--serve", str(folder)), Listening("-S", "-c", _ECHO)
    try:
        same, other, echoed = api.connect(), api.connect(), echo.connect()
        if not same.ask(asked).startswith(b"HTTP/1.1 200 "):
            raise SystemExit(f"no result: {same.ask(asked)!r}")
        return takes_turns(
            {
                "runtime": lambda: variant.infer(inputs),
                "echo": lambda: echoed.ask(asked),
                "same": lambda: same.ask(asked),
                "other": lambda: other.ask(next(others)),
            },
            rounds,
        )
    finally:
        api.stop()
        echo.stop()


def nearly_nothing(folder: Path, dtype: str) -> Arrays:
    """A variant's folder whose model gives the largest of 150 KB; an input of it."""
    folder.mkdir()
    shape = (1, 3, _SIDES[dtype], _SIDES[dtype])
    kind = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT}[dtype]
    given, made = (
        helper.make_tensor_value_info("x", kind, shape),
        helper.make_tensor_value_info("y", kind, (1, 1, 1, 1)),
    )
    graph = helper.make_graph([helper.make_node("ReduceMax", ["x"], ["y"])], "largest", [given], [made])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / "m.onnx")
    x = np.random.default_rng(0).integers(0, 256, shape).astype(dtype)
    x = x / np.float32(255) if dtype == "float32" else x
    np.savez(folder / "golden.npz", allow_pickle=False, **{"input:x": x[None]})
    spec = VariantSpec(
        name="largest", runtime=Runtime.ONNXRUNTIME, precision=Precision.FP32, runtime_version=">=1",
        model_file="m.onnx",
        inputs=(TensorSpec(name="x", dtype=dtype, shape=shape),),
        outputs=(TensorSpec(name="y", dtype=dtype, shape=(1, 1, 1, 1)),),
        golden=Golden(samples=1, tolerances={"y": 0.0}), architectures=("amd64",),
    )  # fmt: skip
    (folder / _SPEC_FILE).write_text(spec.model_dump_json())
    return {"x": x}


def raw_and_json(work: Path, dtype: str, rounds: int) -> tuple[int, dict[str, list[float]]]:
    """(bytes of the JSON request, microseconds of each way) of 150 KB."""
    arrays = nearly_nothing(work / dtype, dtype)
    asked = {name: request(arrays, raw=name == "raw") for name in ("raw", "json")}
    api = Listening(__file__, "--serve", str(work / dtype))
    try:
        client = api.connect()
        for one in asked.values():
            if not client.ask(one).startswith(b"HTTP/1.1 200 "):
                raise SystemExit(f"no result: {client.ask(one)!r}")
        calls: dict[str, Callable[[], object]] = {name: partial(client.ask, one) for name, one in asked.items()}
        return len(asked["json"]), takes_turns(calls, rounds)
    finally:
        api.stop()


def summed_up(taken: dict[str, list[float]], ratios: list[float]) -> dict[str, Any]:
    """Medians of the turns, and of the ratios with their quartiles."""
    low, _, high = quantiles(ratios)
    return {"us": {name: median(one) for name, one in taken.items()}, "ratio": median(ratios), "quartiles": [low, high]}


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print(flush=True)


def ratio_cells(found: dict[str, Any]) -> tuple[str, str]:
    """A ratio and its quartiles in print."""
    return f"{found['ratio']:.2f}", "–".join(f"{value:.2f}" for value in found["quartiles"])


def main() -> None:
    """Measure, print and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="turns of each; 20 or more")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        serve(given.serve)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="edgefleet-benchmark-") as name:
        work = Path(name)
        taken = resnet8(work, given.rounds)
        bare = [runtime + echo for runtime, echo in zip(taken["runtime"], taken["echo"], strict=True)]
        rows = []
        for way, text in (("same", "but for the values"), ("other", "but for the values and an id")):
            found[way] = one = summed_up(taken, [api / least for api, least in zip(taken[way], bare, strict=True)])
            us = [f"{one['us'][which]:.0f}" for which in ("runtime", "echo", way)]
            rows.append((f"3 KB of int8, raw, the same {text}", *us, *ratio_cells(one)))
        table(("request", "runtime alone µs", "HTTP echo µs", "local API µs", "ratio", "quartiles"), rows)
        rows = []
        for dtype in _SIDES:
            size, taken = raw_and_json(work, dtype, given.rounds)
            ratios = [text / raw for raw, text in zip(taken["raw"], taken["json"], strict=True)]
            found[dtype] = one = summed_up(taken, ratios)
            us = [f"{one['us'][which]:.0f}" for which in ("raw", "json")]
            rows.append((f"150 KB of {dtype}", f"{size / 1000:.0f}", *us, *ratio_cells(one)))
        table(("tensor", "as JSON KB", "raw µs", "JSON µs", "JSON ÷ raw", "quartiles"), rows)
    _OUTPUT.parent.mkdir(exist_ok=True)
    _OUTPUT.write_text(json.dumps(found, indent=1))
    is_slow = found["same"]["ratio"] > MOST_OF_ECHO_AND_RUNTIME
    sys.exit(int(is_slow or min(found[dtype]["ratio"] for dtype in _SIDES) < LEAST_OF_JSON))


if __name__ == "__main__":
    main()
