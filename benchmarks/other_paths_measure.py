"""Two .tflite files of one model in one process: sizes, operators, error against ONNX Runtime, latencies in turn.

`python benchmarks/other_paths_measure.py MODEL.onnx OURS.tflite THEIRS.tflite PAIRS`; one JSON object on stdout.
A process of its own, because a file may take its runtime down.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnxruntime
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from edgefleet_converters.tflite.delegation import operator_name, outside_xnnpack

Array = NDArray[Any]
_SEEDS, _SAMPLE_S = range(100, 103), 0.02


def fed(model: onnx.ModelProto, seed: int) -> tuple[str, Array]:
    """The model's one input with seeded normal numbers."""
    entry = model.graph.input[0]
    shape = [axis.dim_value for axis in entry.type.tensor_type.shape.dim]
    return entry.name, np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def arranged(array: Array, shape: tuple[int, ...]) -> Array:
    """In another layout: the first order of axes that gives the shape, channels last before others."""
    rank = array.ndim
    orders = [tuple(range(rank)), (0, *range(2, rank), 1), (0, rank - 1, *range(1, rank - 1))]
    for order in (*orders, *itertools.permutations(range(rank))):
        if len(order) == rank and tuple(array.shape[axis] for axis in order) == shape:
            return np.ascontiguousarray(array.transpose(order))
    raise ValueError(f"{array.shape} is not {shape} in any order of axes")


class Measured:
    """One file in the runtime, on one thread."""

    def __init__(self, path: Path) -> None:
        self.content = path.read_bytes()
        self.interpreter = Interpreter(model_content=self.content, num_threads=1)
        self.interpreter.allocate_tensors()
        self.entry, self.result = self.interpreter.get_input_details()[0], self.interpreter.get_output_details()[0]
        self.calls = 1

    def run(self, array: Array, shape: tuple[int, ...]) -> Array:
        """The output in the source's layout."""
        self.interpreter.set_tensor(self.entry["index"], arranged(array, tuple(self.entry["shape"].tolist())))
        self.interpreter.invoke()
        return arranged(self.interpreter.get_tensor(self.result["index"]), shape)

    def sample(self) -> float:
        """Milliseconds a call, of this thread's own time, which others on the machine disturb least."""
        started = time.thread_time()
        for _ in range(self.calls):
            self.interpreter.invoke()
        return (time.thread_time() - started) / self.calls * 1e3

    def warm_up(self) -> None:
        """Find how many calls a sample needs."""
        while self.sample() * self.calls < _SAMPLE_S * 1e3:
            self.calls *= 2

    def facts(self) -> dict[str, object]:
        """What the file itself says."""
        model = schema.Model.GetRootAs(self.content)
        graph = model.Subgraphs(0)
        codes = [model.OperatorCodes(graph.Operators(at).OpcodeIndex()) for at in range(graph.OperatorsLength())]
        operators = Counter(map(operator_name, codes))
        notes = sum(model.Buffers(model.Metadata(at).Buffer()).DataLength() for at in range(model.MetadataLength()))
        return {
            "bytes": len(self.content),
            "bytes_without_metadata": len(self.content) - notes,
            "operators": dict(operators),
            "transposes": operators["TRANSPOSE"],
            "outside_xnnpack": outside_xnnpack(self.content),
        }


def errors(model: onnx.ModelProto, files: list[Measured]) -> list[dict[str, float]]:
    """Largest max|difference| / max|reference| over the seeds, and the ratio of signal to noise over all of them."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    worst, signal, noise = [0.0] * len(files), 0.0, [0.0] * len(files)
    for seed in _SEEDS:
        name, array = fed(model, seed)
        reference = session.run(None, {name: array})[0]
        signal += float((reference.astype(np.float64) ** 2).sum())
        for at, file in enumerate(files):
            difference = file.run(array, reference.shape).astype(np.float64) - reference
            worst[at] = max(worst[at], float(np.abs(difference).max() / np.abs(reference).max()))
            noise[at] += float((difference**2).sum())
    decibels = [10 * float(np.log10(signal / max(power, 1e-30))) for power in noise]
    return [{"error": error, "sqnr_db": ratio} for error, ratio in zip(worst, decibels, strict=True)]


def latencies(files: list[Measured], pairs: int) -> dict[str, object]:
    """Median of the ratios of pairs taken in turn, each order as often as the other."""
    for file in files:
        file.warm_up()
    taken = []
    for at in range(pairs):
        order = files if at % 2 else files[::-1]
        found = {id(file): file.sample() for file in order}
        taken.append([found[id(file)] for file in files])
    ratios = sorted(ours / theirs for ours, theirs in taken)
    middle = [median(column) for column in zip(*taken, strict=True)]
    return {"ms": middle, "ratio": median(ratios), "ratio_quartiles": [ratios[pairs // 4], ratios[-1 - pairs // 4]]}


def main() -> None:
    """Measure and print."""
    model, files = onnx.load(sys.argv[1]), [Measured(Path(path)) for path in sys.argv[2:4]]
    wrong = errors(model, files)
    timed = latencies(files, int(sys.argv[4]))
    print(json.dumps({"files": [{**file.facts(), **at} for file, at in zip(files, wrong, strict=True)], **timed}))


if __name__ == "__main__":
    main()
