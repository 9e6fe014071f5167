"""One graph, judged: lowered as users get it, run in LiteRT, every output compared with ONNX Runtime.

A wrong file may take the process down, so this runs in a worker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from numpy.typing import NDArray

from conformance.verdicts import Outcome, Verdict, outcome_of
from edgefleet_converters.tflite import Lowered, LoweredTensor, lower

Array = NDArray[Any]
TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Graph:
    """A model by name, made when it is judged; `most_transposes` is how many its file may have, if anything is said."""

    name: str
    family: str
    make: Callable[[], onnx.ModelProto]
    seeds: int = 1
    most_transposes: Callable[[onnx.ModelProto], int] | None = None


def judge(graph: Graph) -> Outcome:
    """Lower and run a graph; never raises."""
    model = graph.make()
    return outcome_of(partial(lower, model), partial(_measured, graph, model))


def _measured(graph: Graph, model: onnx.ModelProto, lowered: Lowered) -> Outcome:
    worst, told, spread = compare(model, lowered, graph.seeds)
    found = transposes(lowered)
    own = sum(node.op_type == "Transpose" for node in model.graph.node)
    measured: dict[str, float] = {"distance": worst, "transposes": found, "own": own, "nodes": len(model.graph.node)}
    most = graph.most_transposes(model) if graph.most_transposes is not None else found
    if graph.most_transposes is not None:
        measured["optimum"] = most
    if graph.seeds > 1:
        measured["spread"] = spread
    reason = ""
    if not spread >= 10 * TOLERANCE:
        reason = f"its reference hardly depends on the input: {spread:.3g}"
    elif not worst <= TOLERANCE:
        reason = f"{told} differs by {worst:.3g} of its largest value"
    elif found > most:
        reason = f"{found} transposes, {most} are enough"
    return Outcome(Verdict.WRONG if reason else Verdict.PASSED, reason, measured)


def compare(model: onnx.ModelProto, lowered: Lowered, seeds: int = 1) -> tuple[float, str, float]:
    """Largest max|difference| / max|reference| of any output over the seeds, and the output's name.

    Third, how much the reference differs from seed to seed, in the same measure; infinite for one seed.
    """
    wanted = [item.name for item in model.graph.output]
    if [item.name for item in lowered.outputs] != wanted:
        return np.inf, f"outputs {[item.name for item in lowered.outputs]}, not {wanted}", np.inf
    worst, told, spread = 0.0, wanted[0], np.inf
    before: list[Array] = []
    session = reference_session(model)
    interpreter = Interpreter(model_content=lowered.content, num_threads=1)
    interpreter.allocate_tensors()
    for seed in range(seeds):
        feeds = inputs_of(model, seed)
        references = session.run(None, feeds)
        for name, got, reference in zip(wanted, run(interpreter, lowered, feeds), references, strict=True):
            if got.shape != reference.shape:
                return np.inf, f"{name}, which is {list(got.shape)}, not {list(reference.shape)},", np.inf
            distance = relative(got, reference)
            if distance > worst or np.isnan(distance):
                worst, told = distance, name
        if before:
            spread = min(spread, max(relative(*pair) for pair in zip(before, references, strict=True)))
        before = references
    return worst, told, spread


def relative(got: Array, reference: Array) -> float:
    """max|difference| / max|reference|; 0 where both are all 0 or have no elements."""
    if not reference.size:
        return 0.0
    largest = float(np.abs(reference.astype(np.float64)).max())
    difference = float(np.abs(got.astype(np.float64) - reference.astype(np.float64)).max())
    return difference / largest if largest else difference


def reference_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """The model in ONNX Runtime, node by node."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    # Its own fusions are not what is judged, and one of them refuses valid graphs.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def inputs_of(model: onnx.ModelProto, seed: int) -> dict[str, Array]:
    """Seeded inputs: normal numbers, small whole ones for integer inputs, 1 for masks."""
    random = np.random.default_rng(1000 + seed)
    constants = {item.name for item in model.graph.initializer}
    feeds: dict[str, Array] = {}
    for item in model.graph.input:
        if item.name in constants:
            continue
        shape = [axis.dim_value for axis in item.type.tensor_type.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(item.type.tensor_type.elem_type)
        if np.dtype(dtype).kind in "iu":
            feeds[item.name] = random.integers(0, 50, shape).astype(dtype)
        else:
            feeds[item.name] = random.normal(size=shape).astype(dtype)
    return feeds


def run(interpreter: Interpreter, lowered: Lowered, feeds: Mapping[str, Array]) -> list[Array]:
    """Outputs in the source's layout and order."""
    runner = interpreter.get_signature_runner()
    found = runner(**{spec.name: stored(feeds[spec.name], spec) for spec in lowered.inputs})
    return [
        found[spec.name] if spec.permutation is None else found[spec.name].transpose(np.argsort(spec.permutation))
        for spec in lowered.outputs
    ]


def stored(array: Array, spec: LoweredTensor) -> Array:
    """An input in the file's layout."""
    return np.ascontiguousarray(array if spec.permutation is None else array.transpose(spec.permutation))


def operators(lowered: Lowered) -> Sequence[str]:
    """TFLite operators of a file, in order."""
    interpreter = Interpreter(
        model_content=lowered.content,
        num_threads=1,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    return [str(operator["op_name"]) for operator in interpreter._get_ops_details()]


def transposes(lowered: Lowered) -> int:
    """How many TRANSPOSE operators a file has."""
    return sum(name == "TRANSPOSE" for name in operators(lowered))
