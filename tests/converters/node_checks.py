"""One ONNX node on given arrays, lowered and run in LiteRT, compared with ONNX Runtime or ONNX's own reference.

Inputs may be of any type; those named as constants are written into the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgefleet_converters.tflite import lower

# Any type of element: what is compared is the same for all.
Array = NDArray[Any]


def model_of(
    nodes: Sequence[onnx.NodeProto], inputs: Mapping[str, Array], constants: Mapping[str, Array], opset: int
) -> onnx.ModelProto:
    """A model of these nodes; its outputs are those of the last one."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in inputs.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in nodes[-1].output if name],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def in_litert(content: bytes, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs of a file by name; an input that the file does not read is not fed."""
    runner = Interpreter(model_content=content, num_threads=1).get_signature_runner()
    read = runner.get_input_details()
    found: dict[str, Array] = runner(**{name: array for name, array in inputs.items() if name in read})
    return found


def expected_of(model: onnx.ModelProto, inputs: Mapping[str, Array], *, reference: bool) -> dict[str, Array]:
    """Outputs in ONNX Runtime, or in ONNX's reference where ONNX Runtime has no such kernel."""
    names = [output.name for output in model.graph.output]
    if reference:
        return dict(zip(names, ReferenceEvaluator(model).run(None, dict(inputs)), strict=True))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def check(
    nodes: onnx.NodeProto | Sequence[onnx.NodeProto],
    inputs: Mapping[str, Array],
    constants: Mapping[str, Array] | None = None,
    *,
    opset: int = 18,
    reference: bool = False,
    tolerance: float = 1e-5,
) -> dict[str, Array]:
    """Assert that LiteRT's outputs have the expected shapes, types and values (integers exactly); returns them."""
    listed = [nodes] if isinstance(nodes, onnx.NodeProto) else nodes
    model = model_of(listed, inputs, constants or {}, opset)
    expected = expected_of(model, inputs, reference=reference)
    found = in_litert(lower(model, keep_layout=True).content, inputs)
    for name, wanted in expected.items():
        assert (found[name].shape, found[name].dtype) == (wanted.shape, wanted.dtype), name
        if wanted.dtype.kind == "f":
            np.testing.assert_allclose(found[name], wanted, rtol=tolerance, atol=tolerance, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], wanted, err_msg=name)
    return found
