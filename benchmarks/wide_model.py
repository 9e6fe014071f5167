"""A model of 4 MB in int8 that needs no training run: random layers, and a last one that is fitted to what they give.

It packages nothing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgefleet_demo import digits

# 64 × 2000 + 2000 × 2000 + 2000 × 10 weights.
WIDTH = 2000
RIDGE = 0.1


def write_model(path: Path) -> None:
    """ONNX: the demo's digits, "image" float32 [1, 1, 8, 8] to "logits" float32 [1, 10]."""
    nodes = [helper.make_node("Flatten", ["image"], ["x0"])]
    for place in range(2):
        nodes.append(helper.make_node("MatMul", [f"x{place}", f"w{place}"], [f"y{place}"]))
        nodes.append(helper.make_node("Relu", [f"y{place}"], [f"x{place + 1}"]))
    nodes.append(helper.make_node("MatMul", ["x2", "w2"], ["logits"]))
    graph = helper.make_graph(
        nodes, "wide",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(weight, f"w{place}") for place, weight in enumerate(_weights())],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def _weights() -> list[NDArray[np.float32]]:
    """Two layers that keep the variance of what goes in (He et al. 2015), and a ridge regression on the labels."""
    data, rng = digits.load(), np.random.default_rng(0)
    weights: list[NDArray[np.float32]] = []
    hidden = data.train_x.reshape(len(data.train_x), -1)
    for _ in range(2):
        width = hidden.shape[1]
        weights.append((rng.standard_normal((width, WIDTH)) * np.sqrt(2 / width)).astype(np.float32))
        hidden = np.maximum(hidden @ weights[-1], 0)
    penalty = RIDGE * len(hidden) * np.eye(WIDTH)
    wanted = np.eye(10)[data.train_y]
    weights.append(np.linalg.solve(hidden.T @ hidden + penalty, hidden.T @ wanted).astype(np.float32))
    return weights
