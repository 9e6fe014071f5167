"""The activation functions that LSTM, GRU and RNN name in their attributes, with their parameters and clipping.

These are not the operators of the same names: their parameters come in shared lists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Tensor
from edgefleet_converters.tflite.graph import Node, NotLowerableError
from edgefleet_converters.tflite.operators.activations import softplus

Function = Callable[[Emitter, Tensor], Tensor]
_Written = Callable[[Emitter, Tensor, float, float], Tensor]

_TABLE: dict[str, tuple[_Written, tuple[str, ...], tuple[float, ...]]] = {
    "affine": (lambda e, x, a, b: e.add(e.mul(x, a), b), ("alpha", "beta"), ()),
    "elu": (lambda e, x, a, _: e.select(e.less(x, 0.0), e.mul(e.unary("ELU", x), a), x), ("alpha",), (1.0,)),
    "hardsigmoid": (
        lambda e, x, a, b: e.minimum(e.relu(e.add(e.mul(x, a), b)), 1.0),
        ("alpha", "beta"),
        (0.2, 0.5),
    ),
    "leakyrelu": (lambda e, x, a, _: e.leaky_relu(x, a), ("alpha",), (0.01,)),
    "relu": (lambda e, x, *_: e.relu(x), (), ()),
    "scaledtanh": (lambda e, x, a, b: e.mul(e.tanh(e.mul(x, b)), a), ("alpha", "beta"), ()),
    "sigmoid": (lambda e, x, *_: e.sigmoid(x), (), ()),
    "softplus": (lambda e, x, *_: softplus(e, x), (), ()),
    "softsign": (lambda e, x, *_: e.div(x, e.add(e.abs(x), 1.0)), (), ()),
    "tanh": (lambda e, x, *_: e.tanh(x), (), ()),
    "thresholdedrelu": (lambda e, x, a, _: e.select(e.greater_equal(x, a), x, 0.0), ("alpha",), (1.0,)),
}
"""Name → how it is written, the parameters it takes from the lists, and their defaults where it has any."""


def functions(node: Node, direction: int, defaults: Sequence[str]) -> list[Function]:
    """The functions of one direction, which clip their input by the node's `clip` first.

    The parameter lists serve all directions in turn; a function takes from them only what it needs. Raises
    NotLowerableError for a name, or a parameter without default, that is missing.
    """
    names = node.texts("activations", ()) or tuple(defaults) * (direction + 1)
    left = {name: list(node.numbers(f"activation_{name}", ())) for name in ("alpha", "beta")}
    wanted = range(direction * len(defaults), (direction + 1) * len(defaults))
    if len(names) < wanted.stop:
        raise NotLowerableError(f"{len(names)} activations")
    found = [_function(name, left, node.number("clip", 0.0)) for name in names[: wanted.stop]]
    return found[wanted.start :]


def _function(name: str, left: dict[str, list[float]], clip: float) -> Function:
    if name.lower() not in _TABLE:
        raise NotLowerableError(f"the activation {name}")
    write, wanted, defaults = _TABLE[name.lower()]
    taken = [0.0, 0.0]
    for position, parameter in enumerate(wanted):
        if not left[parameter] and not defaults:
            raise NotLowerableError(f"{name} without activation_{parameter}")
        taken[position] = left[parameter].pop(0) if left[parameter] else defaults[position]

    def written(e: Emitter, x: Tensor) -> Tensor:
        bounded = e.minimum(e.maximum(x, -clip), clip) if clip else x
        return write(e, bounded, *taken)

    return written
