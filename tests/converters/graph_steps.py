"""Steps of a random graph: each draws one node of a kind, or rejects the draw where the graph has nothing for it.

Parameters stay where ONNX defines the result and rounding cannot decide it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import exp

import numpy as np
from hypothesis import strategies as st

from converters.graph_drawing import KINDS, NUMBERS, Drawing, joined

_SMOOTH: Mapping[str, Callable[[float], float]] = {
    **dict.fromkeys(("Sigmoid", "HardSigmoid", "Tanh", "Softsign", "Erf", "Sin", "Cos"), lambda _: 1.0),
    **dict.fromkeys(("LeakyRelu", "HardSwish", "Mish"), lambda a: a),
    **dict.fromkeys(("Softplus", "Elu", "Celu"), lambda a: a + 1),
    "Exp": lambda a: exp(min(a, 9.0)),
    "Selu": lambda a: 2 * a + 2,
}
_EXACT = ("Relu", "Neg", "Abs", "Identity")
_STEPPED = ("Floor", "Ceil", "Round", "Sign")


def _smooth(d: Drawing) -> None:
    x, operator = d.pick(["float32"]), d.one_of(_SMOOTH)
    d.add(operator, x, bound=_SMOOTH[operator](x.bound), exact=False)


def _exact(d: Drawing) -> None:
    operator = d.one_of(_EXACT)
    x = d.pick(["float32"] if operator == "Relu" else NUMBERS)
    d.add(operator, x, bound=x.bound)


def _stepped(d: Drawing) -> None:
    x = d.pick(["float32"], exact=True)
    d.add(d.one_of(_STEPPED), x, bound=x.bound + 1)


def _arithmetic(d: Drawing) -> None:
    x = d.pick(NUMBERS)
    y = d.beside(x)
    pair = (x, y) if d.draw(st.booleans()) else (y, x)
    operator = d.one_of(["Add", "Sub", "Mul", "Max", "Min"])
    bound = x.bound * y.bound if operator == "Mul" else x.bound + y.bound
    d.add(operator, *pair, bound=bound, exact=operator in ("Max", "Min") or x.dtype != "float32")


def _divided(d: Drawing) -> None:
    x = d.pick(NUMBERS)
    y = d.constant(x.dtype, x.shape[-1:], least=1)
    operator = "Div" if x.dtype == "float32" else d.one_of(["Div", "Mod"])
    d.add(operator, x, y, bound=x.bound * 4 + 8, exact=x.dtype != "float32")


def _clipped(d: Drawing) -> None:
    x = d.pick(NUMBERS)
    low, high = d.constant(x.dtype, ()), d.constant(x.dtype, ())
    d.add("Clip", x, low, high if low.bound <= high.bound and d.draw(st.booleans()) else "", bound=x.bound + 8)


def _compared(d: Drawing) -> None:
    operator = d.one_of(["Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"])
    x = d.pick(NUMBERS, exact=True)
    y = d.beside(x)
    d.add(operator, x, y if y.exact else x, bound=1)


def _logical(d: Drawing) -> None:
    x = d.pick(["bool"])
    operator = d.one_of(["And", "Or", "Xor", "Not"])
    d.add(operator, *([x] if operator == "Not" else [x, d.beside(x)]), bound=1)


def _chosen(d: Drawing) -> None:
    x, condition = d.pick(NUMBERS), d.pick(["bool"])
    y = d.beside(x)
    if not joined(condition.shape, np.broadcast_shapes(x.shape, y.shape)):
        condition = d.constant("bool", x.shape[-1:])
    d.add("Where", condition, x, y, bound=max(x.bound, y.bound))


def _cast(d: Drawing) -> None:
    to = d.one_of(KINDS)
    x = d.pick([dtype for dtype in KINDS if dtype != to], exact=to != "float32")
    d.add("Cast", x, bound=1 if to == "bool" else x.bound, to=KINDS[to])


_REDUCED: Mapping[str, Callable[[float, int], float]] = {
    **dict.fromkeys(("ReduceSum", "ReduceL1", "ReduceL2"), lambda a, n: a * n),
    **dict.fromkeys(("ReduceMax", "ReduceMin", "ReduceMean"), lambda a, _: a),
    "ReduceSumSquare": lambda a, n: a * a * n,
    "ReduceLogSumExp": lambda a, n: a + n,
}


def _reduced(d: Drawing) -> None:
    x = d.pick(NUMBERS, rank=1)
    operator = d.one_of(_REDUCED if x.dtype == "float32" else ["ReduceSum", "ReduceMax", "ReduceMin"])
    axes = sorted(d.draw(st.sets(st.integers(0, len(x.shape) - 1), min_size=1)))
    bound = _REDUCED[operator](x.bound, int(np.prod([x.shape[axis] for axis in axes])))
    exact = x.dtype != "float32" or operator in ("ReduceMax", "ReduceMin")
    d.add(operator, x, d.b.integers(*axes), bound=bound, exact=exact, keepdims=d.whole(0, 1))


def _summed(d: Drawing) -> None:
    x = d.pick(NUMBERS, rank=1)
    axis = d.axis(x)
    flags = {"exclusive": d.whole(0, 1), "reverse": d.whole(0, 1)}
    d.add("CumSum", x, d.b.integers(axis), bound=x.bound * x.shape[axis], exact=x.dtype != "float32", **flags)


def _arg(d: Drawing) -> None:
    x = d.pick(["float32", "int32"], rank=1, exact=True)
    d.add(d.one_of(["ArgMax", "ArgMin"]), x, bound=9, axis=d.axis(x), keepdims=d.whole(0, 1))


def _softmax(d: Drawing) -> None:
    x, operator = d.pick(["float32"], rank=1), d.one_of(["Softmax", "LogSoftmax"])
    axis = d.axis(x)
    d.add(operator, x, bound=1 if operator == "Softmax" else 2 * x.bound + x.shape[axis], exact=False, axis=axis)


def _product(d: Drawing) -> None:
    x = d.pick(["float32"], rank=2)
    size = x.shape[-1]
    fitting = [y for y in d.values if y.dtype == "float32" and len(y.shape) > 1 and y.shape[-2] == size]
    fitting = [y for y in fitting if joined(y.shape[:-2], x.shape[:-2])]
    if not fitting or d.draw(st.booleans()):
        fitting = [d.constant("float32", (size, d.whole(1, 5)))]
    y = d.one_of(fitting)
    if len(x.shape) == len(y.shape) == 2 and d.draw(st.booleans()):
        bias = d.constant("float32", (y.shape[1],))
        d.add("Gemm", x, y, bias, bound=size * x.bound * y.bound + bias.bound, exact=False)
    else:
        d.add("MatMul", x, y, bound=size * x.bound * y.bound, exact=False)


def _reshaped(d: Drawing) -> None:
    x = d.pick([*KINDS], rank=1)
    shape = d.draw(st.permutations(x.shape))
    cut = d.whole(0, len(shape) - 1)
    merged = [*shape[:cut], int(np.prod(shape[cut:]))]
    merged[d.whole(0, len(merged) - 1)] = -1
    how = d.whole(0, 3)
    if how == 0:
        d.add("Unsqueeze", x, d.b.integers(d.whole(0, len(x.shape))), bound=x.bound)
    elif how == 1:
        d.add("Flatten", x, bound=x.bound, axis=d.whole(0, len(x.shape)))
    else:
        d.add("Reshape", x, d.b.integers(*merged), bound=x.bound)


def _transposed(d: Drawing) -> None:
    x = d.pick([*KINDS], rank=2)
    d.add("Transpose", x, bound=x.bound, perm=d.draw(st.permutations(range(len(x.shape)))))


def _concatenated(d: Drawing) -> None:
    x = d.pick([*KINDS], rank=1)
    axis = d.whole(0, len(x.shape) - 1)
    others = [y for y in d.values if y.dtype == x.dtype and _without(y.shape, axis) == _without(x.shape, axis)]
    y = d.one_of([*others, d.constant(x.dtype, x.shape)])
    d.add("Concat", x, y, bound=max(x.bound, y.bound), axis=axis - d.one_of([0, len(x.shape)]))


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (len(shape), *shape[:axis], *shape[axis + 1 :])


def _sliced(d: Drawing) -> None:
    x = d.pick([*KINDS], rank=1)
    axis = d.axis(x)
    size = x.shape[axis]
    start, step = d.whole(0, size - 1), d.one_of([1, 1, 2, -1, -2])
    end = d.one_of([start + 1, size, 2**31]) if step > 0 else d.one_of([-size - 1, -(2**31)])
    d.add("Slice", x, d.b.integers(start - d.one_of([0, size])), *map(d.b.integers, (end, axis, step)), bound=x.bound)


def _gathered(d: Drawing) -> None:
    x = d.pick([*KINDS], rank=1)
    axis = d.axis(x)
    size = x.shape[axis]
    shape = d.one_of([(), (1,), (3,), (2, 2)])
    indices = d.b.random.integers(-size, size, shape).astype(np.int64)
    d.add("Gather", x, d.b.constant(np.asarray(indices)), bound=x.bound, axis=axis)


def _padded(d: Drawing) -> None:
    x, mode = d.pick(NUMBERS, rank=1), d.one_of(["constant", "edge", "reflect"])
    most = 2 if mode != "reflect" else min(2, min(x.shape) - 1)
    pads = [d.whole(0, most) for _ in range(2 * len(x.shape))]
    filling = [d.constant(x.dtype, ())] if mode == "constant" and d.draw(st.booleans()) else []
    d.add("Pad", x, d.b.integers(*pads), *filling, bound=x.bound + 8, mode=mode)


def _repeated(d: Drawing) -> None:
    x = d.pick([*KINDS], rank=1)
    if d.draw(st.booleans()):
        d.add("Tile", x, d.b.integers(*(d.whole(1, 2) for _ in x.shape)), bound=x.bound)
    else:
        d.add("Expand", x, d.b.integers(d.whole(1, 2), *(size if size > 1 else 2 for size in x.shape)), bound=x.bound)


def _split(d: Drawing) -> None:
    x = d.pick([*KINDS], rank=1)
    axis = d.axis(x)
    first = d.whole(1, max(x.shape[axis] - 1, 1))
    sizes = [first, x.shape[axis] - first] if x.shape[axis] > 1 else [1]
    d.add_several("Split", [x, d.b.integers(*sizes)], [x.bound] * len(sizes), exact=True, axis=axis)


def _largest(d: Drawing) -> None:
    x = d.pick(NUMBERS, rank=1, exact=True)
    axis = d.axis(x)
    count = d.b.integers(d.whole(1, x.shape[axis]))
    d.add_several("TopK", [x, count], [x.bound, 9], exact=True, axis=axis, largest=d.whole(0, 1))


def _elements(d: Drawing) -> None:
    x = d.pick([*KINDS], rank=1)
    axis = d.axis(x)
    size = x.shape[axis]
    shape = list(x.shape)
    shape[axis] = d.whole(1, 3)
    if d.draw(st.booleans()):
        indices = d.b.constant(d.b.random.integers(-size, size, shape).astype(np.int64))
        d.add("GatherElements", x, indices, bound=x.bound, axis=axis)
    else:
        # Each index once: what is written twice has no defined value.
        shape[axis] = size
        indices = d.b.constant(d.b.random.random(shape).argsort(axis).astype(np.int64))
        d.add("ScatterElements", x, indices, d.constant(x.dtype, tuple(shape)), bound=x.bound + 8, axis=axis)


def _triangle(d: Drawing) -> None:
    x = d.pick([*KINDS], rank=2)
    d.add("Trilu", x, d.b.constant(np.array(d.whole(-2, 2), np.int64)), bound=x.bound, upper=d.whole(0, 1))


def _pooled(d: Drawing) -> None:
    x = d.pick(["float32"])
    y, operator = d.beside(x), d.one_of(["Sum", "Mean"])
    d.add(operator, x, y, x, bound=2 * x.bound + y.bound, exact=False)


def _shaped(d: Drawing) -> None:
    x, how = d.pick(["float32"], rank=1), d.one_of(["PRelu", "Pow", "ThresholdedRelu"])
    if how == "PRelu":
        slope = d.constant("float32", x.shape[-1:])
        d.add(how, x, slope, bound=x.bound * max(slope.bound, 1), exact=False)
    elif how == "Pow":
        d.add(how, x, d.b.constant(np.array(2, np.float32)), bound=x.bound**2, exact=False)
    elif x.exact:
        d.add(how, x, bound=x.bound, alpha=0.5)


STEPS: tuple[Callable[[Drawing], None], ...] = (
    *(_smooth, _exact, _stepped, _arithmetic, _arithmetic, _divided, _clipped, _compared, _logical, _chosen, _cast),
    *(_reduced, _summed, _arg, _softmax, _product, _reshaped, _transposed, _concatenated, _sliced, _gathered),
    *(_padded, _repeated, _split, _largest, _elements, _triangle, _pooled, _shaped),
)
