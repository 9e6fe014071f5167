"""A product with constant weights whose result is only cut up, as queries, keys and values are: one product per part.

Cuts that fewer columns than a kernel's tile would be left of stay, and so do those along any axis but the product's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from edgefleet_converters.tflite.graph import Activation, Array, Graph, Node, NotLowerableError, Value, permuted
from edgefleet_converters.tflite.passes.layout_table import RESHAPING
from edgefleet_converters.tflite.passes.reshapes import merge_reshapes
from edgefleet_converters.tflite.passes.weights import RESULT_AXES

_CUTTING = ("Gather", "Slice", "Split")
# XNNPACK multiplies by so many columns at once, or more.
_FEWEST_COLUMNS = 8

Positions = NDArray[np.int64]


def part_projections(graph: Graph) -> Graph:
    """Each such product as several, its weights cut ahead of run time; together they are no larger than before.

    Comes after scaling is folded, so that the product has its bias, and before activations are fused.
    """
    while True:
        consumers = graph.consumers()
        for node in graph.nodes:
            parts = _parts(graph, node, consumers)
            if parts:
                graph = _parted(graph, node, parts)
                break
        else:
            return graph


@dataclass(frozen=True, slots=True)
class _Cut:
    """One output of a cutting node: the positions that it keeps along an axis of what the node reads."""

    node: Node
    output: str
    axis: int
    kept: Positions


@dataclass(frozen=True, slots=True)
class _Part:
    """A cut, the moving nodes before it from the product on, and along which axis it keeps how many
    of each one's result, the product's first."""

    cut: _Cut
    moves: tuple[Node, ...]
    axes: tuple[int, ...]
    sizes: tuple[int, ...]
    columns: Positions


def _parts(graph: Graph, product: Node, consumers: Mapping[str, list[Node]]) -> list[_Part]:
    """All that the product's result becomes, if that is nothing but cuts along its columns."""
    if not _is_projection(graph, product, consumers):
        return []
    try:
        found = list(_followed(graph, product.outputs[0], (), consumers))
    except NotLowerableError:
        return []
    parts = [part for part in found if part is not None]
    shape, axis = graph.shape(product.outputs[0]), RESULT_AXES[product.operator]
    counts = [part.sizes[0] for part in parts]
    if len(parts) < len(found) or not parts or min(counts) < _FEWEST_COLUMNS or sum(counts) > shape[axis]:
        return []
    return parts if all(part.axes[0] == axis % len(shape) for part in parts) else []


def _is_projection(graph: Graph, node: Node, consumers: Mapping[str, list[Node]]) -> bool:
    """Whether the node is a float32 product with weights of its own, all of whose columns are alike."""
    if node.operator not in RESULT_AXES or node.activation is not Activation.NONE or not node.outputs[0]:
        return False
    weight, bias = node.input(1), node.input(2)
    constant = all(name in graph.constants and len(consumers[name]) == 1 for name in (weight, bias) if name)
    if not constant or graph.dtype(node.outputs[0]) != "float32" or graph.values[node.outputs[0]].shape is None:
        return False
    if node.operator == "MatMul" and graph.constants[weight].ndim != 2:
        return False
    row = bias == "" or graph.constants[bias].size in (1, *graph.constants[bias].shape[-1:])
    return row and node.integer("group", 1) == 1


def _followed(
    graph: Graph, name: str, moves: tuple[Node, ...], consumers: Mapping[str, list[Node]]
) -> Iterator[_Part | None]:
    """The parts behind a value; None for anything else that becomes of it."""
    readers = consumers.get(name, [])
    if name in graph.outputs or not readers:
        yield None
    for reader in readers:
        if reader.operator in RESHAPING or reader.operator == "Transpose":
            yield from _followed(graph, reader.outputs[0], (*moves, reader), consumers)
        elif reader.operator in _CUTTING and reader.inputs[0] == name:
            for cut in _cuts(graph, reader):
                yield None if cut is None else _traced(graph, cut, moves)
        else:
            yield None


def _cuts(graph: Graph, node: Node) -> Iterator[_Cut | None]:
    """What each output of the node keeps; None where that is not known, or not along one axis."""
    shape = graph.shape(node.inputs[0])
    if node.operator == "Split":
        axis, start = node.integer("axis", 0) % len(shape), 0
        for output in filter(None, node.outputs):
            size = graph.shape(output)[axis]
            yield _Cut(node, output, axis, np.arange(start, start + size))
            start += size
        if not all(node.outputs):
            yield None
        return
    if any(name not in graph.constants for name in node.inputs[1:] if name) or node.opset < 10:
        yield None
    elif node.operator == "Gather":
        axis, indices = node.integer("axis", 0) % len(shape), graph.constants[node.inputs[1]]
        kept = np.arange(shape[axis])[indices.astype(np.int64)].reshape(-1)
        yield _Cut(node, node.outputs[0], axis, kept) if indices.ndim < 2 else None
    else:
        yield _sliced(graph, node, shape)


def _sliced(graph: Graph, node: Node, shape: Sequence[int]) -> _Cut | None:
    starts, ends, axes, steps = (
        graph.constants[node.input(at)].ravel().tolist() if node.input(at) else None for at in range(1, 5)
    )
    if starts is None or ends is None or len(starts) != 1 or (steps is not None and steps[0] < 1):
        return None
    axis = (axes[0] if axes is not None else 0) % len(shape)
    kept = np.arange(shape[axis])[slice(starts[0], ends[0], steps[0] if steps is not None else 1)]
    return _Cut(node, node.outputs[0], axis, kept)


def _traced(graph: Graph, cut: _Cut, moves: tuple[Node, ...]) -> _Part | None:
    """The cut as one of the product's columns, back through what moves them."""
    axis, kept = cut.axis, cut.kept
    stages = [(axis, kept.size)]
    for node in reversed(moves):
        if node.operator == "Transpose":
            axis = _order(graph, node)[axis]
        else:
            found = _before_reshape(graph.shape(node.inputs[0]), graph.shape(node.outputs[0]), axis, kept)
            if found is None:
                return None
            axis, kept = found
        stages.append((axis, kept.size))
    axes, sizes = zip(*reversed(stages), strict=True)
    return _Part(cut, moves, axes, sizes, kept)


def _before_reshape(
    before: Sequence[int], after: Sequence[int], axis: int, kept: Positions
) -> tuple[int, Positions] | None:
    """(axis, positions) before a reshape of those kept after it, where one axis there holds the whole of `axis`."""
    outer, inner = math.prod(after[:axis]), math.prod(after[axis + 1 :])
    for at, size in enumerate(before):
        around, beneath = math.prod(before[:at]), math.prod(before[at + 1 :])
        if around and beneath and size > 1 and not outer % around and not inner % beneath:
            split = (outer // around, after[axis], inner // beneath)
            if math.prod(split) == size:
                return at, np.arange(size).reshape(split)[:, kept].ravel()
    return None


def _order(graph: Graph, node: Node) -> tuple[int, ...]:
    return node.integers("perm", tuple(reversed(range(len(graph.shape(node.inputs[0]))))))


def _parted(graph: Graph, product: Node, parts: Sequence[_Part]) -> Graph:
    """The graph with a product for each part, and each part's own moves."""
    values, constants = dict(graph.values), dict(graph.constants)
    made: list[Node] = []
    for part in parts:
        for node, shape in _written(graph, product, part, constants):
            values[node.outputs[0]] = Value(node.outputs[0], "float32", shape)
            made.append(node)
    cutting = {name for part in parts for name in part.cut.node.outputs}
    nodes: list[Node] = []
    for node in graph.nodes:
        if node is product:
            nodes.extend(made)
        elif not cutting.intersection(node.outputs):
            nodes.append(node)
    read = {name for node in nodes for name in node.inputs} | set(graph.outputs)
    gone = {node.outputs[0] for part in parts for node in part.moves}
    kept = [node for node in nodes if node.outputs[0] not in gone or node.outputs[0] in read]
    return merge_reshapes(replace(graph, values=values).with_nodes(kept, constants))


def _written(
    graph: Graph, product: Node, part: _Part, constants: dict[str, Array]
) -> list[tuple[Node, tuple[int, ...]]]:
    """The nodes of one part and the shapes of their results: an axis that the cut leaves one of is never made."""
    goal, dropped = part.cut.output, False
    shape = _resized(graph.shape(product.outputs[0]), part.axes[0], part.sizes[0])
    inputs = (product.inputs[0], *_cut_weights(graph, product, part, constants))
    made = [(replace(product, name=f"{product.name}/{goal}", inputs=inputs, outputs=(f"{goal}/columns",)), shape)]
    for number, (node, size) in enumerate(zip(part.moves, part.sizes[1:], strict=True)):
        before, after = part.axes[number : number + 2]
        attributes: dict[str, object] = {}
        if node.operator == "Transpose":
            perm = _without(_order(graph, node), before) if dropped else _order(graph, node)
            attributes, shape = {"perm": perm}, permuted(shape, perm)
        else:
            dropped = size == 1
            shape = _resized(graph.shape(node.outputs[0]), after, size)
            shape = (*shape[:after], *shape[after + 1 :]) if dropped else shape
        source, name = made[-1][0].outputs[0], f"{goal}/{number}"
        made.append((Node(f"{node.name}/{goal}", node.operator, (source,), (name,), attributes, opset=13), shape))
    last = made[-1][0]
    if shape == graph.shape(goal):
        return [*made[:-1], (replace(last, outputs=(goal,)), shape)]
    return [*made, (Node(part.cut.node.name, "Reshape", last.outputs, (goal,), opset=13), graph.shape(goal))]


def _without(order: Sequence[int], axis: int) -> tuple[int, ...]:
    """An order of axes when one of them is no more."""
    return tuple(at - (at > axis) for at in order if at != axis)


def _resized(shape: Sequence[int], axis: int, size: int) -> tuple[int, ...]:
    at = axis % len(shape)
    return (*shape[:at], size, *shape[at + 1 :])


def _cut_weights(graph: Graph, product: Node, part: _Part, constants: dict[str, Array]) -> list[str]:
    """Names of the part's weights and bias; a view where the columns are side by side."""
    weight, bias = product.inputs[1], product.input(2)
    axes = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1 - product.integer("transB", 0), "MatMul": 1}
    made = {f"{weight}/{part.cut.output}": _taken(graph.constants[weight], axes[product.operator], part.columns)}
    if bias and graph.constants[bias].size > 1:
        made[f"{bias}/{part.cut.output}"] = _taken(graph.constants[bias], -1, part.columns)
    constants.update(made)
    names = list(made)
    return names if len(names) == len(product.inputs[1:]) or not bias else [*names, bias]


def _taken(array: Array, axis: int, columns: Positions) -> Array:
    first, count = int(columns[0]), columns.size
    if np.array_equal(columns, np.arange(first, first + count)):
        cut = [slice(None)] * array.ndim
        cut[axis] = slice(first, first + count)
        return array[tuple(cut)]
    return np.take(array, columns, axis=axis)
