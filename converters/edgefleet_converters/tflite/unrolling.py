"""Control flow that is settled before run time: branches that are taken, loops and scans that are written out.

A loop whose number of turns is not known, or is large, is left as it is; nothing here is decided at run time but the
choice between two branches of one shape, which are both computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx

from edgefleet_converters.tflite.evaluation import attribute
from edgefleet_converters.tflite.walking import Control, Scope, Walk

MOST_TURNS = 256
_MOST_NODES = 20_000
# Version of the operators that are put between the bodies.
_OPSET = 18


def compose(walk: Walk, prefix: str, operator: str, inputs: Sequence[str], **attributes: object) -> str:
    """Add one node with one output on whole-graph names; returns the name of the output."""
    proto = onnx.helper.make_node(operator, list(inputs), [operator], **attributes)
    scope = Scope({"": _OPSET}, prefix, {name: name for name in inputs if name})
    walk.run([proto], scope)
    return scope.names[operator]


def _integers(walk: Walk, prefix: str, *values: int) -> str:
    return walk.constant(f"{prefix}integers", np.array(values, np.int64))


def known_integer(walk: Walk, name: str) -> int | None:
    """The one value of a known tensor; of a bool 0 or 1. None where it is not known."""
    value = walk.known.get(name)
    return int(value.item()) if isinstance(value, np.ndarray) and value.size == 1 else None


def _label(proto: onnx.NodeProto, scope: Scope) -> str:
    first: str = next((name for name in proto.output if name), proto.name)
    return scope.prefix + first


def branch(walk: Walk, proto: onnx.NodeProto, scope: Scope, inputs: Sequence[str]) -> list[str] | None:
    """If: the branch that is taken where that is known; else both, and a choice between results of one static type."""
    branches = attribute(proto, "then_branch"), attribute(proto, "else_branch")
    if branches[0] is None or branches[1] is None:
        return None
    label, condition = _label(proto, scope), known_integer(walk, inputs[0])
    if condition is not None:
        taken = branches[0] if condition else branches[1]
        return walk.run_body(taken.g, scope.child(f"{label}/"), ())
    if walk.value(inputs[0]).shape is None:
        return None
    chosen = walk.run_body(branches[0].g, scope.child(f"{label}/then/"), ())
    other = walk.run_body(branches[1].g, scope.child(f"{label}/else/"), ())
    pairs = list(zip(chosen, other, strict=True))
    if not all(_same_type(walk, left, right) for left, right in pairs):
        return None
    asked = compose(walk, f"{label}/", "Reshape", [inputs[0], _integers(walk, f"{label}/")])
    return [
        left if left == right else compose(walk, f"{label}/", "Where", [asked, left, right]) for left, right in pairs
    ]


def _same_type(walk: Walk, left: str, right: str) -> bool:
    a, b = walk.value(left), walk.value(right)
    return a.shape is not None and (a.shape, a.dtype) == (b.shape, b.dtype)


@dataclass(slots=True)
class _Body:
    """A body that is walked once for each turn; `first` is the number of nodes before the first one."""

    walk: Walk
    graph: onnx.GraphProto
    scope: Scope
    first: int

    def turn(self, number: int, arguments: Sequence[str]) -> list[str]:
        """Names of the outputs of one turn."""
        return self.walk.run_body(self.graph, self.scope.child(f"{self.scope.prefix}{number}/"), arguments)

    def is_too_long(self, turns: int) -> bool:
        """Whether the graph would grow beyond what is worth a file."""
        return turns > MOST_TURNS or len(self.walk.nodes) - self.first > _MOST_NODES


def _body(walk: Walk, graph: onnx.GraphProto, scope: Scope) -> _Body:
    """A body whose constants are in its scope, so that no turn repeats them."""
    walk.know_initializers(graph, scope)
    walk.run([node for node in graph.node if node.op_type == "Constant"], scope)
    rest = onnx.GraphProto(input=graph.input, output=graph.output)
    rest.node.extend(node for node in graph.node if node.op_type != "Constant")
    return _Body(walk, rest, scope, len(walk.nodes))


def loop(walk: Walk, proto: onnx.NodeProto, scope: Scope, inputs: Sequence[str]) -> list[str] | None:
    """Loop: as many turns as a known trip count and known conditions ask for, at most MOST_TURNS."""
    given = [*inputs, "", ""][:2]
    limit = known_integer(walk, given[0]) if given[0] else MOST_TURNS + 1
    going = known_integer(walk, given[1]) if given[1] else True
    body_graph = attribute(proto, "body")
    if limit is None or going is None or body_graph is None:
        return None
    label = _label(proto, scope)
    body = _body(walk, body_graph.g, scope.child(f"{label}/"))
    carried, gathered, turns = list(inputs[2:]), [list[str]() for _ in proto.output[len(inputs[2:]) :]], 0
    while going and turns < limit:
        number = walk.constant(f"{label}/{turns}/number", np.array(turns, np.int64))
        condition = walk.constant(f"{label}/{turns}/going", np.array(True))
        asked, *found = body.turn(turns, [number, condition, *carried])
        going, turns = known_integer(walk, asked), turns + 1
        if going is None or body.is_too_long(turns):
            return None
        carried = found[: len(carried)]
        for rows, row in zip(gathered, found[len(carried) :], strict=True):
            rows.append(row)
    if gathered and not turns:
        return None
    return [*carried, *(stack(walk, f"{label}/", rows, 0) for rows in gathered)]


def stack(walk: Walk, prefix: str, rows: Sequence[str], axis: int) -> str:
    """One tensor of tensors of one shape, along a new axis."""
    at = _integers(walk, prefix, axis)
    lifted = [compose(walk, prefix, "Unsqueeze", [row, at]) for row in rows]
    return lifted[0] if len(lifted) == 1 else compose(walk, prefix, "Concat", lifted, axis=axis)


def pick(walk: Walk, prefix: str, name: str, axis: int, position: int) -> str:
    """One element along an axis, which goes away."""
    bounds = [_integers(walk, prefix, value) for value in (position, position + 1, axis)]
    block = compose(walk, prefix, "Slice", [name, *bounds])
    return compose(walk, prefix, "Squeeze", [block, bounds[2]])


def scan(walk: Walk, proto: onnx.NodeProto, scope: Scope, inputs: Sequence[str]) -> list[str] | None:
    """Scan: a turn for each element along the scanned axes; before opset 9 for each element of the batch as well."""
    body_graph, count = attribute(proto, "body"), attribute(proto, "num_scan_inputs")
    if body_graph is None or count is None:
        return None
    label = _label(proto, scope)
    body = _body(walk, body_graph.g, scope.child(f"{label}/"))
    if scope.opsets.get("", 1) >= 9:
        states, scanned = list(inputs[: -count.i]), list(inputs[-count.i :])
        return _scan(_Turns(body, proto, label), states, scanned)
    states, scanned = list(inputs[1 : -count.i]), list(inputs[-count.i :])
    batch = walk.value(scanned[0]).shape
    # Sequences of different lengths would be padded in their results.
    if inputs[0] or batch is None:
        return None
    made = []
    for row in range(batch[0]):
        parts = [pick(walk, f"{label}/", name, 0, row) for name in (*states, *scanned)]
        found = _scan(_Turns(body, proto, label, row), parts[: len(states)], parts[len(states) :])
        if found is None:
            return None
        made.append(found)
    return [stack(walk, f"{label}/", rows, 0) for rows in zip(*made, strict=True)]


@dataclass(frozen=True, slots=True)
class _Turns:
    """One run of a Scan's body along its inputs; `row` is the element of the batch."""

    body: _Body
    proto: onnx.NodeProto
    label: str
    row: int = 0

    def option(self, name: str, position: int) -> int:
        """An entry of a list attribute that is 0 where absent."""
        found = attribute(self.proto, name)
        return found.ints[position] if found is not None and position < len(found.ints) else 0


def _scan(turns: _Turns, states: list[str], scanned: list[str]) -> list[str] | None:
    walk, prefix = turns.body.walk, f"{turns.label}/"
    shapes = [walk.value(name).shape for name in scanned]
    axes = [turns.option("scan_input_axes", position) for position in range(len(scanned))]
    lengths = {shape[axis] if shape is not None else 0 for shape, axis in zip(shapes, axes, strict=True)}
    length = max(lengths)
    if len(lengths) != 1 or not length or turns.body.is_too_long((turns.row + 1) * length):
        return None
    backward = "scan_input_directions" if turns.body.scope.opsets.get("", 1) >= 9 else "directions"
    gathered = [list[str]() for _ in turns.proto.output[len(states) :]]
    for number in range(length):
        elements = [
            pick(walk, prefix, name, axis, length - 1 - number if turns.option(backward, position) else number)
            for position, (name, axis) in enumerate(zip(scanned, axes, strict=True))
        ]
        found = turns.body.turn(turns.row * length + number, [*states, *elements])
        states = found[: len(states)]
        for rows, row in zip(gathered, found[len(states) :], strict=True):
            rows.append(row)
        if turns.body.is_too_long(number):
            return None
    made = []
    for position, rows in enumerate(gathered):
        ordered = rows[::-1] if turns.option("scan_output_directions", position) else rows
        made.append(stack(walk, prefix, ordered, turns.option("scan_output_axes", position)))
    return [*states, *made]


CONTROL: Mapping[str, Control] = MappingProxyType({"If": branch, "Loop": loop, "Scan": scan})
