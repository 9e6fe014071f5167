"""y = gain * x + offset per channel, with constants: what BatchNormalization, Mul, Add, Sub and Div may be.

Does not fold anything; `scaling` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgefleet_converters.tflite.graph import Activation, Array, Graph, Node, NotLowerableError

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Affine:
    """gain and offset along one axis of `data`, each of length 1 or of that axis."""

    data: str
    axis: int
    gain: Floats
    offset: Floats

    @property
    def is_finite(self) -> bool:
        """Whether folding it cannot make a weight infinite."""
        return bool(np.isfinite(self.gain).all() and np.isfinite(self.offset).all())


def affine_of(graph: Graph, node: Node, axis: int, constants: Mapping[str, Array]) -> Affine | None:
    """The node as an affine map along `axis` of its float32 result; None when it is anything else."""
    try:
        shape = graph.shape(node.outputs[0]) if node.outputs[0] else ()
        if not shape or graph.dtype(node.outputs[0]) != "float32" or node.activation is not Activation.NONE:
            return None
    except (NotLowerableError, KeyError):
        return None
    if node.operator == "BatchNormalization":
        return _normalization(node, constants) if axis % len(shape) == 1 else None
    if node.operator in ("Mul", "Add", "Sub", "Div") and len(node.inputs) == 2:
        return _arithmetic(graph, node, axis % len(shape), constants)
    return None


def batch_factors(node: Node, constants: Mapping[str, Array]) -> tuple[Floats, Floats] | None:
    """(gain, offset) of a BatchNormalization in inference form with constant parameters."""
    if node.operator != "BatchNormalization" or node.integer("training_mode", 0) or any(node.outputs[1:]):
        return None
    if any(name not in constants for name in node.inputs[1:5]):
        return None
    scale, bias, mean, variance = (constants[name].astype(np.float64) for name in node.inputs[1:5])
    if scale.ndim != 1:
        return None
    gain = scale / np.sqrt(variance + node.number("epsilon", 1e-5))
    return gain, bias - mean * gain


def _normalization(node: Node, constants: Mapping[str, Array]) -> Affine | None:
    factors = batch_factors(node, constants)
    return None if factors is None else Affine(node.inputs[0], 1, *factors)


def _arithmetic(graph: Graph, node: Node, axis: int, constants: Mapping[str, Array]) -> Affine | None:
    known = [position for position, name in enumerate(node.inputs) if name in constants]
    if len(known) != 1 or (node.opset < 7 and node.integer("broadcast", 0)):
        return None
    data, operator = node.inputs[1 - known[0]], node.operator
    if graph.shape(data) != graph.shape(node.outputs[0]) or (operator == "Div" and known[0] == 0):
        return None
    factor = _along(constants[node.inputs[known[0]]], axis, len(graph.shape(data)))
    if factor is None:
        return None
    return Affine(data, axis, *_factors(operator, factor, first=known[0] == 0))


def _factors(operator: str, factor: Floats, *, first: bool) -> tuple[Floats, Floats]:
    """(gain, offset) of an operator with a constant operand, which may be its first."""
    one, zero = np.ones(1), np.zeros(1)
    with np.errstate(divide="ignore"):
        forms = {"Mul": (factor, zero), "Div": (1 / factor, zero), "Add": (one, factor)}
    return forms.get(operator) or ((-one, factor) if first else (one, -factor))


def _along(array: Array, axis: int, rank: int) -> Floats | None:
    """A constant that differs along one axis only, as a vector."""
    if array.ndim > rank:
        return None
    wide = array.reshape((1,) * (rank - array.ndim) + array.shape)
    varying = [at for at, size in enumerate(wide.shape) if size != 1]
    return wide.ravel().astype(np.float64) if varying in ([], [axis]) else None
