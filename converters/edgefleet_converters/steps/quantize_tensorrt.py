"""Step: explicit int8 quantisation of an ONNX file by TensorRT's rules; the engine is built from it on the device.

Does not quantise what follows a product: TensorRT computes in int8 where an operator's inputs come from
DequantizeLinear, and fuses what follows into it. Signed, symmetric, zero points 0, weights per channel, float biases.
Source: NVIDIA TensorRT documentation, explicit quantization and Q/DQ layer-placement recommendations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgefleet_converters.artefact import Artefact
from edgefleet_converters.step import Context, Ranges, in_file_layout
from edgefleet_converters.steps.onnx_layers import save_clean, surviving
from edgefleet_converters.steps.onnx_ranges import LIMITS, find_ranges
from edgefleet_converters.steps.prepare_onnx import prepare
from edgefleet_converters.steps.tensorrt_placement import Placement, place

Feed = dict[str, NDArray[np.generic]]

_LEVELS = 127
# Below this a tensor counts as zero, which any scale holds: a scale as small would overflow a bias in its units.
_LEAST_LIMIT = 1e-6


def run(artefact: Artefact, context: Context) -> Artefact:
    """Float ONNX in, ONNX with QuantizeLinear and DequantizeLinear out, with the same float inputs and outputs.

    Weights stay float32 in the file, before their own pair: TensorRT 8 takes no others.
    """
    prepared, path = context.folder / "prepared.onnx", context.folder / "model.onnx"
    prepare(artefact.files[0], prepared)
    model = onnx.load(prepared)
    made = {name: name for node in model.graph.node for name in node.output}
    wanted = context.settings.float_tensors
    left = surviving(onnx.load(artefact.files[0]), wanted, made) if wanted else []
    placement = place(model.graph, frozenset(left))
    limits = _limits(prepared, placement, in_file_layout(artefact, context.samples), context.settings.ranges)
    _insert(model.graph, placement, limits)
    save_clean(model, path)
    return artefact.model_copy(update={"files": (path,)})


def _limits(path: Path, placement: Placement, feeds: list[Feed], ranges: Ranges) -> dict[str, float]:
    """Largest magnitude to keep of every activation that becomes int8."""
    if ranges in LIMITS:
        found = find_ranges(path, feeds, ranges)
        return {name: max(map(abs, found[name])) for name in placement.activations if name in found}
    seen = _magnitudes(path, placement.activations, feeds)
    choose = np.mean if ranges is Ranges.MEAN else np.max
    return {name: float(choose(values)) for name, values in seen.items()}


def _magnitudes(path: Path, names: Iterable[str], feeds: list[Feed]) -> dict[str, list[float]]:
    """Largest magnitude of each tensor in each sample."""
    watched = onnx.load(path)
    borders = {item.name for item in watched.graph.output}
    inputs = {item.name for item in watched.graph.input}
    inner = [name for name in names if name not in inputs]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner if name not in borders)
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    found: dict[str, list[float]] = {name: [] for name in names}
    for feed in feeds:
        values = {**feed, **dict(zip(inner, session.run(inner, dict(feed)) if inner else [], strict=True))}
        for name, magnitudes in found.items():
            magnitudes.append(float(np.abs(values[name]).max(initial=0)))
    return found


def _insert(graph: onnx.GraphProto, placement: Placement, limits: Mapping[str, float]) -> None:
    """Put the pairs into the graph, each right before its first reader."""
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    first_reader: dict[str, list[onnx.NodeProto]] = {}
    done: set[str] = set()
    for read in placement.reads:
        name = read.tensor
        dequantized = f"{name}/dequantized" if read.axis is None else f"{name}/dequantized{read.axis}"
        if dequantized not in done:
            done.add(dequantized)
            limit = _limit(weights[name], read.axis) if name in weights else np.array(limits[name])
            scale = np.where(limit < _LEAST_LIMIT, 1.0, limit / _LEVELS).astype(np.float32)
            pair = _pair(graph, name, dequantized, scale, read.axis)
            first_reader.setdefault(read.node.name, []).extend(pair)
        read.node.input[read.place] = dequantized
    nodes = [each for node in graph.node for each in (*first_reader.get(node.name, ()), node)]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _limit(weight: NDArray[np.generic], axis: int | None) -> NDArray[np.float64]:
    """Largest magnitude of a weight: one for each place on an axis, or one for all."""
    axes = None if axis is None else tuple(place for place in range(weight.ndim) if place != axis)
    return np.asarray(np.abs(weight).max(axis=axes, initial=0), np.float64)


def _pair(
    graph: onnx.GraphProto, name: str, result: str, scale: NDArray[np.float32], axis: int | None
) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    """QuantizeLinear and DequantizeLinear of a tensor, with scale and zero point as constants of the graph."""
    graph.initializer.append(numpy_helper.from_array(scale, f"{result}/scale"))
    graph.initializer.append(numpy_helper.from_array(np.zeros(scale.shape, np.int8), f"{result}/zero"))
    options = {} if axis is None else {"axis": axis}
    parameters, stored = [f"{result}/scale", f"{result}/zero"], f"{result}/int8"
    return (
        helper.make_node("QuantizeLinear", [name, *parameters], [stored], f"{result}/quantize", **options),
        helper.make_node("DequantizeLinear", [stored, *parameters], [result], f"{result}/dequantize", **options),
    )
