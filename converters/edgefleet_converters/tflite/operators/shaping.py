"""Operators that move or rename axes and compute nothing: Flatten, Reshape, Identity, Transpose.

The result's shape is static, so a shape that the model computes is not read at run time.
"""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgefleet_converters.tflite.file import Draft
from edgefleet_converters.tflite.graph import Graph, Node


def reshape(node: Node, graph: Graph, draft: Draft) -> None:
    """Flatten, Reshape and Identity: the same elements in the same order, in the output's shape."""
    shape = graph.shape(node.outputs[0])
    options = schema.ReshapeOptionsT()
    options.newShape = list(shape)
    target = draft.constant(f"{node.outputs[0]}/shape", np.array(shape, np.int32))
    draft.emit(schema.BuiltinOperator.RESHAPE, (node.inputs[0], target), node.outputs[0], options)


def transpose(node: Node, graph: Graph, draft: Draft) -> None:
    """Transpose; without `perm` the axes are reversed."""
    rank = len(graph.shape(node.inputs[0]))
    order = node.integers("perm", tuple(reversed(range(rank))))
    axes = draft.constant(f"{node.outputs[0]}/perm", np.array(order, np.int32))
    draft.emit(schema.BuiltinOperator.TRANSPOSE, (node.inputs[0], axes), node.outputs[0], schema.TransposeOptionsT())
