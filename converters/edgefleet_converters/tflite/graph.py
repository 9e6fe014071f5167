"""The graph that the lowering's passes read and return: nodes in order, values with static shapes, constants.

It knows nothing of TFLite and nothing of files; it never changes in place: a pass returns a new graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
CHANNELS_LAST = (0, 2, 3, 1)

RIGHT_TRANSPOSED = "right_transposed"
"""The attribute, 1, of a MatMul whose right operand has its last two axes in the other order: only passes write it."""


class Activation(StrEnum):
    """What a node does to its own result before it hands it on."""

    NONE = "none"
    """Nothing."""
    RELU = "relu"
    """max(x, 0)."""
    RELU6 = "relu6"
    """min(max(x, 0), 6)."""


class NotLowerableError(Exception):
    """One node cannot be expressed; the text says which part of it. `lower` gathers these into one error."""


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor that flows between nodes; `shape` is None where inference found no static one."""

    name: str
    dtype: str
    shape: tuple[int, ...] | None


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One operation, named as in ONNX (with its domain, unless that is the standard one).

    An absent optional input or output is an empty string. `opset` is the version of the domain that gives the
    operator its meaning: inside an inlined function body it may differ from the model's.
    """

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, object] = field(default_factory=dict)
    activation: Activation = Activation.NONE
    opset: int = 1

    def input(self, position: int) -> str:
        """Name of an input; empty when the node does not have it."""
        return self.inputs[position] if position < len(self.inputs) else ""

    def output(self, position: int) -> str:
        """Name of an output; empty when the node does not have it."""
        return self.outputs[position] if position < len(self.outputs) else ""

    def integer(self, name: str, default: int) -> int:
        """An integer attribute, or its default in the ONNX operator's definition."""
        found = self.attributes.get(name, default)
        if not isinstance(found, int):
            raise NotLowerableError(f"attribute {name} is {found!r}, not an integer")
        return found

    def number(self, name: str, default: float) -> float:
        """A float attribute, or its default."""
        found = self.attributes.get(name, default)
        if not isinstance(found, int | float):
            raise NotLowerableError(f"attribute {name} is {found!r}, not a number")
        return float(found)

    def integers(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """A list-of-integers attribute, or its default."""
        found = self.attributes.get(name, default)
        if not isinstance(found, list | tuple):
            raise NotLowerableError(f"attribute {name} is {found!r}, not a list of integers")
        return tuple(int(item) for item in found)

    def numbers(self, name: str, default: tuple[float, ...]) -> tuple[float, ...]:
        """A list-of-floats attribute, or its default."""
        found = self.attributes.get(name, default)
        if not isinstance(found, list | tuple):
            raise NotLowerableError(f"attribute {name} is {found!r}, not a list of numbers")
        return tuple(float(item) for item in found)

    def text(self, name: str, default: str) -> str:
        """A string attribute, or its default."""
        found = self.attributes.get(name, default)
        return found.decode() if isinstance(found, bytes) else str(found)

    def texts(self, name: str, default: tuple[str, ...]) -> tuple[str, ...]:
        """A list-of-strings attribute, or its default."""
        found = self.attributes.get(name, default)
        if not isinstance(found, list | tuple):
            raise NotLowerableError(f"attribute {name} is {found!r}, not a list of strings")
        return tuple(item.decode() if isinstance(item, bytes) else str(item) for item in found)


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """Nodes in topological order; every name a node reads is an input, a constant or an earlier output.

    Every output is computed by a node, and no two outputs by the same one; `output_names` are the source's names
    for them, in order. `layouts` holds the values that are stored permuted:
    `stored = source.transpose(layouts[name])`. Their `values` entry gives the stored shape.
    """

    nodes: tuple[Node, ...]
    values: Mapping[str, Value]
    constants: Mapping[str, Array]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    output_names: tuple[str, ...]
    layouts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def shape(self, name: str) -> tuple[int, ...]:
        """Static shape of a value or constant; raises NotLowerableError when it is not known."""
        if name in self.constants:
            return self.constants[name].shape
        value = self.values.get(name)
        if value is None or value.shape is None:
            raise NotLowerableError(f"the shape of {name!r} is not static")
        return value.shape

    def dtype(self, name: str) -> str:
        """Type of a value or constant's elements, by its numpy name."""
        return str(self.constants[name].dtype) if name in self.constants else self.values[name].dtype

    def constant(self, name: str, role: str) -> Array:
        """A constant's array; raises NotLowerableError when the value is computed at run time."""
        if name not in self.constants:
            raise NotLowerableError(f"its {role} {name!r} is not a constant")
        return self.constants[name]

    def consumers(self) -> dict[str, list[Node]]:
        """Who reads each value; a node that reads a value twice is listed twice."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.inputs:
                found.setdefault(name, []).append(node)
        return found

    def sole_consumer(self, name: str, consumers: Mapping[str, list[Node]]) -> Node | None:
        """The only reader of a value that is not also a graph output, or None."""
        readers = consumers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def with_nodes(self, nodes: Iterable[Node], constants: Mapping[str, Array] | None = None) -> Graph:
        """The same graph with other nodes, and without the constants that none of them reads."""
        kept = tuple(nodes)
        read = {name for node in kept for name in node.inputs} | set(self.outputs)
        known = {**self.constants, **(constants or {})}
        return replace(self, nodes=kept, constants={name: known[name] for name in known if name in read})


def permuted(shape: tuple[int, ...], permutation: tuple[int, ...]) -> tuple[int, ...]:
    """Shape after `transpose(permutation)`."""
    return tuple(shape[axis] for axis in permutation)


def inverse(permutation: tuple[int, ...]) -> tuple[int, ...]:
    """The permutation that undoes `permutation`."""
    return tuple(sorted(range(len(permutation)), key=permutation.__getitem__))


def keeps_order(shape: tuple[int, ...], permutation: tuple[int, ...]) -> bool:
    """Whether transposing a tensor of `shape` moves no element in memory (only axes of length 1 move)."""
    moved = [axis for axis in permutation if shape[axis] != 1]
    return moved == sorted(moved) or math.prod(shape) == 0
