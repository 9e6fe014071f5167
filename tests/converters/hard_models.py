"""Models that int8 ruins in the usual ways, and the way from one to a judged variant, for the tests.

Conversions run in this process where the toolchain allows it: a child for each would take most of the tests' time.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from converters.onnx_models import build, weights
from edgefleet.package.manifest import TensorSpec
from edgefleet_converters import gate
from edgefleet_converters.artefact import Artefact
from edgefleet_converters.convert import ConvertJob, convert, run_steps
from edgefleet_converters.ladder import Attempt, Tried
from edgefleet_converters.score.infer import InferJob, read_outputs, run_file
from edgefleet_converters.score.metrics import Assessment, Measured, assess
from edgefleet_converters.step import Settings
from edgefleet_device_profiles.profile import Precision, Runtime

SIDE = 12
CELLS = SIDE * SIDE


def shared_scale() -> onnx.ModelProto:
    """Boxes of 0 to 640 and scores of 0 to 1 in one output [1, 8, 144], as the exporters of detectors write them."""
    nodes = [
        helper.make_node("Conv", ["x", "sum"], ["boxes"]),
        helper.make_node("Conv", ["x", "stem"], ["stemmed"], pads=[1] * 4),
        helper.make_node("Relu", ["stemmed"], ["features"]),
        helper.make_node("Conv", ["features", "classes", "rare"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["scores"]),
        helper.make_node("Concat", ["boxes", "scores"], ["joined"], axis=1),
        helper.make_node("Reshape", ["joined", "flat"], ["y"]),
    ]
    constants = {
        # Exact in int8, so that only the output's own scale adds noise to the boxes.
        "sum": np.full((4, 3, 1, 1), 640 / 3, np.float32),
        "stem": weights(16, 3, 3, 3) * 0.4,
        "classes": weights(4, 16, 1, 1, seed=1) * 0.6,
        "rare": np.full(4, -1.0, np.float32),
        "flat": np.array([1, 8, CELLS]),
    }
    return build(nodes, (1, 3, SIDE, SIDE), constants)


def outlier() -> onnx.ModelProto:
    """The third channel of the first layer is 100 times as wide as the others, and as important as they are."""
    first, second = weights(8, 3, 1, 1) * 0.5, weights(8, 8, 1, 1, seed=1) * 0.4
    first[2] *= 100
    second[:, 2] /= 100
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["wide"]),
        helper.make_node("Relu", ["wide"], ["wide_relu"]),
        helper.make_node("Conv", ["wide_relu", "w2"], ["b"]),
        helper.make_node("Relu", ["b"], ["b_relu"]),
        helper.make_node("Conv", ["b_relu", "w3"], ["c"], pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["c_relu"]),
        helper.make_node("Conv", ["c_relu", "w4"], ["y"], pads=[1] * 4),
    ]
    constants = {
        "w1": first,
        "w2": second,
        "w3": weights(16, 8, 3, 3, seed=2) * 0.2,
        "w4": weights(4, 16, 3, 3, seed=3) * 0.15,
    }
    return build(nodes, (1, 3, SIDE, SIDE), constants)


class Workbench:
    """A source with samples on disk, and variants of it as the gate sees them."""

    def __init__(self, model: onnx.ModelProto, folder: Path, count: int = 12) -> None:
        self.model, self._folder, self._made = model, folder, 0
        file, self.samples = folder / "source.onnx", folder / "samples.npz"
        onnx.save(model, file)
        # Steps of 1/255, as pixels have them: an int8 input loses nothing.
        pixels = np.random.default_rng(0).integers(0, 256, size=(count, 1, 3, SIDE, SIDE))
        np.savez(self.samples, x=(pixels / 255).astype(np.float32))
        (inputs, outputs) = (
            tuple(
                TensorSpec(
                    name=item.name,
                    dtype="float32",
                    shape=tuple(axis.dim_value for axis in item.type.tensor_type.shape.dim),
                )
                for item in items
            )
            for items in (model.graph.input, model.graph.output)
        )
        self.source = Artefact(files=(file,), inputs=inputs, outputs=outputs)
        self._reference = self._run(Runtime.ONNXRUNTIME, self.source)

    def convert(self, runtime: Runtime, settings: Settings) -> Artefact:
        """The int8 variant's files."""
        self._made += 1
        job = ConvertJob(
            runtime=runtime,
            precision=Precision.INT8,
            settings=settings,
            source=self.source,
            calibration=self.samples,
            folder=self._folder / f"{runtime}-{self._made}",
        )
        # NNCF in this process would report its use over the network.
        return convert(job) if runtime is Runtime.OPENVINO else run_steps(job.model_dump_json())

    def assess(self, runtime: Runtime, artefact: Artefact) -> Assessment:
        """A variant against the source."""
        return assess(self._run(runtime, artefact), self._reference, None)

    def climb(self, runtime: Runtime, attempt: Attempt) -> Tried:
        """An attempt as the ladder is told of it."""
        artefact = self.convert(runtime, attempt.settings)
        found = self.assess(runtime, artefact)
        verdict = gate.judge(found, gate.Limits())
        score = found.score
        return Tried(attempt, verdict.status, score.reference - score.value, score.sqnr_db, artefact.size_bytes)

    def _run(self, runtime: Runtime, artefact: Artefact) -> Measured:
        self._made += 1
        job = InferJob(
            runtime=runtime,
            artefact=artefact,
            samples=self.samples,
            repeats=1,
            passes=2,
            outputs=self._folder / f"{self._made}.outputs.npz",
        )
        return read_outputs(job.outputs, artefact, run_file(job.model_dump_json()))
