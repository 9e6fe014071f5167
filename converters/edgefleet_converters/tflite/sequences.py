"""Sequences and optionals whose length is known before run time: they are resolved to the tensors that they hold.

TFLite has neither; one that reaches an output of the model, or is taken apart at a computed position, stays refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import onnx

from edgefleet_converters.tflite.evaluation import attribute
from edgefleet_converters.tflite.unrolling import compose, known_integer, pick, stack
from edgefleet_converters.tflite.walking import Control, Scope, Walk


def _elements(walk: Walk, name: str) -> list[str] | None:
    """Names of the tensors that a sequence holds, or None when that is not known."""
    if name in walk.sequences:
        return list(walk.sequences[name])
    value = walk.known.get(name)
    if not isinstance(value, list):
        return None
    return [walk.constant(f"{name}/{position}", np.asarray(item)) for position, item in enumerate(value)]


def _integer(walk: Walk, inputs: Sequence[str], position: int, absent: int) -> int | None:
    """A known whole number, None where it is computed; `absent` where there is no such input."""
    there = position < len(inputs) and inputs[position]
    return known_integer(walk, inputs[position]) if there else absent


def _option(proto: onnx.NodeProto, name: str, default: int) -> int:
    found = attribute(proto, name)
    return found.i if found is not None else default


def _made(walk: Walk, proto: onnx.NodeProto, scope: Scope, elements: Sequence[str]) -> list[str]:
    return [walk.sequence(scope.prefix + proto.output[0], elements)]


def construct(walk: Walk, proto: onnx.NodeProto, scope: Scope, inputs: Sequence[str]) -> list[str] | None:
    """SequenceConstruct and SequenceEmpty."""
    return _made(walk, proto, scope, inputs)


def insert(walk: Walk, proto: onnx.NodeProto, scope: Scope, inputs: Sequence[str]) -> list[str] | None:
    """SequenceInsert at a known position, or at the end."""
    elements = _elements(walk, inputs[0])
    if elements is None:
        return None
    position = _integer(walk, inputs, 2, len(elements))
    if position is None or not -len(elements) <= position <= len(elements):
        return None
    elements.insert(position, inputs[1])
    return _made(walk, proto, scope, elements)


def erase(walk: Walk, proto: onnx.NodeProto, scope: Scope, inputs: Sequence[str]) -> list[str] | None:
    """SequenceErase at a known position, or at the end."""
    elements = _elements(walk, inputs[0])
    position = _integer(walk, inputs, 1, -1)
    if elements is None or position is None or not -len(elements) <= position < len(elements):
        return None
    del elements[position]
    return _made(walk, proto, scope, elements)


def element(walk: Walk, _proto: onnx.NodeProto, _scope: Scope, inputs: Sequence[str]) -> list[str] | None:
    """SequenceAt a known position."""
    elements, position = _elements(walk, inputs[0]), _integer(walk, inputs, 1, 0)
    if elements is None or position is None or not -len(elements) <= position < len(elements):
        return None
    return [elements[position]]


def length(walk: Walk, proto: onnx.NodeProto, scope: Scope, inputs: Sequence[str]) -> list[str] | None:
    """SequenceLength."""
    elements = _elements(walk, inputs[0])
    if elements is None:
        return None
    return [walk.constant(scope.prefix + proto.output[0], np.array(len(elements), np.int64))]


def join(walk: Walk, proto: onnx.NodeProto, scope: Scope, inputs: Sequence[str]) -> list[str] | None:
    """ConcatFromSequence, along an axis of the elements or a new one."""
    elements = _elements(walk, inputs[0])
    prefix, axis = f"{scope.prefix}{proto.output[0]}/", _option(proto, "axis", 0)
    if not elements:
        return None
    if _option(proto, "new_axis", 0):
        rank = len(walk.value(elements[0]).shape or ())
        return [stack(walk, prefix, elements, axis % (rank + 1))]
    return [compose(walk, prefix, "Concat", elements, axis=axis)]


def split(walk: Walk, proto: onnx.NodeProto, scope: Scope, inputs: Sequence[str]) -> list[str] | None:
    """SplitToSequence into parts of known sizes, or into elements."""
    shape = walk.value(inputs[0]).shape
    if not shape:
        return None
    axis, prefix = _option(proto, "axis", 0) % len(shape), f"{scope.prefix}{proto.output[0]}/"
    if len(inputs) < 2 or not inputs[1]:
        if not _option(proto, "keepdims", 1):
            parts = [pick(walk, prefix, inputs[0], axis, position) for position in range(shape[axis])]
            return _made(walk, proto, scope, parts)
        sizes = [1] * shape[axis]
    else:
        known = walk.known.get(inputs[1])
        if not isinstance(known, np.ndarray):
            return None
        size = int(known.ravel()[0])
        sizes = [min(size, shape[axis] - start) for start in range(0, shape[axis], size)]
        sizes = sizes if known.ndim == 0 else [int(item) for item in known]
    ends = np.cumsum(sizes).tolist()
    parts = [_block(walk, prefix, inputs[0], axis, (end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    return _made(walk, proto, scope, parts)


def _block(walk: Walk, prefix: str, name: str, axis: int, bounds: tuple[int, int]) -> str:
    """Elements from the first bound to before the second one."""
    where = [walk.constant(f"{prefix}bound", np.array([value], np.int64)) for value in (*bounds, axis)]
    return compose(walk, prefix, "Slice", [name, *where])


def present(walk: Walk, _proto: onnx.NodeProto, _scope: Scope, inputs: Sequence[str]) -> list[str] | None:
    """Optional of a value, and OptionalGetElement: the value itself."""
    missing = not inputs or not inputs[0] or (inputs[0] in walk.known and walk.known[inputs[0]] is None)
    return None if missing else [inputs[0]]


def is_present(walk: Walk, proto: onnx.NodeProto, scope: Scope, inputs: Sequence[str]) -> list[str] | None:
    """OptionalHasElement: whether there is a value."""
    there = present(walk, proto, scope, inputs) is not None
    return [walk.constant(scope.prefix + proto.output[0], np.array(there))]


SEQUENCES: Mapping[str, Control] = MappingProxyType(
    {
        "ConcatFromSequence": join,
        "Optional": present,
        "OptionalGetElement": present,
        "OptionalHasElement": is_present,
        "SequenceAt": element,
        "SequenceConstruct": construct,
        "SequenceEmpty": construct,
        "SequenceErase": erase,
        "SequenceInsert": insert,
        "SequenceLength": length,
        "SplitToSequence": split,
    }
)
