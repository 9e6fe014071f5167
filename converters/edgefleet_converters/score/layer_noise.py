"""The child's side of `sensitivity`: each layer alone in int8, in ONNX Runtime, and the noise that reaches the outputs.

Int8 is simulated: weights rounded to 8 bits per output channel, outputs to 8 bits over the range seen. It says which
layers cost most, not what a runtime's own int8 file loses.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgefleet_converters.score.layers import Layer, Layers, Range, find_conflicts, find_layers
from edgefleet_converters.score.sqnr import CEILING_DB, measure_noise
from edgefleet_converters.sensitivity import LayerNoise, Sensitivity, SensitivityJob

Array = NDArray[np.generic]
Feed = Mapping[str, Array]

_LEVELS = 255
# The layers' own noise is only a first guess of which ones matter: few samples do.
_LOCAL_SAMPLES = 4
# Product → the axis of its weights (input 1) that counts output channels.
_CHANNELS = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": -1}


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """Over the samples: ranges of the layers' outputs and what Concats read, and the layers' own noise (dB)."""

    ranges: Mapping[str, Range]
    local_db: Mapping[str, float]


def run_job(text: str) -> Sensitivity:
    """Rank the layers of the job's source."""
    job = SensitivityJob.model_validate_json(text)
    model = onnx.load(job.source.files[0])
    with np.load(job.samples, allow_pickle=False) as stored:
        samples = {spec.name: stored[spec.name][: job.most_samples] for spec in job.source.inputs}
    feeds = [
        {name: np.asarray(array[place]) for name, array in samples.items()}
        for place in range(len(next(iter(samples.values()))))
    ]
    return rank(model, feeds, most_layers=job.most_layers, budget_s=job.budget_s)


def rank(model: onnx.ModelProto, feeds: Sequence[Feed], *, most_layers: int, budget_s: float) -> Sensitivity:
    """The layers of a model, those first that alone cost its outputs most; feeds have the source's layout."""
    began = time.monotonic()
    layers = find_layers(model)
    seen = _look(model, layers, feeds, local=len(layers.found) > most_layers)
    names = [item.name for item in model.graph.output]
    expected = _run(model, names, feeds)
    tried: dict[str, float] = {}
    # Noise at the end goes straight to the outputs; what is noisier inside is often averaged away.
    order = sorted(layers.found, key=lambda one: (not layers.is_final(one), seen.local_db.get(one.tensor, 0.0)))
    for layer in order[:most_layers]:
        if time.monotonic() - began > budget_s:
            break
        found = _run(quantised(model, layer, seen.ranges[layer.tensor]), names, feeds)
        tried[layer.tensor] = min(map(_worst_db, names, found, expected))
    total = sum(layer.macs for layer in layers.found) or 1
    noises = [
        LayerNoise(
            tensor=layer.tensor,
            operator=layer.node.op_type,
            macs_share=layer.macs / total,
            sqnr_db=tried.get(layer.tensor),
            max_abs=max(map(abs, seen.ranges[layer.tensor])),
            float_tensors=layers.kept_with(layer),
        )
        for layer in layers.found
    ]
    noises.sort(key=lambda one: np.inf if one.sqnr_db is None else one.sqnr_db)
    return Sensitivity(layers=tuple(noises), conflicts=find_conflicts(layers, seen.ranges), samples=len(feeds))


def _worst_db(name: str, found: Array, expected: Array) -> float:
    noise = measure_noise(name, found, expected)
    if noise.equal is not None:
        # Integers have no noise: their share of equal elements, on the scale that the float outputs are on.
        return CEILING_DB * noise.equal
    return CEILING_DB if noise.worst_db is None else noise.worst_db


def _look(model: onnx.ModelProto, layers: Layers, feeds: Sequence[Feed], *, local: bool) -> _Seen:
    """One run of the float model over the samples, one sample's activations at a time."""
    joined = [name for layer in layers.found if layer.node.op_type == "Concat" for name in layer.node.input]
    made = {name for node in model.graph.node for name in node.output}
    names = list(dict.fromkeys([layer.tensor for layer in layers.found] + [name for name in joined if name in made]))
    ranges: dict[str, Range] = dict.fromkeys(names, (0.0, 0.0))
    noise: dict[str, float] = {}
    for place, arrays in enumerate(_each(_showing(model, names), names, feeds)):
        for name, array in zip(names, arrays, strict=True):
            low, high = ranges[name]
            # A mask's minus infinity has no place in any range; it becomes the lowest value.
            finite = array[np.isfinite(array)]
            span = (min(low, float(finite.min(initial=0))), max(high, float(finite.max(initial=0))))
            ranges[name] = span
            if local and place < _LOCAL_SAMPLES:
                ratio = _worst_db(name, rounded(array, span)[np.newaxis], array[np.newaxis])
                noise[name] = min(ratio, noise.get(name, CEILING_DB))
    return _Seen(ranges, noise)


def _showing(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """The model with more outputs."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    known = {item.name for item in model.graph.output}
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    return shown


def _each(model: onnx.ModelProto, names: Sequence[str], feeds: Sequence[Feed]) -> Iterator[list[Array]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # sums in one order, so the same ranking on every run
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for feed in feeds:
        yield session.run(list(names), dict(feed))


def _run(model: onnx.ModelProto, names: Sequence[str], feeds: Sequence[Feed]) -> list[Array]:
    """Outputs by position, each [N, *shape]."""
    return [np.stack(arrays) for arrays in zip(*_each(model, names, feeds), strict=True)]


def quantised(model: onnx.ModelProto, layer: Layer, span: Range) -> onnx.ModelProto:
    """The model with one layer's weights and output rounded to 8 bits; `span` is the output's range, 0 in it."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    if layer.node.op_type in _CHANNELS:
        _round_weights(graph, layer.node)
    place = next(at for at, node in enumerate(graph.node) if layer.tensor in node.output)
    plain, scale, zero = (f"{layer.tensor}/{role}" for role in ("plain", "scale", "zero"))
    names = [plain if name == layer.tensor else name for name in graph.node[place].output]
    graph.node[place].ClearField("output")
    graph.node[place].output.extend(names)
    step, offset = _grid(span)
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(step, np.float32), scale),
            numpy_helper.from_array(np.array(offset, np.uint8), zero),
        ]
    )
    stored = f"{layer.tensor}/stored"
    graph.node.insert(place + 1, helper.make_node("QuantizeLinear", [plain, scale, zero], [stored]))
    graph.node.insert(place + 2, helper.make_node("DequantizeLinear", [stored, scale, zero], [layer.tensor]))
    return made


def _grid(span: Range) -> tuple[float, int]:
    """Scale and zero point of 8 unsigned bits over a range that holds 0; any scale holds a tensor that is always 0."""
    step = (span[1] - span[0]) / _LEVELS or 1.0
    return step, round(-span[0] / step)


def rounded(array: Array, span: Range) -> NDArray[np.float32]:
    """A tensor as 8 bits over a range hold it."""
    step, offset = _grid(span)
    levels = np.clip(np.round(array.astype(np.float64) / step), -offset, _LEVELS - offset)
    return np.asarray(levels * step, np.float32)


def _round_weights(graph: onnx.GraphProto, node: onnx.NodeProto) -> None:
    """Constant weights of a product, symmetric per output channel, in place."""
    tensor = next((one for one in graph.initializer if one.name == node.input[1]), None)
    if tensor is None or tensor.data_type != TensorProto.FLOAT:
        return
    array = numpy_helper.to_array(tensor)
    axis = _CHANNELS[node.op_type]
    if node.op_type == "Gemm" and any(item.name == "transB" and item.i for item in node.attribute):
        axis = 0
    others = tuple(at for at in range(array.ndim) if at != axis % array.ndim)
    step = np.abs(array).max(axis=others, keepdims=True) / (_LEVELS // 2)
    step = np.where(step > 0, step, 1)
    tensor.CopyFrom(numpy_helper.from_array((np.round(array / step) * step).astype(np.float32), tensor.name))
