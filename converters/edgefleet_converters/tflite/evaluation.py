"""The value of one ONNX operator on constants: numpy for the ones that shape arithmetic needs, else ONNX's own.

Does not decide what is folded; it never raises for an operator that it cannot run.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from edgefleet_converters.tflite.graph import Array

Known = object
"""A value that is known before run time: an array, a list of arrays (a sequence), or None (an empty optional)."""

# Their result differs from run to run.
RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
)


def evaluate(proto: onnx.NodeProto, inputs: Sequence[Known], opsets: Mapping[str, int]) -> dict[str, Known] | None:
    """Outputs by position name, or None when this node cannot be computed ahead of run time."""
    if proto.op_type in RANDOM:
        return None
    direct = _DIRECT.get(proto.op_type) if not proto.domain else None
    try:
        if direct is not None and (found := direct(proto, inputs)) is not None:
            return {proto.output[0]: found}
        return _by_reference(proto, inputs, opsets)
    except Exception:  # noqa: BLE001 - whatever the reference lacks or refuses is left to run time
        return None


def _by_reference(proto: onnx.NodeProto, inputs: Sequence[Known], opsets: Mapping[str, int]) -> dict[str, Known] | None:
    # Its operators take 0.3 s to import, which most models never need.
    from onnx.reference import ReferenceEvaluator  # noqa: PLC0415

    feeds = {name: value for name, value in zip(proto.input, inputs, strict=True) if name}
    outputs = [name for name in proto.output if name]
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    function = onnx.helper.make_function("", proto.op_type, list(feeds), outputs, [proto], imports)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = ReferenceEvaluator(function).run(None, feeds, attributes={})
    return {
        name: value if isinstance(value, list) or value is None else np.asarray(value)
        for name, value in zip(outputs, found, strict=True)
    }


def attribute(proto: onnx.NodeProto, name: str) -> onnx.AttributeProto | None:
    """An attribute of a node by its name, or None."""
    return next((found for found in proto.attribute if found.name == name), None)


def _constant(proto: onnx.NodeProto, _inputs: Sequence[Known]) -> Array | None:
    """Constant in each of its forms but sparse and text."""
    found = proto.attribute[0]
    if found.name == "value":
        value: Array = numpy_helper.to_array(found.t)
        return value
    forms: dict[str, Callable[[], Array]] = {
        "value_int": lambda: np.array(found.i, np.int64),
        "value_ints": lambda: np.array(found.ints, np.int64),
        "value_float": lambda: np.array(found.f, np.float32),
        "value_floats": lambda: np.array(found.floats, np.float32),
    }
    return forms[found.name]() if found.name in forms else None


def _axis(proto: onnx.NodeProto) -> int:
    found = attribute(proto, "axis")
    return found.i if found is not None else 0


def _concat(proto: onnx.NodeProto, inputs: Sequence[Known]) -> Array:
    return np.concatenate([np.asarray(value) for value in inputs], axis=_axis(proto))


def _gather(proto: onnx.NodeProto, inputs: Sequence[Known]) -> Array:
    data, indices = (np.asarray(value) for value in inputs)
    return np.asarray(np.take(data, indices.astype(np.int64), axis=_axis(proto)))


def _cast(proto: onnx.NodeProto, inputs: Sequence[Known]) -> Array | None:
    data = np.asarray(inputs[0])
    target = attribute(proto, "to")
    plain = "biufc"
    if target is None or data.dtype.kind not in plain:
        return None
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(target.i))
    # Text and the small floats have rules of their own.
    return data.astype(dtype) if dtype.kind in plain and np.isfinite(data).all() else None


def _cast_like(_proto: onnx.NodeProto, inputs: Sequence[Known]) -> Array | None:
    data, like = (np.asarray(value) for value in inputs)
    plain = data.dtype.kind in "biufc" and like.dtype.kind in "biufc" and np.isfinite(data).all()
    return data.astype(like.dtype) if plain else None


def _unsqueeze(_proto: onnx.NodeProto, inputs: Sequence[Known]) -> Array | None:
    if len(inputs) < 2:
        return None
    axes = np.asarray(inputs[1]).ravel().tolist()
    return np.expand_dims(np.asarray(inputs[0]), tuple(int(axis) for axis in axes))


def _squeeze(_proto: onnx.NodeProto, inputs: Sequence[Known]) -> Array | None:
    if len(inputs) < 2 or inputs[1] is None:
        return None
    axes = np.asarray(inputs[1]).ravel().tolist()
    return np.squeeze(np.asarray(inputs[0]), tuple(int(axis) for axis in axes))


def _binary(operation: Callable[[Array, Array], object]) -> Callable[[onnx.NodeProto, Sequence[Known]], Array | None]:
    def evaluated(proto: onnx.NodeProto, inputs: Sequence[Known]) -> Array | None:
        # Before opset 7 these had a broadcasting rule of their own.
        if proto.attribute:
            return None
        left, right = (np.asarray(value) for value in inputs)
        with np.errstate(all="ignore"):
            found = operation(left, right)
        return None if found is None else np.asarray(found)

    return evaluated


def _divide(left: Array, right: Array) -> object:
    """ONNX integer division truncates."""
    if left.dtype.kind == "f":
        return left / right  # type: ignore[operator]
    whole = np.trunc(left.astype(np.float64) / right.astype(np.float64))
    exact = np.abs(left.astype(np.float64)).max(initial=0) < 2.0**52
    return whole.astype(left.dtype) if exact else None


def _range(_proto: onnx.NodeProto, inputs: Sequence[Known]) -> Array:
    start, limit, delta = (np.asarray(value) for value in inputs)
    count = max(int(np.ceil((limit.item() - start.item()) / delta.item())), 0)
    return np.asarray(start + np.arange(count) * delta).astype(start.dtype)


_DIRECT: Mapping[str, Callable[[onnx.NodeProto, Sequence[Known]], Array | None]] = {
    "Add": _binary(lambda a, b: a + b),  # type: ignore[operator]
    "Cast": _cast,
    "CastLike": _cast_like,
    "Concat": _concat,
    "Constant": _constant,
    "Div": _binary(_divide),
    "Equal": _binary(lambda a, b: a == b),
    "Gather": _gather,
    "Identity": lambda _, inputs: np.asarray(inputs[0]),
    "Mul": _binary(lambda a, b: a * b),  # type: ignore[operator]
    "Range": _range,
    "Squeeze": _squeeze,
    "Sub": _binary(lambda a, b: a - b),  # type: ignore[operator]
    "Unsqueeze": _unsqueeze,
}
