"""The child's side of the check: runs the source in ONNX Runtime and the file in LiteRT on the same samples.

Imports both runtimes, so only child processes import this module. It judges nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
from ai_edge_litert.interpreter import Interpreter

from edgefleet_converters.conversion.check import CompareJob, Comparison
from edgefleet_converters.conversion.differences import of_rows, of_values
from edgefleet_converters.conversion.tensors import Array, load_feeds


def run_job(text: str) -> Comparison:
    """Run every sample through both, and measure each output's difference."""
    job = CompareJob.model_validate_json(text)
    feeds = load_feeds(job.feeds, job.inputs)
    try:
        expected = _in_onnxruntime(job, feeds)
    except Exception as error:  # noqa: BLE001 - it raises classes of its own for models it cannot run
        first = (str(error).strip().splitlines() or [""])[0]
        return Comparison(samples=len(feeds), without_reference=f"ONNX Runtime cannot run the model: {first}")
    interpreter = Interpreter(model_path=str(job.file), num_threads=1)
    found = [_in_litert(interpreter, job, feed) for feed in feeds]
    differences = [
        (of_rows if spec.bounded else of_values)(
            spec.name, [one[spec.name] for one in found], [one[spec.name] for one in expected]
        )
        for spec in job.outputs
    ]
    return Comparison(samples=len(feeds), outputs=tuple(differences), outside=_outside(interpreter))


def _in_onnxruntime(job: CompareJob, feeds: list[dict[str, Array]]) -> list[dict[str, Array]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(job.model, options, providers=["CPUExecutionProvider"])
    names = [spec.name for spec in job.outputs]
    return [dict(zip(names, session.run(names, feed), strict=True)) for feed in feeds]


def _in_litert(interpreter: Interpreter, job: CompareJob, feed: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs in the source's layout; integer borders of a quantised file are crossed by their scales."""
    runner = interpreter.get_signature_runner()
    entries, exits = runner.get_input_details(), runner.get_output_details()
    stored = {spec.name: _quantized(spec.stored(feed[spec.name]), entries[spec.name]) for spec in job.inputs}
    found = runner(**stored)
    return {spec.name: spec.restored(_dequantized(found[spec.name], exits[spec.name])) for spec in job.outputs}


def _quantized(array: Array, details: Mapping[str, Any]) -> Array:
    scale, zero_point = details["quantization"]
    if array.dtype.kind != "f" or details["dtype"] == array.dtype or not scale:
        return array
    limits = np.iinfo(details["dtype"])
    levels = np.round(array.astype(np.float64) / scale) + zero_point
    return np.asarray(np.clip(levels, limits.min, limits.max).astype(details["dtype"]))


def _dequantized(array: Array, details: Mapping[str, Any]) -> Array:
    scale, zero_point = details["quantization"]
    if not scale:
        return array
    return np.asarray((array.astype(np.float64) - zero_point) * scale, np.float32)


def _outside(interpreter: Interpreter) -> dict[str, int]:
    """Operators that the delegate left to the runtime's own kernels, by name with their counts.

    LiteRT lists the operators of the file and the delegates beside them; what really runs is found by going back
    from the outputs, preferring a delegate wherever one computes the tensor.
    """
    operators = [item for item in interpreter._get_ops_details() if len(item["outputs"])]  # noqa: SLF001
    made = {int(tensor): item for item in operators for tensor in item["outputs"]}
    made |= {int(tensor): item for item in operators if item["op_name"] == "DELEGATE" for tensor in item["outputs"]}
    open_, seen = [int(item["index"]) for item in interpreter.get_output_details()], set[int]()
    found: dict[int, str] = {}
    while open_:
        tensor = open_.pop()
        if tensor in seen or tensor not in made:
            continue
        seen.add(tensor)
        item = made[tensor]
        found[int(item["index"])] = str(item["op_name"])
        open_ += [int(source) for source in item["inputs"]]
    found_names = Counter(name for name in found.values() if name != "DELEGATE")
    return dict(found_names.most_common())
