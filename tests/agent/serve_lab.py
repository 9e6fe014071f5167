"""A local API with a model that answers when told to, and clients that say exactly which bytes they send."""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pydantic_core

from edgefleet_agent.inference_types import (
    InferDone,
    InferFailure,
    InferRequest,
    InferResult,
    ModelInfo,
    RawTensor,
    Returned,
    Standing,
    TensorInfo,
)
from edgefleet_agent.serve.server import Server
from edgefleet_agent.settings import ServeSettings
from patience import PATIENCE_S

DIGEST = "sha256:" + "a" * 64
INFO = ModelInfo(
    "litert-int8", DIGEST, "litert", (TensorInfo("x", "float32", (1, 4)),), (TensorInfo("y", "float32", (1, 4)),)
)
INFER = "/v2/models/digits/infer"
VALUES = (0.5, 1.0, -2.0, 4.0)
RAW = struct.pack("<4f", *VALUES)


class Echo:
    """A backend whose outputs are its inputs, one for one; it answers at once, or keeps what it is asked in `asked`."""

    def __init__(self, info: ModelInfo = INFO, *, at_once: bool = True) -> None:
        self.info: ModelInfo | None = info
        self.ready = True
        self.at_once = at_once
        self.has_room = True
        self.asked: list[tuple[InferRequest, InferDone]] = []
        self.takes_clients = False
        self.lent: list[tuple[socket.socket, Standing, Returned]] = []

    @property
    def metadata(self) -> ModelInfo | None:
        return self.info

    def infer(self, request: InferRequest, done: InferDone) -> bool:
        if not self.has_room:
            return False
        if self.at_once:
            done(self.result(request))
        else:
            self.asked.append((request, done))
        return True

    def lend(self, client: socket.socket, standing: Standing, returned: Returned) -> bool:
        if self.takes_clients:
            self.lent.append((client, standing, returned))
        return self.takes_clients

    def result(self, request: InferRequest) -> InferResult:
        assert self.info is not None
        given = {tensor.name: tensor for tensor in request.tensors}
        pairs = zip(self.info.inputs, self.info.outputs, strict=True)
        outputs = tuple(replace(given[taken.name], name=output.name) for taken, output in pairs)
        return InferResult(self.info.digest, outputs, 0.001)

    def finish(self, failure: InferFailure | None = None) -> None:
        """Answer the oldest request."""
        request, done = self.asked.pop(0)
        if failure is not None:
            done(failure)
            return
        # In memory that is used again afterwards, as the worker's.
        result = self.result(request)
        memory = [bytearray(tensor.data) for tensor in result.tensors]
        tensors = tuple(
            RawTensor(tensor.name, tensor.dtype, tensor.shape, memoryview(where))
            for tensor, where in zip(result.tensors, memory, strict=True)
        )
        done(replace(result, tensors=tensors))
        for where in memory:
            where[:] = b"\xee" * len(where)


@dataclass(frozen=True)
class Response:
    """What came back."""

    status: int
    fields: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The JSON of the body."""
        length = self.fields.get("inference-header-content-length")
        return pydantic_core.from_json(self.body if length is None else self.body[: int(length)])

    @property
    def error(self) -> str:
        """The protocol's reason of a refusal."""
        reason: str = self.json["error"]
        return reason


@dataclass
class Clock:
    """Time that passes when told to."""

    at: float = 1000.0

    def __call__(self) -> float:
        return self.at


@dataclass
class Lab:
    """A server that listens, and its clock."""

    server: Server
    model: Echo
    clock: Clock
    events: list[tuple[str, str]]
    clients: list[Client] = field(default_factory=list)

    def client(self) -> Client:
        assert self.server.address is not None
        client = Client(self, socket.create_connection(self.server.address))
        client.socket.setblocking(False)
        self.clients.append(client)
        return client

    def turn(self) -> None:
        """One turn of the loop, as the agent has it."""
        descriptors = self.server.descriptors()
        waiting = select.poll()
        for descriptor in descriptors:
            waiting.register(descriptor, select.POLLIN)
        for descriptor, _ in waiting.poll(1):
            descriptors[descriptor]()
        self.server.tick(self.clock())

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end, "it never came"
            self.turn()

    def settle(self) -> None:
        """Turn until there is nothing left to do."""
        waiting = select.poll()
        waiting.register(next(iter(self.server.descriptors())), select.POLLIN)
        turns = 0
        while waiting.poll(5):
            turns += 1
            assert turns < 10_000, "it never rests"
            self.turn()
        self.turn()

    def pass_time(self, seconds: float) -> None:
        self.clock.at += seconds
        self.turn()


@dataclass
class Client:
    """One connection; nothing is sent that a test did not write."""

    lab: Lab
    socket: socket.socket
    received: bytes = b""
    closed: bool = False

    def send(self, data: bytes) -> None:
        """Send all of it, as fast as it is taken."""
        while data:
            try:
                data = data[self.socket.send(data) :]
            except BlockingIOError:
                self.lab.turn()
            except ConnectionError:
                self.closed = True
                return

    def receive(self) -> None:
        """Take what has come."""
        while not self.closed:
            try:
                data = self.socket.recv(1 << 20)
            except BlockingIOError:
                return
            except ConnectionError:
                data = b""
            self.closed = not data
            self.received += data

    def is_closed(self) -> bool:
        self.receive()
        return self.closed

    def has_ended(self) -> None:
        """The server has closed the connection, and said nothing more."""
        self.lab.until(self.is_closed)
        assert self.received == b""

    def response(self, *, without_body: bool = False) -> Response:
        """The next response; fails when none comes."""
        taken: list[Response] = []

        def came() -> bool:
            self.receive()
            head, end, rest = self.received.partition(b"\r\n\r\n")
            if not end:
                assert not self.closed, f"closed after {self.received!r}"
                return False
            first, *lines = head.decode().split("\r\n")
            fields = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in lines}
            length = 0 if without_body else int(fields.get("content-length", "0"))
            if len(rest) < length:
                return False
            taken.append(Response(int(first.split(" ")[1]), fields, rest[:length]))
            self.received = rest[length:]
            return True

        self.lab.until(came)
        return taken[0]

    def ask(self, request: bytes) -> Response:
        self.send(request)
        return self.response()


@contextmanager
def serving(model: Echo | None = None, **settings: Any) -> Iterator[Lab]:
    """A server on a free port of loopback, closed at the end with every client."""
    events: list[tuple[str, str]] = []
    clock, model = Clock(), model or Echo()
    chosen = ServeSettings(**{"enabled": True, "port": 0, "model": "digits", **settings})
    lab = Lab(Server(chosen, model, lambda *event: events.append(event), clock), model, clock, events)
    try:
        lab.turn()
        yield lab
    finally:
        lab.server.close()
        for client in lab.clients:
            client.socket.close()


def http(method: str, path: str, body: bytes = b"", *fields: str, host: str = "localhost") -> bytes:
    """A request; Content-Length is told where there is a body."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *fields]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def content(data: object = VALUES, **more: object) -> bytes:
    """An inference request for `INFO` in JSON."""
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": data}
    return pydantic_core.to_json({"inputs": [tensor], **more})


def binary(raw: bytes, **more: object) -> tuple[bytes, str]:
    """(body, its Inference-Header-Content-Length field) of a request with raw values, answered raw."""
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": len(raw)}}
    text = pydantic_core.to_json({"inputs": [tensor], "parameters": {"binary_data_output": True}, **more})
    return text + raw, f"Inference-Header-Content-Length: {len(text)}"


@contextmanager
def answering(model: Echo | None = None, **settings: Any) -> Iterator[str]:
    """A server that turns by itself, for clients that wait; gives HOST:PORT."""
    with serving(model, **settings) as lab:
        stopped = threading.Event()

        def turn() -> None:
            while not stopped.is_set():
                lab.turn()

        thread = threading.Thread(target=turn)
        thread.start()
        try:
            assert lab.server.address is not None
            yield f"127.0.0.1:{lab.server.address[1]}"
        finally:
            stopped.set()
            thread.join()
