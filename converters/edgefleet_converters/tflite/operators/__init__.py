"""Operator lowering: the table from ONNX operators to the functions that write their TFLite form.

A new operator is a new function in one of these modules and a row here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from edgefleet_converters.tflite.file import Draft
from edgefleet_converters.tflite.graph import Graph, Node
from edgefleet_converters.tflite.operators import convolution, dense, elementwise, pooling, shaping

Lowering = Callable[[Node, Graph, Draft], None]
"""Writes one node; its tensors are in the draft already. Raises NotLowerableError for an unknown form."""

OPERATORS: Mapping[str, Lowering] = MappingProxyType(
    {
        "Add": elementwise.add,
        "AveragePool": pooling.average_pool,
        "Conv": convolution.conv,
        "Flatten": shaping.reshape,
        "Gemm": dense.gemm,
        "GlobalAveragePool": pooling.global_average_pool,
        "Identity": shaping.reshape,
        "MaxPool": pooling.max_pool,
        "Mul": elementwise.multiply,
        "Relu": elementwise.relu,
        "Reshape": shaping.reshape,
        "Softmax": dense.softmax,
        "Transpose": shaping.transpose,
    }
)

FOLDED = ("BatchNormalization", "Clip", "Constant", "Dropout", "Shape")
"""Operators that have no row because a pass turns them into others; one that is left is refused."""
