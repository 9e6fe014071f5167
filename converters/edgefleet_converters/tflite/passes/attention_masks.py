"""Masks that fill in scores become sums, for the float file.

Only fills that no score can be told from are summed: a row that is hidden whole must come out the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from edgefleet_converters.tflite.graph import Array, Graph, Node, NotLowerableError, Value
from edgefleet_converters.tflite.passes.liveness import needed

# A float32 sum of this and anything below 2^66 is this.
_HIDING = -1e30


def sum_masks(graph: Graph) -> Graph:
    """Where(mask, fill, scores) before a Softmax as a sum, its summand made from the mask alone and shared.

    Where makes no use of XNNPACK and reads all scores; a summand is made once, of the mask's own size.
    """
    found = _Masks(graph, graph.consumers(), dict(graph.values), dict(graph.constants))
    nodes = [made for node in graph.nodes for made in found.summed(node)]
    return replace(graph, values=found.values).with_nodes(needed(nodes, graph.outputs), found.constants)


@dataclass(slots=True)
class _Masks:
    """Summands so far: (mask, fill, whether the fill is where the mask holds) → name."""

    graph: Graph
    readers: Mapping[str, list[Node]]
    values: dict[str, Value]
    constants: dict[str, Array]

    def summed(self, node: Node) -> list[Node]:
        """The node, or what stands for it."""
        reader = self.graph.sole_consumer(node.outputs[0], self.readers) if node.operator == "Where" else None
        if reader is None or reader.operator != "Softmax" or self.graph.dtype(node.outputs[0]) != "float32":
            return [node]
        for at in (1, 2):
            fill = self.graph.constants.get(node.inputs[at])
            if fill is not None and fill.size == 1 and fill.item() <= _HIDING:
                return self._sum(node, node.inputs[3 - at], fill, hides=at == 1)
        return [node]

    def _sum(self, node: Node, scores: str, fill: Array, *, hides: bool) -> list[Node]:
        mask, output = node.inputs[0], node.outputs[0]
        try:
            shapes = [self.graph.shape(name) for name in (mask, scores, output)]
        except NotLowerableError:
            return [node]
        constant = self.graph.constants.get(mask)
        if shapes[1] != shapes[2] or (constant is None and math.prod(shapes[0]) * 2 > math.prod(shapes[2])):
            return [node]
        name = f"{mask}/{'hiding' if hides else 'showing'}/{fill.item()}"
        zero, low = f"{name}/zero", f"{name}/fill"
        made = Node(node.name, "Add", (scores, name), (output,), opset=14)
        if name in self.values or name in self.constants:
            return [made]
        if constant is not None:
            self.constants[name] = np.where(constant == hides, fill.reshape(()), np.float32(0))
            return [made]
        self.values[name] = Value(name, "float32", shapes[0])
        self.constants.update({zero: np.zeros((), np.float32), low: fill.reshape(())})
        both = (low, zero) if hides else (zero, low)
        return [Node(f"{node.name}/summand", "Where", (mask, *both), (name,), opset=16), made]
