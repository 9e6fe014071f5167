"""Elementwise operators: Add, Mul, and activations that could not be fused into the node before them.

Operands broadcast as in numpy; the layout pass has brought them to one layout.
"""

from __future__ import annotations

from ai_edge_litert import schema_py_generated as schema

from edgefleet_converters.tflite.file import FUSED, Draft
from edgefleet_converters.tflite.graph import Activation, Graph, Node

_ACTIVATION_CODES = {
    Activation.RELU: schema.BuiltinOperator.RELU,
    Activation.RELU6: schema.BuiltinOperator.RELU6,
}


def add(node: Node, _graph: Graph, draft: Draft) -> None:
    """Add of two values, or of a value and a constant."""
    options = schema.AddOptionsT()
    options.fusedActivationFunction = FUSED[node.activation]
    draft.emit(schema.BuiltinOperator.ADD, node.inputs, node.outputs[0], options)


def multiply(node: Node, _graph: Graph, draft: Draft) -> None:
    """Mul of two values, or of a value and a constant."""
    options = schema.MulOptionsT()
    options.fusedActivationFunction = FUSED[node.activation]
    draft.emit(schema.BuiltinOperator.MUL, node.inputs, node.outputs[0], options)


def relu(node: Node, _graph: Graph, draft: Draft) -> None:
    """Relu, and Clip to (0, 6)."""
    draft.emit(_ACTIVATION_CODES[node.activation], node.inputs, node.outputs[0])
