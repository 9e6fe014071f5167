"""Which operators care where the channels are: the table of layout assignment.

An operator that is not named here, and has no axes that `layout_axes` can renumber, sees the source's axes.
"""

from __future__ import annotations

from collections.abc import Mapping

SPATIAL = frozenset(
    (
        *("AveragePool", "Conv", "ConvInteger", "ConvTranspose", "DepthToSpace", "GlobalAveragePool", "GlobalLpPool"),
        *("GlobalMaxPool", "GridSample", "GroupNormalization", "InstanceNormalization", "LRN", "LpPool", "MaxPool"),
        *("QLinearConv", "Resize", "RoiAlign", "SpaceToDepth", "Upsample"),
    )
)
"""Read and write channels-last through their first input and only output, on any rank from 3 on."""

EITHER = frozenset(("GroupNormalization", "InstanceNormalization"))
"""Spatial, but as good where the source's layout is: nothing is moved for their sake."""

MARK = "channels_last"
"""The attribute, 1, that layout assignment gives the spatial nodes that it has placed so."""

ELEMENTWISE = frozenset(
    (
        *("Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitShift", "BitwiseAnd"),
        *("BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Div"),
        *("DequantizeLinear", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual"),
        *("HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log"),
        *("Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "QuantizeLinear"),
        *("Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus"),
        *("Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor"),
    )
)
"""Work on any layout, as long as all their operands have the same; operands broadcast as in numpy."""

RESHAPING = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")
"""Only the order of elements matters, not where the axes are."""

AXIS_LAST: Mapping[str, int] = {"LogSoftmax": 13, "Softmax": 13}
"""TFLite has them along the last axis only; since the opset given they work along one axis."""


def channels_last(rank: int) -> tuple[int, ...]:
    """The permutation that puts axis 1 last."""
    return (0, *range(2, rank), 1)
