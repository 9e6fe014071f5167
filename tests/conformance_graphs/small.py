"""Small seeded graphs, and by brute force the least transposes that each needs.

Shares nothing with the lowering's own layout assignment: every order of axes that can help is tried for every node.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

import onnx

from conformance_graphs.building import Building

Order = tuple[int, ...]
_PLAIN, _LAST = (0, 1, 2, 3), (0, 2, 3, 1)
_FIXED = ("Conv", "MaxPool")
_MOST_TRIALS = 30_000


def small_graph(seed: int) -> onnx.ModelProto:
    """Up to 8 nodes over a map whose axes are all longer than 1 and of one length, so that no move is ever free."""
    b = Building(seed)
    values = [b.input(2, 4, 4, 4)]
    count = int(b.random.integers(3, 9))
    while len(b.nodes) < count:
        recent = values[-2:] if b.random.random() < 0.8 else values
        first = recent[int(b.random.integers(len(recent)))]
        second = values[int(b.random.integers(len(values)))]
        kind = b.random.random()
        if kind < 0.3:
            made = _conv(b, first)
        elif kind < 0.4:
            made = b.node("Sigmoid", first)
        elif kind < 0.55 and b.shape(first) == b.shape(second):
            made = b.node("Mul", first, second)
        elif kind < 0.65 and b.shape(first) == b.shape(second):
            made = b.node("Concat", first, second, axis=int(b.random.integers(4)))
        elif kind < 0.95:
            perm = _LAST if b.random.random() < 0.4 else (0, 3, 1, 2)
            made = b.node(
                "Transpose", first, perm=perm if b.random.random() < 0.8 else b.random.permutation(4).tolist()
            )
        else:
            continue
        values.append(made)
    read = {name for node in b.nodes for name in node.input}
    return b.model(*[name for node in b.nodes for name in node.output if name not in read])


def _conv(b: Building, data: str) -> str:
    channels = b.shape(data)[1]
    return b.conv(data, channels, int(b.random.choice([1, 3])))


def fewest_transposes(model: onnx.ModelProto) -> int:
    """The optimum, when transposes of the model itself are choices of order as well."""
    nodes = list(model.graph.node)
    orders = sorted(_closure([_perm(node) for node in nodes if node.op_type == "Transpose"]))
    free = [node for node in nodes if node.op_type not in (*_FIXED, "Transpose")]
    outputs = [item.name for item in model.graph.output]
    inputs = [item.name for item in model.graph.input]
    while len(orders) ** len(free) * 2 ** len(inputs) > _MOST_TRIALS:
        orders = orders[: len(orders) - 1]
    best = len(nodes) * 4
    for picked in itertools.product(orders, repeat=len(free)):
        chosen = dict(zip((node.output[0] for node in free), picked, strict=True))
        for borders in itertools.product((_PLAIN, _LAST), repeat=len(inputs)):
            best = min(best, _moves(nodes, chosen, dict(zip(inputs, borders, strict=True)), outputs))
    return best


def _perm(node: onnx.NodeProto) -> Order:
    return tuple(next(item.ints for item in node.attribute if item.name == "perm"))


def _after(first: Order, second: Order) -> Order:
    """The order of axes after `first`, then `second`."""
    return tuple(first[axis] for axis in second)


def _inverse(order: Order) -> Order:
    return tuple(sorted(range(4), key=order.__getitem__))


def _closure(perms: Iterable[Order]) -> set[Order]:
    """All orders that can come about by at most three of the moves that the graph has a reason for."""
    steps = {_PLAIN, _LAST, _inverse(_LAST), *perms, *(_inverse(perm) for perm in perms)}
    found: set[Order] = {_PLAIN}
    for _ in range(3):
        found |= {_after(order, step) for order in found for step in steps}
    return found


def _moves(
    nodes: list[onnx.NodeProto], chosen: Mapping[str, Order], borders: Mapping[str, Order], outputs: list[str]
) -> int:
    """Transposes that a choice costs: each stored tensor is moved into each order once, however often it is read."""
    stored: dict[str, tuple[str, Order]] = {name: (name, order) for name, order in borders.items()}
    moved: set[tuple[str, Order]] = set()

    def need(name: str, order: Order) -> None:
        root, lies = stored[name]
        turn = tuple(lies.index(axis) for axis in order)
        if turn != _PLAIN:
            moved.add((root, turn))

    for node in nodes:
        output = node.output[0]
        if node.op_type == "Transpose":
            root, lies = stored[node.input[0]]
            perm = _perm(node)
            stored[output] = (root, tuple(perm.index(axis) for axis in lies))
        elif node.op_type in _FIXED:
            need(node.input[0], _LAST)
            stored[output] = (output, _LAST)
        else:
            for name in node.input:
                need(name, chosen[output])
            stored[output] = (output, chosen[output])
    for name in outputs:
        if stored[name][1] != _LAST:
            need(name, _PLAIN)
    return len(moved)
