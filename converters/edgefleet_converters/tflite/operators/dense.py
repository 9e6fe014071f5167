"""Matrix products: Gemm.

A product of two computed matrices is not here yet.
"""

from __future__ import annotations

import numpy as np

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Tensor
from edgefleet_converters.tflite.graph import Node, NotLowerableError
from edgefleet_converters.tflite.operators.contract import Lowering


def gemm(node: Node, e: Emitter) -> None:
    """Gemm with constant B [K, N] (or [N, K] with transB) and constant C: FULLY_CONNECTED, weights [N, K].

    alpha is folded into the weights and beta into the bias.
    """
    if node.integer("transA", 0):
        raise NotLowerableError("transA=1")
    weight = e.array(1, "weight").astype(np.float32)
    weight = weight if node.integer("transB", 0) else weight.T
    scaled = e.constant(weight * np.float32(node.number("alpha", 1.0)), role="weight")
    bias = _bias(node, e, weight.shape[0])
    e.into(node.outputs[0], e.fully_connected(e.input(0), scaled, bias, node.activation))


def _bias(node: Node, e: Emitter, features: int) -> Tensor:
    if not e.has(2):
        return e.constant(np.zeros(features, np.float32), role="bias")
    bias = e.array(2, "bias").astype(np.float32) * np.float32(node.number("beta", 1.0))
    if bias.ndim == 2 and bias.shape[0] != 1:
        raise NotLowerableError(f"its bias {bias.shape} differs from row to row")
    return e.constant(np.broadcast_to(bias.reshape(-1), (features,)), role="bias")


OPERATORS: dict[str, Lowering] = {"Gemm": gemm}
