"""The cells of LSTM, GRU and RNN: how one step's input and the states before it make the states after it.

Does not know of time, directions or lengths of sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Tensor, options_of
from edgefleet_converters.tflite.graph import Node, NotLowerableError
from edgefleet_converters.tflite.operators.precision import WORKING, widened
from edgefleet_converters.tflite.operators.recurrent_activations import Function, functions

_BIAS, _PEEPHOLES = 3, 7
"""Positions of B and P among the inputs; W and R are 1 and 2."""

# One array, so that all steps share one tensor.
_GATES_AXIS = np.array(1, np.int32)

State = tuple[Tensor | None, ...]
"""The hidden state first, [batch, size] each; None is a state of zeros."""

Projection = tuple[Tensor, Tensor | None]
"""Weight [gates, inputs] and bias [gates] of the part of some gates that the input makes."""


class Cell(Protocol):
    """One direction of a layer; `step` gets each projection of the step's input."""

    @property
    def size(self) -> int:
        """Length of a state."""

    @property
    def projections(self) -> Sequence[Projection]:
        """What the inputs of all steps are multiplied with at once."""

    def step(self, e: Emitter, parts: Sequence[Tensor], state: State) -> State:
        """States after a step."""


@dataclass(frozen=True, slots=True)
class _Simple:
    """h = f(input + R h)."""

    size: int
    projections: Sequence[Projection]
    weight: Tensor
    f: Function

    def step(self, e: Emitter, parts: Sequence[Tensor], state: State) -> State:
        return (self.f(e, _with_state(e, parts[0], state[0], self.weight)),)


@dataclass(frozen=True, slots=True)
class _Gated:
    """GRU: h = (1 - z) n + z h, with n made of r h, or (`bias`, linear_before_reset) of r (R h + bias)."""

    size: int
    projections: Sequence[Projection]
    gates: Tensor
    candidate: Tensor
    bias: Tensor | None
    linear_before_reset: bool
    f: Function
    g: Function

    def step(self, e: Emitter, parts: Sequence[Tensor], state: State) -> State:
        hidden = state[0]
        update, reset = _split(e, self.f(e, _with_state(e, parts[0], hidden, self.gates)), 2)
        new = self.g(e, self._candidate(e, parts[1], reset, hidden))
        if hidden is None:
            return (e.mul(e.sub(1.0, update), new),)
        return (e.add(new, e.mul(update, e.sub(hidden, new))),)

    def _candidate(self, e: Emitter, part: Tensor, reset: Tensor, hidden: Tensor | None) -> Tensor:
        if not self.linear_before_reset:
            return _with_state(e, part, None if hidden is None else e.mul(reset, hidden), self.candidate)
        if hidden is not None:
            return e.add(part, e.mul(reset, e.fully_connected(hidden, self.candidate, self.bias)))
        return part if self.bias is None else e.add(part, e.mul(reset, self.bias))


@dataclass(frozen=True, slots=True)
class _LongShort:
    """LSTM: c = f c + i g, h = o act(c); gates in the order i, o, f, g, peepholes in the order i, o, f."""

    size: int
    projections: Sequence[Projection]
    weight: Tensor
    peepholes: Sequence[Tensor | None]
    coupled: bool
    f: Function
    g: Function
    h: Function

    def step(self, e: Emitter, parts: Sequence[Tensor], state: State) -> State:
        hidden, cell = state
        gates = _split(e, _with_state(e, parts[0], hidden, self.weight), 4)
        into, out, kept, new = gates
        entering = self.f(e, self._peeping(e, into, 0, cell))
        made = e.mul(entering, self.g(e, new))
        if cell is not None:
            keeping = e.sub(1.0, entering) if self.coupled else self.f(e, self._peeping(e, kept, 2, cell))
            made = e.add(e.mul(keeping, cell), made)
        return (e.mul(self.f(e, self._peeping(e, out, 1, made)), self.h(e, made)), made)

    def _peeping(self, e: Emitter, gate: Tensor, position: int, cell: Tensor | None) -> Tensor:
        peephole = self.peepholes[position]
        return gate if peephole is None or cell is None else e.add(gate, e.mul(peephole, cell))


def rnn_cell(node: Node, e: Emitter, direction: int) -> Cell:
    """The cell of RNN in one direction."""
    (f,) = functions(node, direction, ("Tanh",))
    weight, recurrence = _matrix(e, 1, direction), _matrix(e, 2, direction)
    inner, outer = _biases(e, direction, 1)
    return _Simple(recurrence.shape[1], [(weight, _plus(e, inner[0], outer[0]))], recurrence, f)


def gru_cell(node: Node, e: Emitter, direction: int) -> Cell:
    """The cell of GRU in one direction."""
    f, g = functions(node, direction, ("Sigmoid", "Tanh"))
    weight, recurrence = _matrix(e, 1, direction), _matrix(e, 2, direction)
    size = recurrence.shape[1]
    (gates, new), (gates_before, before) = (e.split(item, 0, (2 * size, size)) for item in (weight, recurrence))
    inner, outer = _biases(e, direction, 3, (2, 1))
    linear = node.integer("linear_before_reset", 0) == 1
    bias = inner[1] if linear else _plus(e, inner[1], outer[1])
    projections = [(gates, _plus(e, inner[0], outer[0])), (new, bias)]
    return _Gated(size, projections, gates_before, before, outer[1], linear, f, g)


def lstm_cell(node: Node, e: Emitter, direction: int) -> Cell:
    """The cell of LSTM in one direction; `clip` is refused.

    The operator's definition clips the cell before h, ONNX Runtime does not: either result would surprise somebody.
    """
    if node.number("clip", 0.0):
        raise NotLowerableError("clip, which implementations disagree about")
    f, g, h = functions(node, direction, ("Sigmoid", "Tanh", "Tanh"))
    weight, recurrence = _matrix(e, 1, direction), _matrix(e, 2, direction)
    size = recurrence.shape[1]
    inner, outer = _biases(e, direction, 4)
    peepholes: list[Tensor | None] = [None, None, None]
    if e.has(_PEEPHOLES):
        peepholes = [*e.split(_row(e, _PEEPHOLES, direction), 0, (size,) * 3)]
    coupled = node.integer("input_forget", 0) == 1
    projections = [(weight, _plus(e, inner[0], outer[0]))]
    return _LongShort(size, projections, recurrence, peepholes, coupled, f, g, h)


def _row(e: Emitter, position: int, direction: int) -> Tensor:
    """One direction's part of an input [directions, ...], float32."""
    both = widened(e, position)
    one = e.split(both, 0, [1] * both.shape[0])[direction]
    return e.reshape(one, both.shape[1:])


def _matrix(e: Emitter, position: int, direction: int) -> Tensor:
    found = _row(e, position, direction)
    if found.rank != 2:
        raise NotLowerableError(f"weights {found.shape}")
    return found


def _biases(
    e: Emitter, direction: int, gates: int, blocks: Sequence[int] = ()
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Biases of inputs and of states, in blocks of so many gates (one block of all unless given)."""
    parts = tuple(blocks) or (gates,)
    if not e.has(_BIAS):
        return [None] * len(parts), [None] * len(parts)
    row = _row(e, _BIAS, direction)
    size = row.shape[0] // (2 * gates)
    found = e.split(row, 0, [count * size for count in (*parts, *parts)])
    return [*found[: len(parts)]], [*found[len(parts) :]]


def _plus(e: Emitter, left: Tensor | None, right: Tensor | None) -> Tensor | None:
    """A sum, at once where both are constants; None is 0."""
    if left is None or right is None:
        return right if left is None else left
    if left.data is not None and right.data is not None:
        return e.constant(left.data.astype(WORKING) + right.data.astype(WORKING), role="bias")
    return e.add(left, right)


def _with_state(e: Emitter, part: Tensor, state: Tensor | None, weight: Tensor) -> Tensor:
    """The input's part of some gates plus the state's."""
    return part if state is None else e.add(part, e.fully_connected(state, weight, None))


def _split(e: Emitter, value: Tensor, count: int) -> list[Tensor]:
    """Equal parts of [batch, count x size]."""
    shape = (value.shape[0], value.shape[1] // count)
    inputs = [e.constant(_GATES_AXIS, role="axis"), value]
    return e.calls("SPLIT", inputs, [(shape, WORKING)] * count, options_of("Split", numSplits=count), kernel=WORKING)
