"""Gemm and Softmax on matrices [rows, features].

Does not do matrix products of two computed values.
"""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgefleet_converters.tflite.file import FUSED, Draft
from edgefleet_converters.tflite.graph import Graph, Node, NotLowerableError


def gemm(node: Node, graph: Graph, draft: Draft) -> None:
    """Gemm with constant B [K, N] (or [N, K] with transB) and constant C: FULLY_CONNECTED, weights [N, K].

    alpha is folded into the weights and beta into the bias.
    """
    if node.integer("transA", 0):
        raise NotLowerableError("transA=1")
    weight = graph.constant(node.input(1), "weight").astype(np.float32)
    weight = weight if node.integer("transB", 0) else weight.T
    output = node.outputs[0]
    inputs = (
        node.inputs[0],
        draft.constant(f"{output}/weight", np.ascontiguousarray(weight * np.float32(node.number("alpha", 1.0)))),
        draft.constant(f"{output}/bias", _bias(node, graph, weight.shape[0])),
    )
    options = schema.FullyConnectedOptionsT()
    options.fusedActivationFunction = FUSED[node.activation]
    draft.emit(schema.BuiltinOperator.FULLY_CONNECTED, inputs, output, options)


def _bias(node: Node, graph: Graph, features: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    if not node.input(2):
        return np.zeros(features, np.float32)
    bias = graph.constant(node.input(2), "bias").astype(np.float32) * np.float32(node.number("beta", 1.0))
    if bias.ndim == 2 and bias.shape[0] != 1:
        raise NotLowerableError(f"its bias {bias.shape} differs from row to row")
    return np.broadcast_to(bias.reshape(-1), (features,)).copy()


def softmax(node: Node, graph: Graph, draft: Draft) -> None:
    """Softmax over the last axis (before opset 13 the default axis is 1: that one and all after it)."""
    rank = len(graph.shape(node.inputs[0]))
    axis = node.integer("axis", 1 if graph.opset < 13 else -1)
    if axis % rank != rank - 1:
        raise NotLowerableError(f"axis={axis} of rank {rank} is not the last")
    options = schema.SoftmaxOptionsT()
    options.beta = 1.0
    draft.emit(schema.BuiltinOperator.SOFTMAX, (node.inputs[0],), node.outputs[0], options)
