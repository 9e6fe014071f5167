"""Child processes of the agent: started with a plan, asked and read without blocking, stopped for certain.

It does not decide when one is started or given up.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
from contextlib import suppress
from pathlib import Path

from edgefleet.package.layout import GOLDEN_FILE
from edgefleet.package.manifest import TensorSpec, VariantSpec
from edgefleet_agent import slot_options, standing_message
from edgefleet_agent.channel import INFER, RECEIVE_BYTES, Message, parsed
from edgefleet_agent.inference_types import (
    FailureKind,
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
from edgefleet_agent.settings import RuntimeSettings, Settings, WorkerSettings
from edgefleet_agent.tensors import Place, lay_out
from edgefleet_agent.worker_process import WorkerProcess

log = logging.getLogger("edgefleet.agent")

MAX_LENT = 8
PIPE_BYTES = 65536
"""What a pipe holds at first (pipe(7))."""
DEFAULT_RUNTIME = RuntimeSettings()
DEFAULT_WORKER = WorkerSettings()


class Worker:
    """One worker process."""

    def __init__(self, plan: Message, process: WorkerProcess, info: ModelInfo | None = None) -> None:
        """Have a process do what a plan says; it is this object's then. `info`: of one that requests are sent to."""
        self._process = process
        self._buffer = b""
        self._info = info
        self._ready = False
        self._asked: InferDone | None = None
        self._layout: object = None
        self._inputs: list[Place] = []
        self._outputs: list[Place] = []
        self._lent: dict[int, Returned] = {}
        self._lent_before = 0
        self._end: str | None = None
        self._send_plan(plan)
        for descriptor in (process.reads, process.writes):
            os.set_blocking(descriptor, False)

    def _send_plan(self, plan: Message) -> None:
        """Labels may make it longer than what a pipe holds: the loop is not to wait until the worker reads."""
        line = json.dumps(plan).encode() + b"\n"
        with suppress(OSError):
            if len(line) > PIPE_BYTES:
                fcntl.fcntl(self._process.writes, fcntl.F_SETPIPE_SZ, len(line))
        with suppress(OSError):
            os.write(self._process.writes, line)

    def fileno(self) -> int:
        """Becomes readable when the worker said something or ended."""
        return self._process.reads

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def ready(self) -> bool:
        """Whether it has opened its variant and warmed it up."""
        return self._ready

    @property
    def busy(self) -> bool:
        """Whether a request is being inferred on: one at a time."""
        return self._asked is not None

    @property
    def metadata(self) -> ModelInfo | None:
        """What is loaded; None before it is ready."""
        return self._info if self._ready else None

    def send(self, message: Message) -> None:
        """Tell it something; what it can no longer take is lost, and `messages` says that it ended."""
        with suppress(OSError):
            os.write(self._process.writes, json.dumps(message).encode() + b"\n")

    def infer(self, request: InferRequest, done: InferDone) -> bool:
        """Ask it for an inference; `done` is called by `messages` or `give_up`. False when busy or not ready.

        Raises ValueError for more than shared memory may hold, OSError when the kernel refuses more of it.
        """
        if self._info is None or self._asked is not None or not self._ready:
            return False
        region = self._process.region
        layout = ([(t.name, t.dtype, t.shape, len(t.data)) for t in request.tensors], request.outputs)
        line, places = _INFER, self._inputs
        if layout != self._layout:
            places, end = lay_out(layout[0])
            region.reserve(end)
            content = {"kind": "infer", "inputs": places, "outputs": request.outputs}
            line = json.dumps(content).encode() + b"\n"
        view = region.view
        for (_, _, _, offset, size_bytes), tensor in zip(places, request.tensors, strict=True):
            view[offset : offset + size_bytes] = tensor.data
        self._layout, self._inputs = layout, places
        self._asked = done
        try:
            os.write(self._process.writes, line)
        except OSError as error:
            # It ended meanwhile: `messages` will say so.
            log.debug("the worker takes nothing more: %s", error)
        return True

    @property
    def lent(self) -> tuple[int, int]:
        """As `Region.lent`."""
        return self._process.region.lent

    def lend(self, client: socket.socket, standing: Standing, returned: Returned) -> bool:
        """As `Backend.lend`; `returned` is called by `messages`, `kill` or `stop`."""
        if not self._ready or self._info is None or standing.digest != self._info.digest or len(self._lent) >= MAX_LENT:
            return False
        number = self._lent_before + 1
        try:
            socket.send_fds(self._process.clients, [standing_message.packed(number, standing)], [client.fileno()])
        except OSError as error:
            log.debug("the worker takes no client: %s", error)
            return False
        self._lent[number], self._lent_before = returned, number
        return True

    def _returned(self, message: Message) -> None:
        returned = self._lent.pop(message["client"], None)
        if returned is not None:
            returned(None)

    def give_up(self, reason: str) -> None:
        """Whoever waits for an inference gets none."""
        self._end = self._end or reason
        if self._asked is not None:
            done, self._asked = self._asked, None
            done(InferFailure(FailureKind.UNAVAILABLE, reason))

    def messages(self) -> tuple[list[Message], bool]:
        """(what it said since the last call but answers, whether it has ended); never blocks. Answers are passed on."""
        ended = False
        while True:
            try:
                chunk = os.read(self._process.reads, RECEIVE_BYTES)
            except BlockingIOError:
                break
            ended = not chunk
            self._buffer += chunk
            if len(chunk) < RECEIVE_BYTES:
                break
        *lines, self._buffer = self._buffer.split(b"\n")
        said: list[Message] = []
        for line in lines:
            try:
                message = parsed(line)
                answering = _ANSWERS.get(message["kind"])
            except (ValueError, TypeError, KeyError):
                # Its memory is damaged: nothing that it says is believed any more.
                log.warning("a worker said what is no message; it is ended")
                self._process.kill()
                return said, True
            if answering is not None:
                answering(self, message)
            else:
                self._ready = self._ready or message["kind"] == "ready"
                said.append(message)
        return said, ended

    def _inferred(self, message: Message) -> None:
        region = self._process.region
        if self._asked is None or self._info is None:
            return
        if "outputs" in message:
            self._outputs = [(*place[:2], tuple(place[2]), *place[3:]) for place in message["outputs"]]
            with suppress(ValueError):
                region.reserve(max((offset + size for *_, offset, size in self._outputs), default=0))
        view = region.view.toreadonly()
        parts = [view[offset : offset + size_bytes] for _, _, _, offset, size_bytes in self._outputs]
        tensors = [RawTensor(*place[:3], part) for place, part in zip(self._outputs, parts, strict=True)]
        done, self._asked = self._asked, None
        try:
            done(InferResult(self._info.digest, tuple(tensors), region.inference_s))
        finally:
            # Whoever kept one would read the next request's values.
            for part in parts:
                part.release()

    def _not_inferred(self, message: Message) -> None:
        if self._asked is not None:
            done, self._asked = self._asked, None
            done(InferFailure(FailureKind(message["failure"]), message["reason"]))

    def exit_reason(self) -> str:
        """How it ended, in words; call it after `messages` said so."""
        code = self._process.wait()
        if code is None:
            return "it closed its channel and hangs"
        return f"it was ended by signal {-code}" if code < 0 else f"it ended with exit code {code}"

    def kill(self) -> None:
        """End it at once, in the middle of what it does."""
        self._process.kill()
        self.stop()

    def stop(self) -> None:
        """End it: close the channel, then kill."""
        self.give_up("the worker was stopped")
        self._ready = False
        self._process.stop()
        lent, self._lent = self._lent, {}
        for number, returned in lent.items():
            returned(self._end if number == self._process.last_client else None)


_INFER = f"{INFER}\n".encode()
# Its own table.
_ANSWERS = {
    "inferred": Worker._inferred, "not_inferred": Worker._not_inferred, "returned": Worker._returned,  # noqa: SLF001
}  # fmt: skip


def model_info(spec: VariantSpec, digest: str) -> ModelInfo:
    """What a variant says of itself to whoever sends requests."""
    inputs, outputs = (tuple(_tensor_info(one) for one in tensors) for tensors in (spec.inputs, spec.outputs))
    return ModelInfo(spec.name, digest, spec.runtime.value, inputs, outputs)


def _tensor_info(tensor: TensorSpec) -> TensorInfo:
    return TensorInfo(tensor.name, tensor.dtype, tensor.shape)


def _plan(mode: str, slot: Path, spec: VariantSpec, runtime: RuntimeSettings, worker: WorkerSettings) -> Message:
    return {
        "mode": mode,
        "slot": str(slot),
        "spec": spec.model_dump(mode="json"),
        "golden_file": GOLDEN_FILE,
        "options": slot_options.applied(slot, runtime).model_dump(mode="json"),
        "memory_mb": worker.memory_mb,
    }


def self_test(
    slot: Path, spec: VariantSpec, runtime: RuntimeSettings = DEFAULT_RUNTIME, worker: WorkerSettings = DEFAULT_WORKER
) -> Worker:
    """Start a self-test of a variant; raises OSError."""
    return Worker(_plan("self_test", slot, spec, runtime, worker), WorkerProcess())


def benchmark(
    slot: Path, spec: VariantSpec, runtime: RuntimeSettings = DEFAULT_RUNTIME, worker: WorkerSettings = DEFAULT_WORKER
) -> Worker:
    """Start a worker that says `ready`, and then measures whenever it is told to, with `runtime` as it is.

    To {"kind": "run", "runs": least number, "seconds": least time, "most": how many to tell of} it answers {"kind":
    "ran", "runs": how many there were, "seconds": [...], "end_to_end_s": [...]}: the runtime's call alone, and that
    with the conversions at its borders, of twice as many or fewer. Raises OSError.
    """
    # What was chosen for the slot before is measured anew, and must not stand in for it.
    plan = _plan("benchmark", slot, spec, runtime, worker) | {"options": runtime.model_dump(mode="json")}
    return Worker(plan, WorkerProcess())


def inference(
    slot: Path, spec: VariantSpec, digest: str, settings: Settings, process: WorkerProcess | None = None
) -> Worker:
    """Start a worker that takes requests once it says `ready`, and counts, with the source, once told to begin.

    `process`: one that waits for a plan; it is started where there is none. Raises OSError.
    """
    process = process or WorkerProcess()
    source, sinks = settings.source, settings.sinks
    plan = _plan("run", slot, spec, settings.runtime, settings.worker) | {
        "memory": process.region.fileno(),
        "source": None if source is None else source.model_dump(mode="json"),
        "sinks": [sink.model_dump(mode="json") for sink in sinks],
        "digest": digest,
        "window_s": settings.telemetry.window_s,
    }
    return Worker(plan, process, model_info(spec, digest))
