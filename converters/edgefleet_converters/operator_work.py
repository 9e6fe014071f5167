"""How much one operator computes: multiply-accumulates of products, elementary operations of everything else.

Does not move data and knows no device; an operator that stands in no table here is said to be uncounted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from edgefleet_converters.tflite.graph import Graph, Node, NotLowerableError

Count = Callable[[Node, Graph], int]


def macs(node: Node, graph: Graph) -> int:
    """Multiply-accumulates of a product (padding included, as published figures have it); 0 for any other operator.

    Raises NotLowerableError where a shape that it needs is not static.
    """
    count = PRODUCTS.get(node.operator)
    return count(node, graph) if count is not None else 0


def operations(node: Node, graph: Graph) -> int:
    """Arithmetic operations of a node, one multiply-accumulate being two; raises NotLowerableError like `macs`."""
    if node.operator in PRODUCTS:
        return 2 * macs(node, graph)
    if node.operator in POOLS:
        return _pooled(node, graph)
    if node.operator in REDUCTIONS:
        return REDUCTIONS[node.operator] * _size(graph, node.input(0))
    return ELEMENTWISE.get(node.operator, 0) * max((_size(graph, name) for name in node.outputs if name), default=0)


def is_counted(operator: str) -> bool:
    """Whether some table here says what the operator costs, be it nothing."""
    return operator in COUNTED


def _size(graph: Graph, name: str) -> int:
    return math.prod(graph.shape(name))


def _convolution(weight: int) -> Count:
    """Each output element takes one filter's window over one group of channels; weights are [M, C/group, *kernel]."""
    return lambda node, graph: _size(graph, node.output(0)) * math.prod(graph.shape(node.input(weight))[1:])


def _transposed(node: Node, graph: Graph) -> int:
    """Each input element is spread over one window of every filter; weights are [C, M/group, *kernel]."""
    return _size(graph, node.input(0)) * math.prod(graph.shape(node.input(1))[1:])


def _product(node: Node, graph: Graph) -> int:
    """Each output element is a sum over the left operand's last axis."""
    return _size(graph, node.output(0)) * graph.shape(node.input(0))[-1]


def _gemm(node: Node, graph: Graph) -> int:
    return _size(graph, node.output(0)) * graph.shape(node.input(0))[0 if node.integer("transA", 0) else 1]


def _recurrent(node: Node, graph: Graph) -> int:
    """Each step multiplies the input by W and the state by R, whose sizes hold the gates and directions."""
    sequence, batch = graph.shape(node.input(0))[:2]
    return sequence * batch * (_size(graph, node.input(1)) + _size(graph, node.input(2)))


def _attention(node: Node, graph: Graph) -> int:
    """Q·Kᵀ and the weights times V: every element of Q and of the result meets all keys, past ones included."""
    keys = graph.shape(node.input(1))[-2] + (graph.shape(node.input(4))[-2] if node.input(4) else 0)
    return (_size(graph, node.input(0)) + _size(graph, node.output(0))) * keys


def _einsum(node: Node, graph: Graph) -> int:
    """The product of all labels' sizes; an ellipsis stands for the axes that have none."""
    terms = node.text("equation", "").replace(" ", "").partition("->")[0].split(",")
    sizes: dict[object, int] = {}
    for term, name in zip(terms, node.inputs, strict=True):
        before, dots, after = term.partition("...")
        shape = graph.shape(name)
        free = len(shape) - len(before) - len(after) if dots else 0
        labels = (*before, *range(-free, 0), *after)
        if len(labels) != len(shape):
            raise NotLowerableError(f"the equation's term {term!r} does not fit the shape {list(shape)}")
        for label, size in zip(labels, shape, strict=True):
            sizes[label] = max(sizes.get(label, 1), size)
    return math.prod(sizes.values())


PRODUCTS: Mapping[str, Count] = MappingProxyType(
    {
        "Attention": _attention,
        "Conv": _convolution(1),
        "ConvInteger": _convolution(1),
        "ConvTranspose": _transposed,
        "DeformConv": _convolution(1),
        "Einsum": _einsum,
        "GRU": _recurrent,
        "Gemm": _gemm,
        "LSTM": _recurrent,
        "MatMul": _product,
        "MatMulInteger": _product,
        "QLinearConv": _convolution(3),
        "QLinearMatMul": _product,
        "RNN": _recurrent,
    }
)
"""Operators that multiply and accumulate."""


def _pooled(node: Node, graph: Graph) -> int:
    return _size(graph, node.output(0)) * math.prod(node.integers("kernel_shape", ()))


POOLS = frozenset({"AveragePool", "LpPool", "MaxPool"})
"""One operation per element of each window."""

# A transcendental function is a polynomial of degree five or so after a reduction of its range, on every runtime.
_SMOOTH = 10
_SINGLE = (
    *("Abs", "Add", "And", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "BitShift", "Cast", "CastLike"),
    *("Ceil", "Div", "Equal", "Floor", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Max"),
    *("Min", "Mod", "Mul", "Neg", "Not", "Or", "Reciprocal", "Relu", "Round", "Sign", "Sqrt", "Sub", "Sum"),
    *("ThresholdedRelu", "Where", "Xor", "CumSum", "Mean"),
)
_TRANSCENDENTAL = (
    *("Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Celu", "Cos", "Cosh", "Elu", "Erf", "Exp", "Log", "Pow"),
    *("Selu", "Sigmoid", "Sin", "Sinh", "Softplus", "Tan", "Tanh"),
)
ELEMENTWISE: Mapping[str, int] = MappingProxyType(
    {
        **dict.fromkeys(_SINGLE, 1),
        **dict.fromkeys(_TRANSCENDENTAL, _SMOOTH),
        "BatchNormalization": 2,
        "Clip": 2,
        "DequantizeLinear": 2,
        "DynamicQuantizeLinear": 5,
        "Gelu": _SMOOTH + 4,
        "GridSample": 8,
        "GroupNormalization": 8,
        "HardSigmoid": 4,
        "HardSwish": 5,
        "InstanceNormalization": 8,
        "LRN": _SMOOTH + 4,
        "LayerNormalization": 8,
        "LeakyRelu": 2,
        "LogSoftmax": _SMOOTH + 4,
        "MeanVarianceNormalization": 8,
        "Mish": 2 * _SMOOTH + 1,
        "PRelu": 2,
        "QuantizeLinear": 3,
        "RMSNormalization": 5,
        "Resize": 8,
        "RotaryEmbedding": 3,
        "Shrink": 2,
        "Softmax": _SMOOTH + 3,
        "Softsign": 3,
        "Swish": _SMOOTH + 1,
        "Upsample": 8,
    }
)
"""Operations per element of the (largest) output; nominal: what a vector kernel of the operator executes."""

REDUCTIONS: Mapping[str, int] = MappingProxyType(
    {
        **dict.fromkeys(("ArgMax", "ArgMin", "GlobalAveragePool", "GlobalMaxPool", "Hardmax", "TopK"), 1),
        **dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceL1"), 1),
        **dict.fromkeys(("GlobalLpPool", "ReduceL2", "ReduceSumSquare"), 2),
        "LpNormalization": 3,
        **dict.fromkeys(("ReduceLogSum", "ReduceLogSumExp"), _SMOOTH + 2),
    }
)
"""Operations per element of the first input."""

VIEWS = frozenset({"Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
"""The output is the input's memory with another shape."""

MOVES = frozenset(
    {
        *("CenterCropPad", "Compress", "Concat", "ConstantOfShape", "DepthToSpace", "Expand", "EyeLike", "Gather"),
        *("GatherElements", "GatherND", "NonMaxSuppression", "NonZero", "OneHot", "Pad", "Range"),
        *("ReverseSequence", "ScatterElements", "ScatterND", "Slice", "SpaceToDepth", "Split", "TensorScatter", "Tile"),
        *("Transpose", "Trilu", "MaxUnpool", "Unique", "MaxRoiPool", "RoiAlign", "Bernoulli", "Multinomial"),
        *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
    }
)
"""Only bytes: they copy, or their arithmetic is small beside what they read and write."""

LOOKUPS = frozenset({"Gather", "GatherElements", "GatherND"})
"""Of their first input they read no more elements than they write."""

COUNTED = frozenset({*PRODUCTS, *POOLS, *ELEMENTWISE, *REDUCTIONS, *VIEWS, *MOVES})
"""Every operator with a row in one of the tables; function bodies of all others are opened and counted in parts."""

FUSED = frozenset(
    {
        *("Add", "BatchNormalization", "Clip", "HardSigmoid", "HardSwish", "LeakyRelu", "Mul", "PRelu", "Relu"),
        *("Sigmoid", "Sub", "Tanh", "Div"),
    }
)
"""What runtimes fold into, or run in the tail of, the product before it: one value that flows in, else constants."""
