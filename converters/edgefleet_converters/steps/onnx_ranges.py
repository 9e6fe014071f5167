"""Int8 ranges of an ONNX model's activations from histograms: percentiles, or the smallest squared error.

Not a step itself. Holds the activations of one sample at a time: ONNX Runtime's own histogram calibrators hold those of
all samples, which took 3 GB for 50 images of 224 x 224.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto

from edgefleet_converters.step import Ranges

Feed = Mapping[str, NDArray[np.generic]]
Range = tuple[float, float]
Counts = NDArray[np.int64]
Edges = NDArray[np.float64]

BINS = 2048
KEPT = 0.9999
"""Part of the values inside the percentile range at either end; 99.99 % did best for most networks in Wu et al. 2020,
Integer Quantization for Deep Learning Inference, section 4."""
_LEVELS = 255
_SHRUNK = np.linspace(1.0, 0.3, 15)


def find_ranges(model: Path, feeds: list[dict[str, NDArray[np.generic]]], ranges: Ranges) -> dict[str, Range]:
    """Lowest and highest finite value to keep of every float tensor; the model must carry inferred shapes. Two passes.

    Infinities are what masks are made of: no scale holds them, and they must not decide one.
    """
    spans: dict[str, Range] = {}
    for name, array in _activations(model, feeds):
        low, high = spans.get(name, (0.0, 0.0))
        spans[name] = (min(low, float(array.min(initial=0))), max(high, float(array.max(initial=0))))
    counts = {name: np.zeros(BINS, np.int64) for name in spans}
    for name, array in _activations(model, feeds):
        counts[name] += np.histogram(array, BINS, _wide(spans[name]))[0]
    limit = LIMITS[ranges]
    return {name: limit(counts[name], np.linspace(*_wide(span), BINS + 1)) for name, span in spans.items()}


def _wide(span: Range) -> Range:
    return span if span[1] > span[0] else (span[0], span[0] + 1.0)


def _activations(model: Path, feeds: Iterable[Feed]) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Every float input and value of every sample, by name, one sample at a time."""
    watched = onnx.load(model)
    graph = watched.graph
    constants = {tensor.name for tensor in graph.initializer}
    known = {item.name: item for item in (*graph.value_info, *graph.output)}
    made = [name for node in graph.node for name in node.output if name in known and name not in constants]
    names = [name for name in made if known[name].type.tensor_type.elem_type == TensorProto.FLOAT]
    outputs = [onnx.ValueInfoProto.FromString(known[name].SerializeToString()) for name in names]
    del graph.output[:]
    graph.output.extend(outputs)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # sums in one order, so the same ranges on every run
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for feed in feeds:
        given = ((name, array) for name, array in feed.items() if array.dtype == np.float32)
        for name, array in (*given, *zip(names, session.run(names, dict(feed)), strict=True)):
            yield name, array[np.isfinite(array)]


def _percentile(counts: Counts, edges: Edges) -> Range:
    """The range outside which at most 1 - KEPT of all values lie at each end."""
    spare = (1 - KEPT) * counts.sum()
    low = edges[np.searchsorted(np.cumsum(counts), spare, side="right")]
    high = edges[BINS - np.searchsorted(np.cumsum(counts[::-1]), spare, side="right")]
    return min(float(low), 0.0), max(float(high), 0.0)


def _least_error(counts: Counts, edges: Edges) -> Range:
    """Of the whole range and ranges shrunk at either end, the one whose 8-bit levels are nearest to the values."""
    middles, best = (edges[:-1] + edges[1:]) / 2, (np.inf, (float(edges[0]), float(edges[-1])))
    lows, highs = (_SHRUNK if end else [1.0] for end in (edges[0], edges[-1]))
    for low in edges[0] * np.asarray(lows):
        for high in edges[-1] * np.asarray(highs):
            scale = (high - low) / _LEVELS
            levels = np.clip(np.round(middles / scale), np.round(low / scale), np.round(high / scale))
            error = float(np.dot(counts, (levels * scale - middles) ** 2))
            if error < best[0]:
                best = (error, (float(low), float(high)))
    return best[1]


LIMITS: Mapping[Ranges, Callable[[Counts, Edges], Range]] = MappingProxyType(
    {Ranges.PERCENTILE: _percentile, Ranges.MSE: _least_error}
)
"""How each kind of range is read from a histogram (counts of BINS, and their edges)."""
