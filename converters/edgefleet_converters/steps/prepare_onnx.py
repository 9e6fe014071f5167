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
    changed = _flatten_biases(model.graph)
    taken = {node.name for node in model.graph.node}
    if "" in taken or len(taken) < len(model.graph.node):
        changed = True
        for position, node in enumerate(model.graph.node):
            node.name = f"{node.op_type}#{position}"
    if changed:
        onnx.save(model, path)


def _flatten_biases(graph: onnx.GraphProto) -> bool:
    """A product and a sum with [1, N] become one Gemm, whose bias the quantiser takes for N rows unless it is [N]."""
    biases = {node.input[2] for node in graph.node if node.op_type == "Gemm" and len(node.input) > 2}
    others = {name for node in graph.node for name in (node.input[:2] if node.op_type == "Gemm" else node.input)}
    rows = [t for t in graph.initializer if t.name in biases - others and len(t.dims) == 2 and t.dims[0] == 1]
    for tensor in rows:
        del tensor.dims[0]
    return bool(rows)
