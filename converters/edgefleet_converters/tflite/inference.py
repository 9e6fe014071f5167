"""Static types of one node's outputs, by ONNX's own rules, with the constants among its inputs taken into account.

A node at a time, so that weights are never copied into a model of their own just to be looked at.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from edgefleet_converters.tflite.graph import Array, Value

# Larger constants never say anything about a shape, and would have to be copied.
_LARGEST_SHAPE_DATA = 4096


def infer(
    proto: onnx.NodeProto,
    types: Mapping[str, onnx.TypeProto],
    constants: Mapping[str, Array],
    opsets: Mapping[str, int],
) -> dict[str, onnx.TypeProto]:
    """Types of the outputs that can be inferred, by name; `types` and `constants` go by the node's own names."""
    try:
        schema = onnx.defs.get_schema(proto.op_type, opsets.get(proto.domain, 1), proto.domain)
        found: dict[str, onnx.TypeProto] = onnx.shape_inference.infer_node_outputs(
            schema,
            proto,
            dict(types),
            {
                name: numpy_helper.from_array(np.ascontiguousarray(array), name)
                for name, array in constants.items()
                if array.size <= _LARGEST_SHAPE_DATA
            },
            opset_imports=[onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()],
        )
    except (onnx.defs.SchemaError, onnx.shape_inference.InferenceError, KeyError, RuntimeError, ValueError):
        return {}
    return found


def type_of(array: Array) -> onnx.TypeProto:
    """The tensor type of an array."""
    return onnx.helper.make_tensor_type_proto(onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def value_of(name: str, described: onnx.TypeProto | None) -> Value:
    """A value of a described type; its shape is None when that is not static or not a tensor's."""
    if described is None or not described.HasField("tensor_type"):
        return Value(name, "unknown", None)
    tensor = described.tensor_type
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)) if tensor.elem_type else "unknown"
    if not tensor.HasField("shape"):
        return Value(name, dtype, None)
    sizes = [axis.dim_value if axis.HasField("dim_value") else None for axis in tensor.shape.dim]
    static = tuple(size for size in sizes if size is not None)
    return Value(name, dtype, static if len(static) == len(sizes) else None)
