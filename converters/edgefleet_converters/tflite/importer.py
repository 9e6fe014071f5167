"""First pass: an ONNX protobuf becomes our graph, with the static shapes that ONNX shape inference finds.

Does not judge operators: whatever is in the file comes out, and `lower` says what it cannot express.
"""

from __future__ import annotations

import onnx
from onnx import numpy_helper

from edgefleet_converters.tflite.graph import Array, Graph, Node, Value

_STANDARD_DOMAINS = ("", "ai.onnx")


def import_model(model: onnx.ModelProto) -> Graph:
    """Graph of a checked model; an operator outside the standard domain keeps its domain in its name."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = inferred.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    described = (*graph.input, *graph.value_info, *graph.output)
    return Graph(
        nodes=tuple(_node(position, proto) for position, proto in enumerate(graph.node)),
        values={info.name: _value(info) for info in described if info.name not in constants},
        constants=constants,
        inputs=tuple(info.name for info in graph.input if info.name not in constants),
        outputs=tuple(info.name for info in graph.output),
        opset=next(entry.version for entry in model.opset_import if entry.domain in _STANDARD_DOMAINS),
    )


def _node(position: int, proto: onnx.NodeProto) -> Node:
    operator = proto.op_type if proto.domain in _STANDARD_DOMAINS else f"{proto.domain}.{proto.op_type}"
    return Node(
        name=proto.name or f"{proto.op_type}_{position}",
        operator=operator,
        inputs=tuple(proto.input),
        outputs=tuple(proto.output),
        attributes={attribute.name: _attribute(attribute) for attribute in proto.attribute},
    )


def _attribute(attribute: onnx.AttributeProto) -> object:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        array: Array = numpy_helper.to_array(value)
        return array
    return value


def _value(info: onnx.ValueInfoProto) -> Value:
    tensor = info.type.tensor_type
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)) if tensor.elem_type else "unknown"
    if not tensor.HasField("shape"):
        return Value(info.name, dtype, None)
    sizes = [axis.dim_value if axis.HasField("dim_value") else None for axis in tensor.shape.dim]
    static = tuple(size for size in sizes if size is not None)
    return Value(info.name, dtype, static if len(static) == len(sizes) else None)
