"""An ONNX graph while it is being built, node by node, with seeded weights of sane scale.

Values are named by number; shapes are worked out by ONNX itself, node by node.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
OPSET = 18


class Building:
    """Nodes, constants and shapes so far; every method returns the name of what it added."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.types: dict[str, onnx.TypeProto] = {}
        self._schemas = [helper.make_opsetid("", OPSET)]

    def input(self, *shape: int, kind: int = TensorProto.FLOAT) -> str:
        """A graph input."""
        name = f"x{len(self.inputs)}" if self.inputs else "x"
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        self.types[name] = self.inputs[-1].type
        return name

    def constant(self, array: Array) -> str:
        """A constant."""
        name = f"k{len(self.constants)}"
        self.constants[name] = array
        self.types[name] = helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        return name

    def integers(self, *values: int) -> str:
        """A constant int64 vector."""
        return self.constant(np.array(values, np.int64))

    def normal(self, *shape: int, scale: float = 1.0) -> str:
        """A constant of normal numbers."""
        return self.constant((self.random.normal(size=shape) * scale).astype(np.float32))

    def node(self, operator: str, *inputs: str, **attributes: object) -> str:
        """A node with one output."""
        return self.nodes_of(operator, inputs, 1, **attributes)[0]

    def nodes_of(self, operator: str, inputs: Sequence[str], outputs: int, **attributes: object) -> list[str]:
        """A node with several outputs; their names."""
        names = [f"v{len(self.nodes)}" + (f"_{at}" if outputs > 1 else "") for at in range(outputs)]
        proto = helper.make_node(operator, list(inputs), names, name=f"{operator}_{len(self.nodes)}", **attributes)
        known = {name: numpy_helper.from_array(self.constants[name], name) for name in inputs if self._is_small(name)}
        found = onnx.shape_inference.infer_node_outputs(
            onnx.defs.get_schema(operator, OPSET),
            proto,
            {name: self.types[name] for name in inputs if name},
            known,
            opset_imports=self._schemas,
        )
        self.nodes.append(proto)
        self.types.update(found)
        return names

    def _is_small(self, name: str) -> bool:
        return name in self.constants and self.constants[name].size < 100

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a value."""
        return tuple(axis.dim_value for axis in self.types[name].tensor_type.shape.dim)

    def model(self, *outputs: str) -> onnx.ModelProto:
        """The graph as a checked model."""
        made = [onnx.ValueInfoProto(name=name, type=self.types[name]) for name in outputs]
        constants = [numpy_helper.from_array(array, name) for name, array in self.constants.items()]
        graph = helper.make_graph(self.nodes, "graph", self.inputs, made, constants)
        model = helper.make_model(graph, opset_imports=self._schemas, ir_version=8)
        onnx.checker.check_model(model)
        return model

    # Layers.

    def conv(
        self,
        data: str,
        filters: int,
        kernel: int = 3,
        stride: int = 1,
        group: int = 1,
        *,
        bias: bool = True,
        gain: float = 1.0,
    ) -> str:
        """A convolution with half padding, whose result has about `gain` times the scale of its data."""
        channels = self.shape(data)[1] // group
        weight = self.normal(filters, channels, kernel, kernel, scale=gain * (channels * kernel**2) ** -0.5)
        more = [self.normal(filters, scale=0.1)] if bias else []
        pads = [kernel // 2] * 4
        return self.node(
            "Conv", data, weight, *more, kernel_shape=[kernel] * 2, pads=pads, strides=[stride] * 2, group=group
        )

    def norm(self, data: str) -> str:
        """A BatchNormalization."""
        count = self.shape(data)[1]
        vectors = [
            self.constant(self.random.uniform(low, high, count).astype(np.float32))
            for low, high in ((0.8, 1.2), (-0.2, 0.2), (-0.2, 0.2), (0.6, 1.4))
        ]
        return self.node("BatchNormalization", data, *vectors)

    def dense(self, data: str, features: int) -> str:
        """A Gemm of a matrix."""
        width = self.shape(data)[1]
        return self.node(
            "Gemm", data, self.normal(features, width, scale=width**-0.5), self.normal(features, scale=0.1), transB=1
        )

    def linear(self, data: str, features: int) -> str:
        """MatMul and Add over the last axis."""
        width = self.shape(data)[-1]
        product = self.node("MatMul", data, self.normal(width, features, scale=width**-0.5))
        return self.node("Add", product, self.normal(features, scale=0.1))
