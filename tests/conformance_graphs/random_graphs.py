"""Seeded random graphs with several branches, of what makes layout assignment hard.

A seed gives the same graph for ever; sizes are sometimes all equal, so that axes can be told apart by nothing but care.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx

from conformance_graphs.building import Building

_LARGEST = 6000
Step = Callable[[Building, list[str]], str]
"""Adds a node that reads some of the values; the name of its result, or nothing where none of them fits."""


def random_graph(seed: int, more: Sequence[Step] = ()) -> onnx.ModelProto:
    """A graph of 4 to 24 nodes over one image-like input, of the steps here and more."""
    steps = (*_STEPS, *more)
    b = Building(seed)
    channels, height, width = _sizes(b)
    values = [b.input(1 if b.random.random() < 0.8 else 2, channels, height, width)]
    for _ in range(int(b.random.integers(4, 25))):
        step = steps[int(b.random.integers(len(steps)))]
        made = step(b, values)
        if made and 0 < int(np.prod(b.shape(made))) <= _LARGEST:
            values.append(made)
    return b.model(*_ends(b, values))


def _sizes(b: Building) -> tuple[int, int, int]:
    if b.random.random() < 0.3:
        size = int(b.random.integers(2, 6))
        return size, size, size
    channels, height, width = (int(size) for size in b.random.integers(1, 9, 3))
    return channels, height, width


def _ends(b: Building, values: list[str]) -> list[str]:
    """What nothing reads, and sometimes a value in the middle too."""
    read = {name for node in b.nodes for name in node.input}
    made = [name for node in b.nodes for name in node.output]
    ends = [name for name in made if name not in read]
    inner = [name for name in values[1:] if name in read]
    if inner and b.random.random() < 0.2:
        ends.append(inner[int(b.random.integers(len(inner)))])
    return ends or [b.node("Relu", values[0])]


def pick(b: Building, values: list[str], rank: int = 0) -> str:
    """A recent value more often than an old one; of a rank, or nothing."""
    fitting = [name for name in values if not rank or len(b.shape(name)) == rank]
    if not fitting:
        return ""
    recent = fitting[-3:] if b.random.random() < 0.7 else fitting
    return recent[int(b.random.integers(len(recent)))]


def _conv(b: Building, values: list[str]) -> str:
    data = pick(b, values, 4)
    if not data:
        return ""
    channels = b.shape(data)[1]
    kernel, stride = int(b.random.choice([1, 3])), int(b.random.choice([1, 1, 2]))
    if b.random.random() < 0.25 and channels > 1:
        return b.conv(data, channels, kernel, stride, group=channels)
    return b.conv(data, int(b.random.choice([channels, 3, 4, 8])), kernel, stride)


def _activation(b: Building, values: list[str]) -> str:
    operator = str(b.random.choice(["Relu", "Sigmoid", "HardSwish", "LeakyRelu", "Tanh", "Abs", "Neg"]))
    return b.node(operator, pick(b, values))


def _residual(b: Building, values: list[str]) -> str:
    first = pick(b, values)
    others = [name for name in values if _broadcasts(b.shape(name), b.shape(first))]
    second = others[int(b.random.integers(len(others)))]
    pair = (first, second) if b.random.random() < 0.5 else (second, first)
    return b.node(str(b.random.choice(["Add", "Add", "Mul", "Sub", "Max"])), *pair)


def _broadcasts(left: tuple[int, ...], right: tuple[int, ...]) -> bool:
    try:
        np.broadcast_shapes(left, right)
    except ValueError:
        return False
    return True


def _constant_operand(b: Building, values: list[str]) -> str:
    data = pick(b, values)
    shape = b.shape(data)
    cut = int(b.random.integers(0, len(shape) + 1))
    sizes = [size if b.random.random() < 0.5 else 1 for size in shape[cut:]]
    pair = [data, b.normal(*sizes)]
    return b.node(str(b.random.choice(["Add", "Mul", "Sub"])), *(pair if b.random.random() < 0.7 else pair[::-1]))


def _concat(b: Building, values: list[str]) -> str:
    first = pick(b, values)
    shape = b.shape(first)
    if not shape:
        return ""
    axis = int(b.random.integers(len(shape)))
    fitting = [
        name
        for name in values
        if len(b.shape(name)) == len(shape)
        and all(size == other for at, (size, other) in enumerate(zip(b.shape(name), shape, strict=True)) if at != axis)
    ]
    count = int(b.random.integers(1, 3))
    others = [fitting[int(b.random.integers(len(fitting)))] for _ in range(count)]
    more = [b.normal(*shape)] if b.random.random() < 0.15 else []
    return b.node("Concat", first, *others, *more, axis=axis - (len(shape) if b.random.random() < 0.3 else 0))


def _pool(b: Building, values: list[str]) -> str:
    data = pick(b, values, 4)
    if not data:
        return ""
    if b.random.random() < 0.3:
        return b.node("GlobalAveragePool", data)
    kernel = int(b.random.choice([1, 2, 3]))
    if min(b.shape(data)[2:]) < kernel:
        return ""
    operator = str(b.random.choice(["MaxPool", "AveragePool"]))
    return b.node(operator, data, kernel_shape=[kernel] * 2, strides=[int(b.random.choice([1, 2]))] * 2)


def _excite(b: Building, values: list[str]) -> str:
    """A squeeze-and-excite gate: per channel, from the map's own mean."""
    data = pick(b, values, 4)
    if not data:
        return ""
    gate = b.node("Sigmoid", b.conv(b.node("GlobalAveragePool", data), b.shape(data)[1], 1))
    return b.node("Mul", data, gate)


def _resize(b: Building, values: list[str]) -> str:
    data = pick(b, values, 4)
    if not data:
        return ""
    scales = b.constant(np.array([1, 1, 2, 2], np.float32))
    nearest = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    return b.node("Resize", data, "", scales, **nearest)


def _softmax(b: Building, values: list[str]) -> str:
    data = pick(b, values)
    return b.node("Softmax", data, axis=int(b.random.integers(len(b.shape(data))))) if b.shape(data) else ""


def _reduce(b: Building, values: list[str]) -> str:
    data = pick(b, values)
    rank = len(b.shape(data))
    if not rank:
        return ""
    axes = b.random.permutation(rank)[: int(b.random.integers(1, min(rank, 3) + 1))]
    keep = int(b.random.random() < 0.7)
    operator = str(b.random.choice(["ReduceMean", "ReduceMax", "ReduceSum"]))
    return b.node(operator, data, b.integers(*(int(axis) for axis in axes)), keepdims=keep)


def _transpose(b: Building, values: list[str]) -> str:
    data = pick(b, values)
    rank = len(b.shape(data))
    perm = [0, 2, 3, 1] if rank == 4 and b.random.random() < 0.5 else b.random.permutation(rank).tolist()
    return b.node("Transpose", data, perm=perm) if rank > 1 else ""


def _island(b: Building, values: list[str]) -> str:
    """Something that works on the last axis, between two transposes, as in graphs that came from NHWC."""
    data = pick(b, values, 4)
    if not data:
        return ""
    inside = b.node("Transpose", data, perm=[0, 2, 3, 1])
    for _ in range(int(b.random.integers(1, 3))):
        inside = b.node("Mul", inside, b.normal(b.shape(inside)[-1]))
        inside = b.node("Softmax", inside, axis=-1) if b.random.random() < 0.3 else b.node("Relu", inside)
    return b.node("Transpose", inside, perm=[0, 3, 1, 2])


def _reshape(b: Building, values: list[str]) -> str:
    """Axes merged, split, or made anew out of the same elements."""
    data = pick(b, values)
    shape = b.shape(data)
    how = b.random.random()
    if how < 0.35 and len(shape) == 4:
        return b.node("Reshape", data, b.integers(shape[0], shape[1], -1))
    if how < 0.6 and len(shape) == 3:
        sizes = [size for size in range(1, shape[2] + 1) if shape[2] % size == 0]
        size = int(b.random.choice(sizes))
        return b.node("Reshape", data, b.integers(shape[0], shape[1], size, -1))
    if how < 0.8 and len(shape) == 4 and shape[1] % 2 == 0:
        split = b.node("Reshape", data, b.integers(shape[0], 2, shape[1] // 2, *shape[2:]))
        turned = b.node("Transpose", split, perm=[0, 2, 1, 3, 4])
        return b.node("Reshape", turned, b.integers(*shape))
    if how < 0.9 and len(shape) > 1:
        return b.node("Flatten", data, axis=1)
    ones = [axis for axis, size in enumerate(shape) if size == 1]
    if ones and len(shape) > 2:
        return b.node("Squeeze", data, b.integers(ones[int(b.random.integers(len(ones)))]))
    return b.node("Unsqueeze", data, b.integers(int(b.random.integers(len(shape) + 1)))) if len(shape) < 4 else ""


def _dense(b: Building, values: list[str]) -> str:
    data = pick(b, values)
    if len(b.shape(data)) < 2:
        return ""
    flat = b.node("Flatten", data, axis=1)
    made = b.dense(b.node("Relu", flat) if b.random.random() < 0.3 else flat, int(b.random.choice([4, 8, 12])))
    if b.random.random() < 0.4:
        return b.node("Reshape", made, b.integers(b.shape(made)[0], b.shape(made)[1] // 4, 2, 2))
    return made


def _slice(b: Building, values: list[str]) -> str:
    data = pick(b, values)
    shape = b.shape(data)
    axes = [axis for axis, size in enumerate(shape) if size > 1]
    if not axes:
        return ""
    axis = int(b.random.choice(axes))
    start, step = int(b.random.integers(0, shape[axis] - 1)), int(b.random.choice([1, 2, -1]))
    ends = (-1, -shape[axis] - 1) if step < 0 else (start, shape[axis])
    return b.node("Slice", data, b.integers(ends[0]), b.integers(ends[1]), b.integers(axis), b.integers(step))


def _split(b: Building, values: list[str]) -> str:
    data = pick(b, values)
    axes = [axis for axis, size in enumerate(b.shape(data)) if size % 2 == 0]
    if not axes:
        return ""
    parts = b.nodes_of("Split", [data], 2, axis=int(b.random.choice(axes)), num_outputs=2)
    values.append(parts[0])
    return parts[1]


def _pad(b: Building, values: list[str]) -> str:
    data = pick(b, values)
    rank = len(b.shape(data))
    pads = [int(count) for count in b.random.integers(0, 2, 2 * rank)]
    return b.node("Pad", data, b.integers(*pads)) if 0 < rank < 5 else ""


def _gather(b: Building, values: list[str]) -> str:
    data = pick(b, values)
    shape = b.shape(data)
    if not shape or len(shape) > 4:
        return ""
    axis = int(b.random.integers(len(shape)))
    chosen = [int(index) for index in b.random.integers(0, shape[axis], 3)]
    return b.node("Gather", data, b.integers(*chosen), axis=axis)


def _norm(b: Building, values: list[str]) -> str:
    data = pick(b, values, 4)
    return b.norm(data) if data else ""


_STEPS: tuple[Step, ...] = (
    *(_conv, _conv, _conv, _conv, _activation, _activation, _residual, _residual, _constant_operand, _concat, _concat),
    *(_pool, _excite, _resize, _softmax, _reduce, _transpose, _transpose, _island, _reshape, _reshape, _dense, _slice),
    *(_split, _pad, _gather, _norm),
)
