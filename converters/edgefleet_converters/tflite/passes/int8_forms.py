"""Before an int8 lowering: operators that XNNPACK does not take in int8 become several that it does.

Runs after layout assignment, on stored axes. Each form computes the same in float; what has none (Gelu, Erf, LRN …)
stays as it is, and `delegation.outside_xnnpack` names it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np

from edgefleet_converters.tflite.graph import Activation, Array, Graph, Node, Value
from edgefleet_converters.tflite.passes.activations import clip_bounds
from edgefleet_converters.tflite.passes.layout_table import MARK

# A version of the operators written here that takes what could be an attribute as an input.
_OPSET = 18
_NEVER_NEGATIVE = ("Abs", "Relu", "Sigmoid", "Softmax")


def int8_forms(graph: Graph) -> Graph:
    """The same graph in forms that stay on XNNPACK once they are int8; only float32 nodes are touched."""
    draft = _Draft(graph, dict(graph.values), dict(graph.constants))
    for node in graph.nodes:
        form = FORMS.get(node.operator)
        known = len(draft.nodes)
        if form is None or graph.values[node.outputs[0]].dtype != "float32" or not form(node, draft):
            del draft.nodes[known:]
            draft.nodes.append(node)
    return replace(graph, values=draft.values).with_nodes(draft.nodes, draft.constants)


@dataclass(slots=True)
class _Draft:
    """The new graph while it is being written."""

    graph: Graph
    values: dict[str, Value]
    constants: dict[str, Array]
    nodes: list[Node] = field(default_factory=list)

    def constant(self, near: str, array: Array) -> str:
        """A new constant's name."""
        name = self._free(f"{near}/constant")
        self.constants[name] = array
        return name

    def add(
        self,
        operator: str,
        inputs: Sequence[str],
        shape: Sequence[int],
        activation: Activation = Activation.NONE,
        **attributes: object,
    ) -> str:
        """Append a float32 node and return the name of what it computes."""
        name = self._free(f"{inputs[0]}/{operator}")
        self.values[name] = Value(name, "float32", tuple(shape))
        self.nodes.append(Node(name, operator, tuple(inputs), (name,), attributes, activation, _OPSET))
        return name

    def finish(self, node: Node) -> bool:
        """Let the node added last compute what `node` did; always true."""
        last = self.nodes[-1]
        del self.values[last.outputs[0]]
        self.nodes[-1] = replace(last, name=node.name, outputs=(node.outputs[0],))
        return True

    def scaled(self, name: str, factor: float, activation: Activation = Activation.NONE) -> str:
        """`name` times a number."""
        shape = self.values[name].shape or ()
        return self.add("Mul", (name, self.constant(name, np.array(factor, np.float32))), shape, activation)

    def shifted(self, name: str, offset: float, activation: Activation = Activation.NONE) -> str:
        """`name` plus a number."""
        shape = self.values[name].shape or ()
        return self.add("Add", (name, self.constant(name, np.array(offset, np.float32))), shape, activation)

    def _free(self, wanted: str) -> str:
        free, number = wanted, 1
        while free in self.values or free in self.constants:
            free, number = f"{wanted};{number}", number + 1
        return free


def _gate(draft: _Draft, name: str, alpha: float, beta: float) -> str:
    """min(max(alpha x + beta, 0), 1), as a sixth of a RELU6."""
    line = name if np.isclose(alpha * 6, 1.0, atol=1e-6) else draft.scaled(name, alpha * 6)
    return draft.scaled(draft.shifted(line, beta * 6, Activation.RELU6), 1 / 6)


def _hard_swish(node: Node, draft: _Draft) -> bool:
    """HardSwish: x times its gate. ADD with RELU6, MUL, MUL."""
    gate = _gate(draft, node.inputs[0], 1 / 6, 0.5)
    draft.add("Mul", (node.inputs[0], gate), draft.graph.shape(node.outputs[0]))
    return draft.finish(node)


def _hard_sigmoid(node: Node, draft: _Draft) -> bool:
    """HardSigmoid: MUL (unless alpha is 1/6), ADD with RELU6, MUL."""
    _gate(draft, node.inputs[0], node.number("alpha", 0.2), node.number("beta", 0.5))
    return draft.finish(node)


def _rectifier(node: Node, draft: _Draft) -> bool:
    """A Relu, or a Clip to [0, 6] or above 0, that nothing before it could take in: a MUL by 1 does."""
    bounds = (0.0, np.inf) if node.operator == "Relu" else clip_bounds(draft.graph, node)
    found = {(0.0, np.inf): Activation.RELU, (0.0, 6.0): Activation.RELU6}.get(bounds)
    if found is None or node.inputs[0] in draft.constants:
        return False
    draft.scaled(node.inputs[0], 1.0, found)
    return draft.finish(node)


def _division(node: Node, draft: _Draft) -> bool:
    """Div by a constant: MUL by its reciprocal."""
    divisor = draft.constants.get(node.inputs[1])
    if divisor is None or not np.isfinite(divisor.astype(np.float64)).all() or not divisor.all():
        return False
    inverse = draft.constant(node.inputs[1], np.reciprocal(divisor.astype(np.float64)).astype(np.float32))
    draft.add("Mul", (node.inputs[0], inverse), draft.graph.shape(node.outputs[0]), node.activation)
    return draft.finish(node)


def _average_pool(node: Node, draft: _Draft) -> bool:
    """AveragePool of the whole image: MEAN; of single elements: MaxPool. Others stay, between conversions to float."""
    size, shape = draft.graph.shape(node.inputs[0])[1:-1], draft.graph.shape(node.outputs[0])
    plain = node.activation is Activation.NONE and not any(node.integers("pads", (0,)))
    if not node.integer(MARK, 0) or not plain:
        return False
    if set(node.integers("kernel_shape", ())) == {1}:
        draft.add("MaxPool", (node.inputs[0],), shape, Activation.NONE, **node.attributes)
        return draft.finish(node)
    if node.integers("kernel_shape", ()) != size or max(shape[1:-1]) > 1:
        return False
    draft.add("GlobalAveragePool", (node.inputs[0],), shape, Activation.NONE, **{MARK: 1})
    return draft.finish(node)


def _max_pool(node: Node, draft: _Draft) -> bool:
    """MaxPool with explicit pads of a value that may be negative: its edges are repeated, which changes no maximum.

    PADV2 would be outside XNNPACK, and the quantiser fails on it; what is never negative gets a PAD with 0.
    """
    kernel, shape = node.integers("kernel_shape", ()), list(draft.graph.shape(node.inputs[0]))
    pads = node.integers("pads", (0,) * 4)
    plain = len(kernel) == 2 and not node.integer("ceil_mode", 0) and set(node.integers("dilations", (1,))) == {1}
    if not node.integer(MARK, 0) or not plain or not any(pads) or any(node.outputs[1:]) or min(pads) < 0:
        return False
    if _is_same(node, shape[1:3]) or _is_never_negative(draft.graph, node.inputs[0]):
        return False
    value = node.inputs[0]
    for axis in (1, 2):
        value = _with_edges(draft, value, shape, axis, (pads[axis - 1], pads[axis + 1]))
    attributes = {**node.attributes, "pads": (0, 0, 0, 0)}
    draft.add("MaxPool", (value,), draft.graph.shape(node.outputs[0]), node.activation, **attributes)
    return draft.finish(node)


def _is_same(node: Node, size: Sequence[int]) -> bool:
    """Whether the pads are what TFLite's SAME computes by itself, or are left to it."""
    if node.text("auto_pad", "NOTSET") != "NOTSET":
        return True
    kernel, pads = node.integers("kernel_shape", ()), node.integers("pads", ())
    strides = node.integers("strides", (1, 1))
    for axis in (0, 1):
        total = max((-(-size[axis] // strides[axis]) - 1) * strides[axis] + kernel[axis] - size[axis], 0)
        if (pads[axis], pads[axis + 2]) != (total // 2, total - total // 2):
            return False
    return True


def _is_never_negative(graph: Graph, name: str) -> bool:
    producer = next((node for node in graph.nodes if name in node.outputs), None)
    if producer is None:
        return False
    return producer.activation is not Activation.NONE or producer.operator in _NEVER_NEGATIVE


def _with_edges(draft: _Draft, name: str, shape: list[int], axis: int, pads: tuple[int, int]) -> str:
    """The value with its first and last slice along an axis repeated; `shape` is brought up to date."""
    length = shape[axis]
    if not any(pads):
        return name
    edges = [*shape[:axis], 1, *shape[axis + 1 :]]
    parts = [name]
    for start, count in ((0, pads[0]), (length - 1, pads[1])):
        if count:
            bounds = [draft.constant(name, np.array([bound], np.int64)) for bound in (start, start + 1, axis)]
            edge = draft.add("Slice", (name, *bounds), edges)
            parts = [*[edge] * count, *parts] if start == 0 and parts[0] == name else [*parts, *[edge] * count]
    shape[axis] = length + sum(pads)
    return draft.add("Concat", parts, shape, axis=axis)


def _nearest(node: Node, draft: _Draft) -> bool:
    """Resize or Upsample, nearest, by whole factors over height and width: concatenations with itself.

    A row's neighbours come from [.., W, C + C] read as [.., 2 W, C], the rows from [H, 1 + 1, ..] read as [2 H, ..].
    """
    before, after = draft.graph.shape(node.inputs[0]), draft.graph.shape(node.outputs[0])
    if not node.integer(MARK, 0) or len(before) != 4 or (before[0], before[3]) != (after[0], after[3]):
        return False
    factors = (after[1] // before[1], after[2] // before[2])
    if (before[1] * factors[0], before[2] * factors[1]) != after[1:3] or not _repeats(node, draft, factors):
        return False
    batch, height, width, channels = before
    wide = _joined(draft, node.inputs[0], (batch, height, width, channels), factors[1])
    rows = (batch, height, 1, width * factors[1] * channels)
    # Never one Reshape after another: the quantiser's calibration finds no data between them.
    if factors[0] > 1:
        wide = draft.add("Reshape", (wide, _shape_input(draft, wide, rows)), rows)
    doubled = _joined(draft, wide, rows, factors[0])
    draft.add("Reshape", (doubled, _shape_input(draft, doubled, after)), after)
    return draft.finish(node)


def _joined(draft: _Draft, name: str, shape: tuple[int, ...], count: int) -> str:
    """`count` copies of a value side by side along its last axis."""
    if count == 1:
        return name
    return draft.add("Concat", (name,) * count, (*shape[:-1], shape[-1] * count), axis=len(shape) - 1)


def _shape_input(draft: _Draft, near: str, shape: Iterable[int]) -> str:
    return draft.constant(near, np.array(tuple(shape), np.int64))


def _repeats(node: Node, draft: _Draft, factors: tuple[int, int]) -> bool:
    """Whether each element is just repeated: element i of the result is element i // factor of the input."""
    if node.text("mode", "nearest") != "nearest" or node.input(1) not in ("", *draft.constants):
        return False
    if node.operator == "Upsample":
        return True
    coordinates = node.text("coordinate_transformation_mode", "half_pixel" if node.opset >= 11 else "asymmetric")
    rounding = _ROUNDINGS.get(node.text("nearest_mode", "round_prefer_floor" if node.opset >= 11 else "floor"))
    if coordinates not in ("half_pixel", "asymmetric") or rounding is None or node.integers("axes", ()):
        return False
    shift = 0.5 if coordinates == "half_pixel" else 0.0
    # Element i * factor + offset of the result reads element i + (what rounding makes of this).
    positions = [(offset + shift) / factor - shift for factor in factors for offset in range(factor)]
    return all(rounding(position) == 0 for position in positions)


_ROUNDINGS: Mapping[str, Callable[[float], int]] = MappingProxyType(
    {
        "ceil": math.ceil,
        "floor": math.floor,
        "round_prefer_ceil": lambda position: math.floor(position + 0.5),
        "round_prefer_floor": lambda position: math.ceil(position - 0.5),
    }
)
FORMS: Mapping[str, Callable[[Node, _Draft], bool]] = MappingProxyType(
    {
        "AveragePool": _average_pool,
        "Clip": _rectifier,
        "Div": _division,
        "HardSigmoid": _hard_sigmoid,
        "HardSwish": _hard_swish,
        "MaxPool": _max_pool,
        "Relu": _rectifier,
        "Resize": _nearest,
        "Upsample": _nearest,
    }
)
"""ONNX operator → what writes its form; false where this node has none."""
