"""Small ONNX models for the tests, and one call that compares their lowering with ONNX Runtime.

Weights are random but seeded: the same model on every run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgefleet_converters.tflite import Lowered, lower

Floats = NDArray[np.float32]


def weights(*shape: int, seed: int = 0) -> Floats:
    """Seeded normal weights."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def build(
    nodes: Sequence[onnx.NodeProto],
    input_shape: Sequence[int | str],
    constants: Mapping[str, NDArray[np.generic]] | None = None,
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
) -> onnx.ModelProto:
    """A checked model with one float32 input `x`; the output shapes are inferred."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(input_shape))],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def conv(
    channels: int, size: tuple[int, int], filters: int, kernel: tuple[int, int], **attributes: object
) -> onnx.ModelProto:
    """One Conv over [1, channels, *size]."""
    group = int(str(attributes.get("group", 1)))
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], **attributes)
    constants = {"w": weights(filters, channels // group, *kernel), "b": weights(filters, seed=1)}
    return build([node], (1, channels, *size), constants)


def in_onnxruntime(model: onnx.ModelProto, x: Floats) -> dict[str, Floats]:
    """Outputs of the model in ONNX Runtime."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: x}), strict=True))


def in_litert(lowered: Lowered, x: Floats) -> dict[str, Floats]:
    """Outputs of the lowered file in LiteRT, brought back to the source's layout."""
    interpreter = Interpreter(model_content=lowered.content, num_threads=1)
    spec = lowered.inputs[0]
    stored = x if spec.permutation is None else x.transpose(spec.permutation)
    found = interpreter.get_signature_runner()(**{spec.name: np.ascontiguousarray(stored)})
    return {
        output.name: found[output.name]
        if output.permutation is None
        else found[output.name].transpose(np.argsort(output.permutation))
        for output in lowered.outputs
    }


def operators(lowered: Lowered) -> list[str]:
    """TFLite operators of a file, in order."""
    interpreter = Interpreter(model_content=lowered.content, num_threads=1)
    names = [str(operator["op_name"]) for operator in interpreter._get_ops_details()]
    return [name for name in names if name != "DELEGATE"]


def assert_same(model: onnx.ModelProto, tolerance: float = 1e-5) -> Lowered:
    """The lowered file and ONNX Runtime agree on names, shapes and values for seeded input."""
    shape = [axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim]
    x = weights(*shape, seed=7)
    lowered = lower(model)
    expected, found = in_onnxruntime(model, x), in_litert(lowered, x)
    assert list(found) == list(expected)
    for spec in lowered.outputs:
        assert spec.shape == expected[spec.name].shape
        assert found[spec.name].shape == expected[spec.name].shape
        np.testing.assert_allclose(found[spec.name], expected[spec.name], rtol=tolerance, atol=tolerance)
    return lowered
