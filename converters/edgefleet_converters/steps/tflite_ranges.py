"""Int8 ranges of a float .tflite file's activations: means, percentiles, or the smallest squared error.

Not a step itself. It holds the activations of one sample at a time; the quantiser itself knows smallest and largest
values only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from edgefleet_converters.step import Ranges
from edgefleet_converters.steps.onnx_ranges import BINS, LIMITS, Range
from edgefleet_converters.tflite.writer import SIGNATURE

Feed = Mapping[str, NDArray[np.generic]]


def find_ranges(content: bytes, samples: Sequence[Feed], ranges: Ranges) -> dict[str, Range]:
    """Range of every float tensor that is computed, 0 within it; none for MINMAX, which the quantiser sees itself.

    Samples map input names to arrays in the file's layout. Tensors inside loops and branches are not looked at.
    """
    if ranges is Ranges.MINMAX:
        return {}
    seen: dict[str, list[Range]] = {}
    for arrays in _activations(content, samples):
        for name, array in arrays.items():
            seen.setdefault(name, []).append((float(array.min()), float(array.max())))
    if ranges is Ranges.MEAN:
        return {name: _whole([_mean(spans)]) for name, spans in seen.items()}
    whole = {name: _whole(spans) for name, spans in seen.items()}
    counts = {name: np.zeros(BINS, np.int64) for name in whole}
    for arrays in _activations(content, samples):
        for name, array in arrays.items():
            counts[name] += np.histogram(array, BINS, whole[name])[0]
    limit = LIMITS[ranges]
    return {name: limit(counts[name], np.linspace(*span, BINS + 1)) for name, span in whole.items()}


def _mean(spans: Sequence[Range]) -> Range:
    low, high = np.mean(spans, axis=0)
    return float(low), float(high)


def _whole(spans: Sequence[Range]) -> Range:
    """What all spans lie in, 0 too; never empty, so that it can have bins and a scale."""
    low, high = min(0.0, *(span[0] for span in spans)), max(0.0, *(span[1] for span in spans))
    return (low, high) if high > low else (low, low + 1.0)


def _activations(content: bytes, samples: Sequence[Feed]) -> Iterator[dict[str, NDArray[np.generic]]]:
    """The finite values of the main graph's float tensors that are not constant, sample by sample, by name."""
    interpreter = Interpreter(model_content=content, num_threads=1, experimental_preserve_all_tensors=True)
    run = interpreter.get_signature_runner(SIGNATURE)
    computed = _computed(content)
    watched = {
        item["name"]: item["index"]
        for item in interpreter.get_tensor_details()
        if item["dtype"] is np.float32 and item["name"] in computed
    }
    for sample in samples:
        run(**sample)
        arrays = {name: interpreter.get_tensor(index) for name, index in watched.items()}
        finite = {name: array[np.isfinite(array)] for name, array in arrays.items()}
        yield {name: array for name, array in finite.items() if array.size}


def _computed(content: bytes) -> set[str]:
    """Names of what the main graph is given or computes."""
    graph = schema.Model.GetRootAs(content).Subgraphs(0)
    indices = {graph.Inputs(at) for at in range(graph.InputsLength())}
    for operator in (graph.Operators(at) for at in range(graph.OperatorsLength())):
        indices |= {operator.Outputs(at) for at in range(operator.OutputsLength())}
    return {graph.Tensors(index).Name().decode() for index in indices}
