"""Where TensorRT wants quantisation in an ONNX graph: the inputs of products, and the residual input of a sum.

Not a step itself: a pure rule over the graph, which it does not change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import onnx
from onnx import helper

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""What has int8 kernels on tensor cores."""
_CONVOLUTIONS = ("Conv", "ConvTranspose")


@dataclass(frozen=True, slots=True, eq=False)
class Read:
    """An input of a node that is to come from a DequantizeLinear; weights have an axis with a scale for each place."""

    node: onnx.NodeProto
    place: int
    axis: int | None = None

    @property
    def tensor(self) -> str:
        """The tensor that is read, before anything is changed."""
        return str(self.node.input[self.place])


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """All inputs that become int8, and those of their tensors that are no weights."""

    reads: tuple[Read, ...]
    activations: tuple[str, ...]


def place(graph: onnx.GraphProto, left: frozenset[str]) -> Placement:
    """The placement for a graph; nodes that make one of the tensors `left` stay in float."""
    ranks = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type in PRODUCTS and not left & set(node.output)]
    reads = [read for node in products if _is_usual(node, ranks) for read in _of_product(node, ranks)]
    quantized = {name for read in reads for name in read.node.output if read.node.op_type in _CONVOLUTIONS}
    reads += _residuals(graph, quantized, left, ranks)
    return Placement(tuple(reads), tuple(dict.fromkeys(read.tensor for read in reads if read.tensor not in ranks)))


def _is_usual(node: onnx.NodeProto, ranks: Mapping[str, int]) -> bool:
    """Whether TensorRT has an int8 form of this product: weights on the right, no grouped transposed convolution."""
    if node.input[0] in ranks or (node.op_type in _CONVOLUTIONS and node.input[1] not in ranks):
        return False
    return node.op_type != "ConvTranspose" or _attribute(node, "group", 1) == 1


def _of_product(node: onnx.NodeProto, ranks: Mapping[str, int]) -> Iterator[Read]:
    yield Read(node, 0)
    weight = node.input[1]
    yield Read(node, 1, _channel_axis(node, ranks[weight]) if weight in ranks else None)


def _channel_axis(node: onnx.NodeProto, rank: int) -> int | None:
    """Axis of a weight that becomes the output's channels; a batch of matrices has one scale for all."""
    if node.op_type == "MatMul":
        return 1 if rank == 2 else None
    if node.op_type == "Gemm":
        return 0 if _attribute(node, "transB", 0) else 1
    return _AXES[node.op_type]


_AXES: Mapping[str, int] = MappingProxyType({"Conv": 0, "ConvTranspose": 1})


def _residuals(
    graph: onnx.GraphProto, quantized: set[str], left: frozenset[str], ranks: Mapping[str, int]
) -> Iterator[Read]:
    """Sums that TensorRT fuses into the convolution that makes one side: the other side is then read as int8."""
    readers: dict[str, int] = dict.fromkeys((item.name for item in graph.output), 1)
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    for node in graph.node:
        if node.op_type != "Add" or left & set(node.output) or any(name in ranks for name in node.input):
            continue
        fused = [side for side in (0, 1) if node.input[side] in quantized and readers[node.input[side]] == 1]
        if fused:
            yield Read(node, 1 - fused[0])


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(helper.get_attribute_value(item)) for item in node.attribute if item.name == name), default)
