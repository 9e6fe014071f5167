"""Static types of one node's outputs, by ONNX's own rules, with the constants among its inputs taken into account.

A node at a time, so that weights are never copied into a model of their own just to be looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from edgefleet_converters.tflite.graph import Array, Value

# Larger constants never say anything about a shape, and would have to be copied.
_LARGEST_SHAPE_DATA = 4096
# ONNX infers nothing for these without opening them (or refuses to); their first output is like their first input.
_LIKE_FIRST_INPUT = ("CausalConvWithState", "GroupNormalization", "MeanVarianceNormalization")


def infer(
    proto: onnx.NodeProto,
    types: Mapping[str, onnx.TypeProto],
    constants: Mapping[str, Array],
    opsets: Mapping[str, int],
) -> dict[str, onnx.TypeProto]:
    """Types of the outputs that can be inferred, by name; `types` and `constants` go by the node's own names."""
    if proto.op_type in _LIKE_FIRST_INPUT and not proto.domain and proto.input[0] in types:
        return {**_by_schema(proto, types, constants, opsets), proto.output[0]: types[proto.input[0]]}
    return _by_schema(proto, types, constants, opsets)


def _by_schema(
    proto: onnx.NodeProto,
    types: Mapping[str, onnx.TypeProto],
    constants: Mapping[str, Array],
    opsets: Mapping[str, int],
) -> dict[str, onnx.TypeProto]:
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
    except (
        onnx.checker.ValidationError,
        onnx.defs.SchemaError,
        onnx.shape_inference.InferenceError,
        KeyError,
        RuntimeError,
        ValueError,
    ):
        return {}
    correction = _CORRECTIONS.get(proto.op_type) if not proto.domain else None
    shape = correction(proto, types, constants) if correction else None
    if shape is None:
        return found
    element = types[proto.input[0]].tensor_type.elem_type
    return {**found, proto.output[0]: onnx.helper.make_tensor_type_proto(element, shape)}


def _conv_transpose(
    proto: onnx.NodeProto, types: Mapping[str, onnx.TypeProto], _constants: Mapping[str, Array]
) -> list[int] | None:
    """ONNX leaves off the spatial axes where `output_shape` makes one of them smaller than the input's."""
    given = {item.name: item for item in proto.attribute}
    value, weight = (value_of(name, types.get(name)).shape for name in proto.input[:2])
    if "output_shape" not in given or value is None or weight is None:
        return None
    group = given["group"].i if "group" in given else 1
    spatial = list(given["output_shape"].ints)[2 - len(value) :]
    return [value[0], weight[1] * group, *spatial]


def _stft(
    proto: onnx.NodeProto, types: Mapping[str, onnx.TypeProto], constants: Mapping[str, Array]
) -> list[int] | None:
    """ONNX takes every spectrum for a two-sided one where only the window tells its length."""
    given = {item.name: item for item in proto.attribute}
    signal, step = value_of("", types.get(proto.input[0])).shape, constants.get(proto.input[1])
    window = value_of("", types.get(proto.input[2])).shape if len(proto.input) > 2 and proto.input[2] else None
    if signal is None or step is None or window is None or (len(proto.input) > 3 and proto.input[3]):
        return None
    bins = window[0] // 2 + 1 if "onesided" not in given or given["onesided"].i else window[0]
    return [signal[0], (signal[1] - window[0]) // int(step.item()) + 1, bins, 2]


_Correction = Callable[[onnx.NodeProto, Mapping[str, onnx.TypeProto], Mapping[str, Array]], "list[int] | None"]
# Shapes of first outputs that ONNX's own rules get wrong.
_CORRECTIONS: Mapping[str, _Correction] = {"ConvTranspose": _conv_transpose, "STFT": _stft}


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
