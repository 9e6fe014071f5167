"""ONNX Runtime's own clean-up before a model is quantised: shape inference and basic graph optimisation.

Not a step itself: the steps that quantise or narrow weights begin with it. Does not change what the model computes,
beyond rounding.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnxruntime.quantization.shape_inference import quant_pre_process


def prepare(source: Path, path: Path) -> None:
    """Write the float model, every node with a name; shapes are static, so the symbolic solver is not needed."""
    quant_pre_process(source, path, skip_symbolic_shape=True)
    model = onnx.load(path)
    taken = {node.name for node in model.graph.node}
    if "" not in taken and len(taken) == len(model.graph.node):
        return
    for position, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}#{position}"
    onnx.save(model, path)
