"""Activations that are not fused into the node before them, and the softmax family.

float32 (and float16 where the arithmetic does it), unless a function says otherwise.
"""

from __future__ import annotations

import math

import numpy as np

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Tensor, options_of
from edgefleet_converters.tflite.graph import Activation, Node
from edgefleet_converters.tflite.kernels import working_dtype
from edgefleet_converters.tflite.operators.contract import Lowering
from edgefleet_converters.tflite.operators.elementwise import unary

_MOVING = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


def clip(node: Node, e: Emitter) -> None:
    """Clip: bounds are attributes before opset 11, then optional inputs, which may be computed; any number type."""
    value = e.input(0)
    bounds = _bounds(node, e)
    known = [None if bound is None or bound.data is None else float(bound.data.item()) for bound in bounds]
    if value.dtype == "float32" and known == [0.0, 6.0]:
        e.into(node.outputs[0], e.relu6(value))
        return
    low, high = bounds
    if low is not None:
        value = e.relu(value) if known[0] == 0.0 else e.maximum(value, low)
    if high is not None:
        value = e.minimum(value, high)
    e.into(node.outputs[0], value)


def _bounds(node: Node, e: Emitter) -> tuple[Tensor | None, Tensor | None]:
    found: list[Tensor | None] = []
    for position, name in enumerate(("min", "max"), 1):
        if name in node.attributes:
            found.append(e.constant(np.array(node.number(name, 0.0), np.float32), role=name))
        else:
            found.append(e.input(position) if e.has(position) else None)
    return found[0], found[1]


def leaky_relu(node: Node, e: Emitter) -> None:
    """LeakyRelu: x, times alpha where negative."""
    e.into(node.outputs[0], e.leaky_relu(e.input(0), node.number("alpha", 0.01)))


def prelu(node: Node, e: Emitter) -> None:
    """PRelu: x, times a slope where negative; any number type, one operator for float32 with a constant slope.

    The slope broadcasts as in numpy; a vector before opset 7 is one number per channel.
    """
    value, slope = e.input(0), e.input(1)
    per_channel = node.opset < 7 and slope.rank == 1 and slope.shape[0] > 1
    behind = (1,) * (value.rank - 2) if per_channel else ()
    slope = e.reshape(slope, ((1,) * (value.rank - slope.rank - len(behind)) + slope.shape + behind))
    if value.dtype == "float32" and slope.data is not None and value.data is None:
        e.into(node.outputs[0], e.call("PRELU", [value, slope], value.shape, value.dtype))
        return
    zero = np.zeros((), value.dtype)
    e.into(node.outputs[0], e.select(e.less(value, zero), e.mul(value, slope), value))


def elu(node: Node, e: Emitter) -> None:
    """Elu: x, or alpha (e^x - 1) where negative. TFLite's own has no alpha."""
    value, alpha = e.input(0), node.number("alpha", 1.0)
    curve = e.unary("ELU", value)
    if alpha != 1.0:
        curve = e.select(e.less(value, 0.0), e.mul(curve, alpha), value)
    e.into(node.outputs[0], curve)


def selu(node: Node, e: Emitter) -> None:
    """Selu: gamma x, or gamma alpha (e^x - 1) where not positive."""
    value = e.input(0)
    alpha, gamma = node.number("alpha", 1.67326319217681884765625), node.number("gamma", 1.05070102214813232421875)
    negative = e.mul(e.unary("ELU", e.minimum(value, 0.0)), alpha * gamma)
    e.into(node.outputs[0], e.add(e.mul(e.relu(value), gamma), negative))


def celu(node: Node, e: Emitter) -> None:
    """Celu: max(0, x) + min(0, alpha (e^(x / alpha) - 1))."""
    value, alpha = e.input(0), node.number("alpha", 1.0)
    negative = e.mul(e.unary("ELU", e.mul(e.minimum(value, 0.0), 1 / alpha)), alpha)
    e.into(node.outputs[0], e.add(e.relu(value), negative))


def hard_sigmoid(node: Node, e: Emitter) -> None:
    """HardSigmoid: alpha x + beta, between 0 and 1; a sixth of a relu6 for float32, which the addition has fused."""
    value, alpha, beta = e.input(0), node.number("alpha", 0.2), node.number("beta", 0.5)
    if value.dtype == "float32":
        sixfold = value if np.float32(6 * alpha) == 1 else e.mul(value, 6 * alpha)
        e.into(node.outputs[0], e.mul(e.add(sixfold, 6 * beta, Activation.RELU6), 1 / 6))
        return
    e.into(node.outputs[0], e.minimum(e.relu(e.add(e.mul(value, alpha), beta)), 1.0))


def softplus(e: Emitter, x: Tensor) -> Tensor:
    """log(e^x + 1), in the form that does not overflow."""
    return e.add(e.relu(x), e.log(e.add(e.exp(e.neg(e.abs(x))), 1.0)))


def thresholded_relu(node: Node, e: Emitter) -> None:
    """ThresholdedRelu: x where it is above alpha, else 0."""
    value = e.input(0)
    e.into(node.outputs[0], e.select(e.greater(value, node.number("alpha", 1.0)), value, 0.0))


def shrink(node: Node, e: Emitter) -> None:
    """Shrink: x towards 0 by `bias` outside [-lambd, lambd], 0 inside; any signed number type."""
    value, bias, bound = e.input(0), node.number("bias", 0.0), node.number("lambd", 0.5)
    above = e.select(e.greater(value, bound), e.sub(value, bias), 0.0)
    e.into(node.outputs[0], e.select(e.less(value, -bound), e.add(value, bias), above))


def gelu(node: Node, e: Emitter) -> None:
    """Gelu, exact or by its tanh approximation."""
    options = options_of("Gelu", approximate=node.text("approximate", "none") == "tanh")
    e.into(node.outputs[0], e.unary("GELU", e.input(0), options))


def swish(node: Node, e: Emitter) -> None:
    """Swish: x sigmoid(alpha x)."""
    value, alpha = e.input(0), node.number("alpha", 1.0)
    e.into(node.outputs[0], e.mul(value, e.sigmoid(value if alpha == 1.0 else e.mul(value, alpha))))


def _single(node: Node, e: Emitter) -> Tensor:
    """The input as float32: a float64 one only where it was float32 before a Cast, so that no digit is lost."""
    value = e.input(0)
    widened = value.dtype == "float64" and _was_single(node.input(0), e)
    return e.cast(value, "float32" if widened else working_dtype("SOFTMAX", value.dtype))


def _was_single(name: str, e: Emitter) -> bool:
    """Whether a value is a float32 one that has only been cast and moved."""
    made_by = {output: node for node in e.graph.nodes for output in node.outputs}
    while (node := made_by.get(name)) is not None and node.operator in _MOVING:
        name = node.inputs[0]
    return node is not None and node.operator == "Cast" and e.graph.dtype(node.inputs[0]) == "float32"


def _over_rows(node: Node, e: Emitter) -> tuple[Tensor, tuple[int, ...], list[int]]:
    """The input as rows [n, m] to normalise, the shape to bring the result to, and the order of axes after that.

    Before opset 13 a row is everything from the axis on, and the default axis is 1.
    """
    value = _single(node, e)
    axis = node.integer("axis", 1 if node.opset < 13 else -1) % max(value.rank, 1)
    if node.opset < 13:
        return e.reshape(value, (math.prod(value.shape[:axis]), -1)), value.shape, list(range(value.rank))
    order = [*(other for other in range(value.rank) if other != axis), axis]
    turned = e.transpose(value, order)
    rows = turned if turned.rank in (1, 2, 3, 4) else e.reshape(turned, (-1, value.shape[axis]))
    return rows, turned.shape, [order.index(other) for other in range(value.rank)]


def _back(node: Node, e: Emitter, value: Tensor) -> None:
    """The result in the input's type."""
    e.into(node.outputs[0], e.cast(value, e.output().dtype))


def softmax(node: Node, e: Emitter) -> None:
    """Softmax over one axis; before opset 13 over all axes from that one on."""
    rows, shape, order = _over_rows(node, e)
    _back(node, e, e.transpose(e.reshape(e.softmax(rows), shape), order))


def log_softmax(node: Node, e: Emitter) -> None:
    """LogSoftmax, along what Softmax runs along."""
    rows, shape, order = _over_rows(node, e)
    _back(node, e, e.transpose(e.reshape(e.log_softmax(rows), shape), order))


def hardmax(node: Node, e: Emitter) -> None:
    """Hardmax: 1 at the first largest element, 0 elsewhere, along what Softmax runs along."""
    rows, shape, order = _over_rows(node, e)
    found = e.one_hot(e.arg_max(rows, -1, "int32"), rows.shape[-1], 1.0, 0.0, rows.dtype)
    _back(node, e, e.transpose(e.reshape(found, shape), order))


OPERATORS: dict[str, Lowering] = {
    "Celu": celu,
    "Clip": clip,
    "Elu": elu,
    "Gelu": gelu,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": unary(lambda e, x: e.unary("HARD_SWISH", x, options_of("HardSwish"))),
    "Hardmax": hardmax,
    "LeakyRelu": leaky_relu,
    "LogSoftmax": log_softmax,
    "Mish": unary(lambda e, x: e.mul(x, e.tanh(softplus(e, x)))),
    "PRelu": prelu,
    "Relu": unary(lambda e, x: e.relu(x)),
    "Selu": selu,
    "Shrink": shrink,
    "Sigmoid": unary(lambda e, x: e.sigmoid(x)),
    "Softmax": softmax,
    "Softplus": unary(softplus),
    "Softsign": unary(lambda e, x: e.div(x, e.add(e.abs(x), 1.0))),
    "Swish": swish,
    "Tanh": unary(lambda e, x: e.tanh(x)),
    "ThresholdedRelu": thresholded_relu,
}
