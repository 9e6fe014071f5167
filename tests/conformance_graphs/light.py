"""The `light` models that the onnx package carries, with weights that make their outputs depend on their inputs.

As shipped their weights are constants of one value; here they are seeded normal numbers of the scale of an
initialisation, and what BatchNormalization reads is as after training.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

_FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def names() -> list[str]:
    """Names of the models, without `light_` and suffix."""
    return sorted(path.stem.removeprefix("light_") for path in _FOLDER.glob("*.onnx"))


def light_model(name: str) -> onnx.ModelProto:
    """One model, up to the tensor before its final softmax."""
    model = onnx.load(_FOLDER / f"light_{name}.onnx")
    random = np.random.default_rng(len(name))
    made = {node.output[0]: node for node in model.graph.node}
    roles = _roles(model)
    filled = set()
    kept = [node for node in model.graph.node if not _is_filler(node, roles)]
    for tensor in model.graph.initializer:
        if tensor.name in roles and tensor.data_type == onnx.TensorProto.FLOAT:
            array = _weights(random, roles[tensor.name], tuple(tensor.dims))
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
            filled.add(tensor.name)
    for output, role in roles.items():
        if output in made and _is_filler(made[output], roles):
            shape = _filled_shape(model, made[output])
            model.graph.initializer.append(numpy_helper.from_array(_weights(random, role, shape), output))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    _cut_softmax(model)
    return model


def _roles(model: onnx.ModelProto) -> dict[str, str]:
    """What each weight is to the node that reads it."""
    found: dict[str, str] = {}
    for node in reversed(model.graph.node):
        if node.op_type == "Unsqueeze" and node.output[0] in found:
            found[node.input[0]] = found[node.output[0]]
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            found.update(zip(node.input[1:], ("weight", "small"), strict=False))
        if node.op_type == "BatchNormalization":
            found.update(zip(node.input[1:], ("scale", "small", "small", "scale"), strict=True))
        if node.op_type in ("Mul", "Add"):
            found.update(dict.fromkeys(node.input, "scale" if node.op_type == "Mul" else "small"))
    return found


def _is_filler(node: onnx.NodeProto, roles: dict[str, str]) -> bool:
    """Whether a node only makes a weight of one value."""
    return node.op_type in ("ConstantOfShape", "ConstantFill") and node.output[0] in roles


def _filled_shape(model: onnx.ModelProto, node: onnx.NodeProto) -> tuple[int, ...]:
    constants = {item.name: item for item in model.graph.initializer}
    return tuple(numpy_helper.to_array(constants[node.input[0]]).tolist())


def _weights(random: np.random.Generator, role: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if role == "scale":
        return random.uniform(0.8, 1.2, shape).astype(np.float32)
    if role == "small" or len(shape) < 2:
        return (random.normal(size=shape) * 0.1).astype(np.float32)
    fan_in = int(np.prod(shape[1:]))
    return (random.standard_normal(size=shape, dtype=np.float32) * np.float32((2 / fan_in) ** 0.5)).astype(np.float32)


def _cut_softmax(model: onnx.ModelProto) -> None:
    last = model.graph.node[-1]
    if last.op_type != "Softmax":
        return
    before = last.input[0]
    del model.graph.node[-1]
    del model.graph.output[:]
    inferred = onnx.shape_inference.infer_shapes(model)
    model.graph.output.append(next(item for item in inferred.graph.value_info if item.name == before))
