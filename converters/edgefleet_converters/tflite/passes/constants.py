"""Constant folding: what depends on constants only is computed now, and nodes that do nothing are removed.

Does not look for algebraic simplifications.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx

from edgefleet_converters.tflite.graph import Array, Graph, Node

_PASS_THROUGH = ("Identity", "Dropout")
# Evaluating these again on another machine would give other numbers; they stay nodes.
_RANDOM = (
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
)


def fold_constants(graph: Graph) -> Graph:
    """Replace every node whose inputs are all constant by its value, and bypass Identity and Dropout."""
    constants = dict(graph.constants)
    renamed: dict[str, str] = {}
    kept: list[Node] = []
    read = set(graph.consumers())
    for original in graph.nodes:
        node = replace(original, inputs=tuple(renamed.get(name, name) for name in original.inputs))
        folded = _evaluate(graph, node, constants)
        if folded is not None:
            constants.update(folded)
        elif _passes_through(node) and node.outputs[0] not in graph.outputs and read.isdisjoint(node.outputs[1:]):
            renamed[node.outputs[0]] = node.inputs[0]
        else:
            kept.append(node)
    return graph.with_nodes(kept, constants)


def _passes_through(node: Node) -> bool:
    training = node.operator == "Dropout" and bool(node.input(2))
    return node.operator in _PASS_THROUGH and not training


def _evaluate(graph: Graph, node: Node, constants: dict[str, Array]) -> dict[str, Array] | None:
    """Values of a node's outputs, or None when they are not known before run time."""
    if any(name in graph.outputs for name in node.outputs) or node.operator in _RANDOM:
        return None
    if node.operator == "Shape":
        value = graph.values.get(node.inputs[0])
        if value is None or value.shape is None:
            return None
        start, end = node.integer("start", 0), node.integer("end", len(value.shape))
        return {node.outputs[0]: np.array(value.shape[start:end], np.int64)}
    if not all(name in constants for name in node.inputs if name) or "." in node.operator:
        return None
    return _run(graph, node, constants)


def _run(graph: Graph, node: Node, constants: dict[str, Array]) -> dict[str, Array] | None:
    """Run one node on constants in ONNX's reference evaluator."""
    # Its operators take 0.3 s to import, which most models never need.
    from onnx.reference import ReferenceEvaluator  # noqa: PLC0415

    if any(isinstance(value, onnx.GraphProto) for value in node.attributes.values()):
        return None
    attributes = {
        name: onnx.numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
        for name, value in node.attributes.items()
    }
    proto = onnx.helper.make_node(node.operator, node.inputs, node.outputs, **attributes)
    read = sorted({name for name in node.inputs if name})
    body = onnx.helper.make_graph(
        [proto],
        node.name,
        [_describe(name, constants[name]) for name in read],
        [onnx.ValueInfoProto(name=name) for name in node.outputs],
    )
    model = onnx.helper.make_model(body, opset_imports=[onnx.helper.make_opsetid("", graph.opset)])
    found = ReferenceEvaluator(model).run(None, {name: constants[name] for name in read})
    return dict(zip(node.outputs, (np.asarray(array) for array in found), strict=True))


def _describe(name: str, array: Array) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
