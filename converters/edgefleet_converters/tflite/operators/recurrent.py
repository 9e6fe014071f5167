"""LSTM, GRU and RNN, written step by step: one product for the inputs of all steps, then a cell per step.

The length is static; lengths of single sequences may be computed. What a cell does is in `recurrent_cells`. TFLite's
own LSTM is not used: its state goes on from one call to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Tensor, options_of
from edgefleet_converters.tflite.graph import Node, NotLowerableError
from edgefleet_converters.tflite.operators.contract import Lowering
from edgefleet_converters.tflite.operators.precision import WORKING, finish, widened
from edgefleet_converters.tflite.operators.recurrent_cells import Cell, State, gru_cell, lstm_cell, rnn_cell

_DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
"""Whether each direction runs backwards."""

_LENGTHS, _FIRST_STATE = 4, 5
"""Positions of sequence_lens and initial_h among the inputs; initial_c follows."""


@dataclass(frozen=True, slots=True)
class _Run:
    """What one direction computed: the output of each step in the order of time, and the last states."""

    steps: list[Tensor]
    last: list[Tensor]


def recurrent(build: Callable[[Node, Emitter, int], Cell], states: int) -> Lowering:
    """Lowering of a layer with cells by `build` (for a direction) and so many states.

    Opset 7 and newer; float32 or float16, computed in float32; weights may be computed. Both layouts, all directions,
    initial states, `sequence_lens`, `clip`, and every activation of the operator's definition.
    """

    def lowered(node: Node, e: Emitter) -> None:
        backwards = _DIRECTIONS.get(node.text("direction", "forward"))
        if backwards is None or e.input(1).shape[0] != len(backwards):
            raise NotLowerableError(f"{e.input(1).shape[0]} directions of {node.text('direction', 'forward')}")
        runs = [
            _run(node, e, build(node, e, direction), _initial(node, e, direction, states), backwards=back)
            for direction, back in enumerate(backwards)
        ]
        batch_first = node.integer("layout", 0) == 1
        if e.wants(0):
            sequences = [_stack(e, run.steps, 1 if batch_first else 0) for run in runs]
            finish(e, 0, _stack(e, sequences, 2 if batch_first else 1))
        for state in range(states):
            if e.wants(state + 1):
                finish(e, state + 1, _stack(e, [run.last[state] for run in runs], 1 if batch_first else 0))

    return lowered


def _run(node: Node, e: Emitter, cell: Cell, state: State, *, backwards: bool) -> _Run:
    time = 1 if node.integer("layout", 0) else 0
    length, batch = e.input(0).shape[time], e.input(0).shape[1 - time]
    projected = [_projected(e, weight, bias, time) for weight, bias in cell.projections]
    nothing = e.constant(np.zeros((batch, cell.size), np.float32), role="zeros")
    found = {}
    for step in reversed(range(length)) if backwards else range(length):
        new = cell.step(e, [part[step] for part in projected], state)
        found[step], state = _kept(e, new, state, _valid(e, step), nothing)
    last = [nothing if item is None else item for item in state]
    return _Run([found[step] for step in range(length)], last)


def _initial(node: Node, e: Emitter, direction: int, states: int) -> State:
    """The states before the first step; None is one of zeros."""
    found: list[Tensor | None] = []
    axis = 1 if node.integer("layout", 0) else 0
    for position in range(_FIRST_STATE, _FIRST_STATE + states):
        if not e.has(position):
            found.append(None)
            continue
        both = widened(e, position)
        one = e.split(both, axis, [1] * both.shape[axis])[direction]
        found.append(e.reshape(one, (both.shape[1 - axis], both.shape[2])))
    return tuple(found)


def _projected(e: Emitter, weight: Tensor, bias: Tensor | None, time: int) -> list[Tensor]:
    """The input's part of the gates, [batch, gates] for each step: one product for all of them."""
    value = widened(e, 0)
    rows = e.fully_connected(e.reshape(value, (-1, value.shape[2])), weight, bias)
    return _unstack(e, e.reshape(rows, (*value.shape[:2], weight.shape[0])), time)


def _valid(e: Emitter, step: int) -> Tensor | None:
    """Which sequences of the batch reach this step, [batch, 1]; None when all do."""
    if not e.has(_LENGTHS):
        return None
    lengths = e.input(_LENGTHS)
    if lengths.data is not None:
        reached = lengths.data.astype(np.int64).reshape(-1, 1) > step
        return None if reached.all() else e.constant(reached, role="reached")
    return e.greater(e.reshape(e.cast(lengths, "int32"), (-1, 1)), step)


def _kept(e: Emitter, new: State, old: State, valid: Tensor | None, nothing: Tensor) -> tuple[Tensor, State]:
    """The step's output and states: 0 and the states before it for the sequences that have ended."""
    output = nothing if new[0] is None else new[0]
    if valid is None:
        return output, new
    kept = []
    for made, before in zip(new, old, strict=True):
        kept.append(before if made is None else e.select(valid, made, nothing if before is None else before))
    if old[0] is None and kept[0] is not None:
        return kept[0], tuple(kept)
    return e.select(valid, output, nothing), tuple(kept)


def _unstack(e: Emitter, value: Tensor, axis: int) -> list[Tensor]:
    shape = (*value.shape[:axis], *value.shape[axis + 1 :])
    count = value.shape[axis]
    if count == 1:
        return [e.reshape(value, shape)]
    return e.calls("UNPACK", [value], [(shape, WORKING)] * count, options_of("Unpack", num=count, axis=axis))


def _stack(e: Emitter, parts: Sequence[Tensor], axis: int) -> Tensor:
    """Parts of one shape along a new axis."""
    first = parts[0].shape
    shape = (*first[:axis], len(parts), *first[axis:])
    if len(parts) == 1:
        return e.reshape(parts[0], shape)
    return e.call("PACK", parts, shape, WORKING, options_of("Pack", valuesCount=len(parts), axis=axis))


OPERATORS: dict[str, Lowering] = {
    "GRU": recurrent(gru_cell, 1),
    "LSTM": recurrent(lstm_cell, 2),
    "RNN": recurrent(rnn_cell, 1),
}
