"""Real worker processes with a runtime that does what its inputs say, and an agent's loop around them.

Nothing here asserts.
"""

from __future__ import annotations

import select
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgefleet.package.layout import Package, write_package
from edgefleet.package.manifest import Golden, TensorSpec, VariantFiles, VariantSpec
from edgefleet.protocol.messages import ActiveVariant, Window
from edgefleet_agent import supervise
from edgefleet_agent.inference import Inference
from edgefleet_agent.inference_types import InferFailure, InferRequest, InferResult, RawTensor
from edgefleet_agent.settings import Settings
from edgefleet_agent.slots import Slots, layers_to_pull
from edgefleet_agent.supervise import Worker
from edgefleet_agent.windows import Windows
from edgefleet_device_profiles.profile import Runtime
from patience import PATIENCE_S
from sdk import wire_examples
from sdk.packages_made import spec

FAKE_RUNTIME = Path(__file__).parent / "fake_runtime"
# A worker takes a third of a second to start, and ten on a machine that has twenty other things to do.

Outcome = tuple[str, list[float]] | InferFailure
"""The digest that answered and the values it gave, or why there are none."""


def variant_spec(name: str, size: int = 4) -> VariantSpec:
    x = TensorSpec(name="x", dtype="float32", shape=(1, size))
    return spec(name, Runtime.LITERT).model_copy(
        update={
            "inputs": (x,),
            "outputs": (x.model_copy(update={"name": "y"}),),
            "golden": Golden(samples=2, tolerances={"y": 0.0}),
        }
    )


def variant_files(folder: Path, made: VariantSpec, factor: float) -> VariantFiles:
    """A model file that multiplies by `factor`, and golden arrays that say so."""
    folder.mkdir(parents=True, exist_ok=True)
    model, golden = folder / made.model_file, folder / f"{made.name}.npz"
    model.write_text(str(factor))
    x = np.ones((2, *made.inputs[0].shape), np.float32)
    np.savez(golden, **{"input:x": x, "output:y": np.float32(factor) * x})  # type: ignore[arg-type]
    return VariantFiles(made, (model,), golden)


def request(*values: float, size: int = 4) -> InferRequest:
    x = np.zeros((1, size), np.float32)
    x[0, : len(values)] = values
    return InferRequest((RawTensor("x", "float32", x.shape, x.tobytes()),))


def kept(outcomes: list[Outcome]) -> Callable[[InferResult | InferFailure], None]:
    """A `done` that keeps what it is told, in memory of its own."""

    def done(answer: InferResult | InferFailure) -> None:
        if isinstance(answer, InferResult):
            (tensor,) = answer.tensors
            outcomes.append((answer.digest, np.frombuffer(tensor.data, tensor.dtype).tolist()))
        else:
            outcomes.append(answer)

    return done


class ToldWindows(Windows):
    """Windows of what the worker told alone: nothing of the machine is measured."""

    def __init__(self) -> None:
        pass

    def begin(self) -> None:
        pass

    def tick(self, now: float) -> None:
        pass

    def close(self, report: Mapping[str, Any], digest: str, pid: int) -> Window:
        count = report["count"] if pid else 0
        return wire_examples.WINDOW.model_copy(update={"digest": digest, "count": count, "errors": report["errors"]})


class Lab:
    """Slots with one variant for each factor, and an Inference over them; its clock can be put forward."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, factors: list[float], **settings: Any) -> None:
        monkeypatch.setenv("PYTHONPATH", str(FAKE_RUNTIME))
        self.folder = folder
        self.ahead_s = 0.0
        self.noted: list[tuple[str, str]] = []
        self.windows: list[Window] = []
        self.failed: list[tuple[str, str]] = []
        self.outcomes: list[Outcome] = []
        self.slots = Slots(folder / "state")
        self.variants = self._install(factors)
        self.settings = Settings.model_validate(
            {
                "profile": "p", "state_folder": folder, "source": {"kind": "replay", "path": folder / "none.npz"},
                "telemetry": {"window_s": 0.5}, **settings,
            }
        )  # fmt: skip
        self.inference = Inference(self.settings, self.slots, ToldWindows(), self, self.clock)
        self.active: ActiveVariant | None = self.variants[0]

    def _install(self, factors: list[float]) -> list[ActiveVariant]:
        made = [
            variant_files(self.folder / "inputs", variant_spec(f"v{place}"), factor)
            for place, factor in enumerate(factors)
        ]
        write_package(self.folder / "package", name="made", version="1", release=1, variants=made)
        package = Package(self.folder / "package")
        found = []
        for entry, files in zip(package.index.manifests, made, strict=True):
            staging, manifest = self.slots.staging(entry.digest), package.manifest(entry.digest)
            for layer in layers_to_pull(manifest):
                shutil.copyfile(package.blobs.path(layer.digest), self.slots.part(staging, layer))
            content = package.blobs.read(entry.digest, doing="testing")
            self.slots.finish(entry.digest, content, bytes(64))
            found.append(wire_examples.ACTIVE.model_copy(update={"digest": entry.digest, "name": files.spec.name}))
        return found

    def clock(self) -> float:
        return time.monotonic() + self.ahead_s

    # What the listener is told.

    def note(self, kind: str, text: str) -> None:
        self.noted.append((kind, text))

    def add_window(self, window: Window) -> None:
        self.windows.append(window)

    def slot_damaged(self, reason: str) -> None:
        self.noted.append(("slot_damaged", reason))

    def variant_failed(self, digest: str, reason: str) -> None:
        self.failed.append((digest, reason))

    # The loop.

    def turn(self, wait_s: float = 0.05) -> None:
        select.select(self.inference.descriptors(), [], [], wait_s)
        self.inference.tick(self.active, self.clock())

    def until(self, condition: Callable[[], object]) -> None:
        """Turn the loop until something is so; raises TimeoutError."""
        end_s = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > end_s:
                raise TimeoutError
            self.turn()

    def ask(self, *values: float) -> bool:
        return self.inference.infer(request(*values), kept(self.outcomes))

    def answered(self, *values: float) -> Outcome:
        """What came of one request."""
        count = len(self.outcomes)
        if not self.ask(*values):
            raise TimeoutError
        self.until(lambda: len(self.outcomes) > count)
        return self.outcomes[-1]

    def started(self) -> Lab:
        """The same, once the first worker is ready."""
        self.until(lambda: self.inference.ready)
        return self

    def again(self) -> Lab:
        """The same, once another worker is ready: the wait before its start is skipped."""
        self.ahead_s += 60.0
        return self.started()


def next_message(worker: Worker) -> dict[str, Any]:
    """What a worker says next; raises EOFError when it ended instead."""
    while True:
        if not select.select([worker], [], [], PATIENCE_S)[0]:
            raise TimeoutError
        said, ended = worker.messages()
        if said:
            return said[0]
        if ended:
            raise EOFError(worker.exit_reason())


def benchmark(lab: Lab) -> Worker:
    """A worker of the first variant that measures when it is told to."""
    digest = lab.variants[0].digest
    return supervise.benchmark(lab.slots.path(digest), lab.slots.check(digest), lab.settings.runtime)
