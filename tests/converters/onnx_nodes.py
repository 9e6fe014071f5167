"""One ONNX operator on given arrays, lowered and compared with ONNX Runtime or with ONNX's own reference.

Runs the file twice: with the source's layout kept, and with the layout that the lowering chooses.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgefleet_converters.tflite import Lowered, lower

Array = NDArray[Any]
Attributes = dict[str, Any]


def single(
    operator: str,
    arrays: Sequence[Array | None],
    frozen: Collection[int] = (),
    *,
    opset: int,
    outputs: int = 1,
    **attributes: object,
) -> onnx.ModelProto:
    """A model of one node; inputs at `frozen` positions are initializers, None is an absent input."""
    names = [f"i{position}" if array is not None else "" for position, array in enumerate(arrays)]
    given = [(position, name, array) for position, (name, array) in enumerate(zip(names, arrays, strict=True))]
    results = [f"y{position}" for position in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node(operator, names, results, **attributes)],
        "single",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for position, name, array in given
            if array is not None and position not in frozen
        ],
        [onnx.ValueInfoProto(name=name) for name in results],
        [numpy_helper.from_array(array, name) for at, name, array in given if array is not None and at in frozen],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def assert_node(
    operator: str,
    arrays: Sequence[Array | None],
    frozen: Collection[int] = (),
    *,
    opset: int = 17,
    outputs: int = 1,
    by_reference: bool = False,
    **attributes: object,
) -> Lowered:
    """Both layouts agree with ONNX Runtime, or with ONNX's reference; returns the file with the chosen layout."""
    model = single(operator, arrays, frozen, opset=opset, outputs=outputs, **attributes)
    feeds = {item.name: arrays[int(item.name[1:])] for item in model.graph.input}
    fed = {name: array for name, array in feeds.items() if array is not None}
    expected = _expected(model, fed, by_reference=by_reference)
    for keep in (True, False):
        lowered = lower(model, keep_layout=keep)
        for found, want in zip(_in_litert(lowered, fed), expected, strict=True):
            assert (found.shape, found.dtype) == (want.shape, want.dtype)
            if want.dtype.kind == "f":
                np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)
            else:
                np.testing.assert_array_equal(found, want)
    return lowered


def _expected(model: onnx.ModelProto, feeds: Mapping[str, Array], *, by_reference: bool) -> list[Array]:
    if by_reference:
        return [np.asarray(found) for found in ReferenceEvaluator(model).run(None, dict(feeds))]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(found) for found in session.run(None, dict(feeds))]


def _in_litert(lowered: Lowered, feeds: Mapping[str, Array]) -> list[Array]:
    interpreter = Interpreter(model_content=lowered.content, num_threads=1)
    interpreter.allocate_tensors()
    for detail, spec in zip(interpreter.get_input_details(), lowered.inputs, strict=True):
        array = feeds[spec.name]
        stored = array if spec.permutation is None else array.transpose(spec.permutation)
        interpreter.set_tensor(detail["index"], np.ascontiguousarray(stored) if stored.ndim else stored)
    interpreter.invoke()
    found = [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]
    return [
        array if spec.permutation is None else array.transpose(np.argsort(spec.permutation))
        for array, spec in zip(found, lowered.outputs, strict=True)
    ]
