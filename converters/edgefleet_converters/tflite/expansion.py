"""One walk over a model's nodes: what is known before run time is computed, and bodies of functions are walked too.

Shapes, constants and function bodies depend on one another, so one pass finds all three; what is left are nodes
that have a rule of their own (or none at all), each with static types.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import numpy_helper

from edgefleet_converters.tflite.evaluation import RANDOM, Known, attribute, evaluate
from edgefleet_converters.tflite.functions import FunctionKey, find_body
from edgefleet_converters.tflite.graph import Array, Node, Value
from edgefleet_converters.tflite.inference import infer, type_of, value_of
from edgefleet_converters.tflite.sequences import SEQUENCES
from edgefleet_converters.tflite.unrolling import CONTROL, compose
from edgefleet_converters.tflite.walking import Scope

STANDARD_DOMAINS = ("", "ai.onnx")
_RESOLVED = {**CONTROL, **SEQUENCES}
_ALIGNING = ("Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "Pow", "Sub", "Xor")


@dataclass(slots=True)
class Expansion:
    """The graph while it is being walked, by whole-graph names.

    `ruled` are the operators that have a rule of their own; a node whose name is in `opened` is opened even so.
    `declared` are the types that the model gives its own values, for nodes that inference does not know.
    """

    ruled: Collection[str]
    opened: Collection[str]
    functions: Mapping[FunctionKey, onnx.FunctionProto]
    declared: Mapping[str, onnx.TypeProto]
    nodes: list[Node] = field(default_factory=list)
    types: dict[str, onnx.TypeProto] = field(default_factory=dict)
    known: dict[str, Known] = field(default_factory=dict)
    openable: set[str] = field(default_factory=set)
    sequences: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def know(self, name: str, value: Known) -> None:
        """Record a value that is known before run time."""
        self.known[name] = value
        if isinstance(value, np.ndarray):
            self.types[name] = type_of(value)

    def constant(self, wanted: str, value: Array) -> str:
        """Record a constant under a free name like `wanted`, which is returned."""
        name = self._fresh(wanted)
        self.know(name, value)
        return name

    def sequence(self, wanted: str, elements: Iterable[str]) -> str:
        """Record a sequence of tensors under a free name like `wanted`, which is returned."""
        name = self._fresh(wanted)
        self.sequences[name] = tuple(elements)
        return name

    def value(self, name: str) -> Value:
        """Name, dtype and static shape of a value."""
        return value_of(name, self.types.get(name))

    def run(self, nodes: Iterable[onnx.NodeProto], scope: Scope) -> None:
        """Walk nodes in order; their outputs are in `scope` afterwards."""
        for proto in nodes:
            self._step(proto, scope)

    def run_body(self, graph: onnx.GraphProto, scope: Scope, arguments: Sequence[str]) -> list[str]:
        """Walk a subgraph on whole-graph names `arguments`; returns the names of its outputs."""
        self.know_initializers(graph, scope)
        scope.names.update(zip((item.name for item in graph.input), arguments, strict=True))
        self.run(graph.node, scope)
        return [scope.names[item.name] for item in graph.output]

    def know_initializers(self, graph: onnx.GraphProto, scope: Scope) -> None:
        """Record a subgraph's own constants in its scope."""
        for tensor in graph.initializer:
            scope.names[tensor.name] = self.constant(scope.prefix + tensor.name, numpy_helper.to_array(tensor))

    def _step(self, proto: onnx.NodeProto, scope: Scope) -> None:
        inputs = [scope.names[name] if name else "" for name in proto.input]
        if proto.op_type in _ALIGNING and not proto.domain and scope.opsets.get("", 1) < 7:
            proto = self._aligned(proto, scope, inputs)
        if not (
            self._fold(proto, scope, inputs)
            or self._bypass(proto, scope, inputs)
            or self._resolve(proto, scope, inputs)
            or self._open(proto, scope, inputs)
        ):
            self._keep(proto, scope, inputs)

    def _aligned(self, proto: onnx.NodeProto, scope: Scope, inputs: list[str]) -> onnx.NodeProto:
        """A node that broadcasts along an `axis`, as before opset 7: the second operand gets the axes that it lacks."""
        axis, shapes = attribute(proto, "axis"), [self.value(name).shape for name in inputs]
        if axis is None or shapes[0] is None or shapes[1] is None or shapes[0] == shapes[1]:
            return proto
        first = axis.i % max(len(shapes[0]), 1) + len(shapes[1])
        missing = self.constant(
            f"{scope.prefix}axes", np.arange(len(shapes[1]), len(shapes[0]) - first + len(shapes[1]))
        )
        inputs[1] = compose(self, scope.prefix, "Unsqueeze", [inputs[1], missing])
        plain = onnx.NodeProto()
        plain.CopyFrom(proto)
        plain.attribute.remove(next(item for item in plain.attribute if item.name == "axis"))
        return plain

    def _fold(self, proto: onnx.NodeProto, scope: Scope, inputs: Sequence[str]) -> bool:
        """Compute a node from what is known; its outputs become known."""
        if proto.op_type in ("Shape", "Size") and not proto.domain:
            return self._fold_shape(proto, scope, inputs[0])
        if not all(name in self.known for name in inputs if name) or _has_subgraph(proto):
            return False
        if (proto.domain, proto.op_type, proto.overload) in self.functions:
            return False
        found = evaluate(proto, [self.known.get(name) for name in inputs], scope.opsets)
        if found is None:
            return False
        for local, value in found.items():
            self.know(self._define(local, scope), value)
        return True

    def _fold_shape(self, proto: onnx.NodeProto, scope: Scope, name: str) -> bool:
        shape = self.value(name).shape
        if shape is None:
            return False
        start, end = attribute(proto, "start"), attribute(proto, "end")
        part = shape[start.i if start is not None else 0 : end.i if end is not None else None]
        found = part if proto.op_type == "Shape" else math.prod(shape)
        self.know(self._define(proto.output[0], scope), np.array(found, np.int64))
        return True

    def _bypass(self, proto: onnx.NodeProto, scope: Scope, inputs: Sequence[str]) -> bool:
        """Identity, and Dropout outside training: the output is the input under another name."""
        if proto.domain or proto.op_type not in ("Identity", "Dropout", "CastLike", "Cast"):
            return False
        if (
            proto.op_type == "Dropout"
            and len(inputs) > 2
            and not (self._is_false(inputs[2]) or (inputs[1] and self._is_false(inputs[1])))
        ):
            return False
        if proto.op_type in ("Cast", "CastLike") and not self._keeps_type(proto, inputs):
            return False
        scope.names[proto.output[0]] = inputs[0]
        if len(proto.output) > 1 and proto.output[1]:
            shape = self.value(inputs[0]).shape
            if shape is None:
                return False
            mask: Array = np.ones(shape, np.bool_ if scope.opsets.get("", 1) >= 10 else np.float32)
            self.know(self._define(proto.output[1], scope), mask)
        return True

    def _is_false(self, name: str) -> bool:
        value = self.known.get(name)
        return not name or (isinstance(value, np.ndarray) and not value.any())

    def _keeps_type(self, proto: onnx.NodeProto, inputs: Sequence[str]) -> bool:
        target = attribute(proto, "to")
        source = self.types.get(inputs[0])
        if source is None:
            return False
        if target is not None:
            return bool(source.tensor_type.elem_type == target.i)
        like = self.types.get(inputs[1]) if len(inputs) > 1 else None
        return like is not None and bool(source.tensor_type.elem_type == like.tensor_type.elem_type)

    def _resolve(self, proto: onnx.NodeProto, scope: Scope, inputs: Sequence[str]) -> bool:
        """Control flow, sequences and optionals that are settled before run time."""
        rule = None if proto.domain else _RESOLVED.get(proto.op_type)
        before = len(self.nodes)
        found = rule(self, proto, scope, inputs) if rule is not None else None
        if found is None:
            del self.nodes[before:]
            return False
        scope.names.update((local, name) for local, name in zip(proto.output, found, strict=False) if local)
        return True

    def _open(self, proto: onnx.NodeProto, scope: Scope, inputs: Sequence[str]) -> bool:
        """Walk the body of a function in the node's place."""
        name = self._node_name(proto, scope)
        local = (proto.domain, proto.op_type, proto.overload) in self.functions
        if _operator(proto) in self.ruled and not local and name not in self.opened:
            self.openable.add(name)
            return False
        types = [self.types.get(item, onnx.TypeProto()) for item in inputs]
        body = find_body(proto, scope.opsets, types, self.functions)
        if body is None:
            return False
        opsets = {entry.domain: entry.version for entry in body.opset_import}
        inner = Scope({**scope.opsets, **opsets}, f"{scope.prefix}{proto.output[0]}/")
        formal = (*inputs, *[""] * (len(body.input) - len(inputs)))
        inner.names.update(zip(body.input, formal, strict=True))
        self.run(body.node, inner)
        for outer, own in zip(proto.output, body.output, strict=False):
            if outer:
                scope.names[outer] = inner.names[own]
        return True

    def _keep(self, proto: onnx.NodeProto, scope: Scope, inputs: Sequence[str]) -> None:
        """Keep a node; an output without elements has no value left to compute, so it is known."""
        read = [(local, name) for local, name in zip(proto.input, inputs, strict=True) if name]
        types = {local: self.types[name] for local, name in read if name in self.types}
        arrays = {local: array for local, name in read if isinstance(array := self.known.get(name), np.ndarray)}
        inferred = infer(proto, types, arrays, scope.opsets)
        outputs = []
        for local in proto.output:
            outputs.append(self._define(local, scope) if local else "")
            described = [inferred.get(local), None if scope.prefix else self.declared.get(local)]
            static = [item for item in described if value_of(local, item).shape is not None]
            if local and static:
                self.types[outputs[-1]] = static[0] or onnx.TypeProto()
                self.know_if_empty(outputs[-1])
        if all(name in self.known for name in outputs if name) and proto.op_type not in RANDOM:
            return
        self.nodes.append(
            Node(
                name=self._node_name(proto, scope),
                operator=_operator(proto),
                inputs=tuple(inputs),
                outputs=tuple(outputs),
                attributes={item.name: _attribute(item) for item in proto.attribute},
                opset=scope.opsets.get(proto.domain, scope.opsets.get("", 1)),
            )
        )

    def know_if_empty(self, name: str) -> None:
        """A tensor without elements is known whatever computes it."""
        value = self.value(name)
        if value.shape is not None and math.prod(value.shape) == 0 and value.dtype not in ("unknown", "object"):
            self.know(name, np.zeros(value.shape, np.dtype(value.dtype)))

    def _define(self, local: str, scope: Scope) -> str:
        scope.names[local] = self._fresh(scope.prefix + local)
        return scope.names[local]

    def _fresh(self, wanted: str) -> str:
        """A name that no value has; it is taken from now on."""
        free, number = wanted, 1
        while free in self.types or free in self.known:
            free, number = f"{wanted};{number}", number + 1
        self.types[free] = onnx.TypeProto()
        return free

    def _node_name(self, proto: onnx.NodeProto, scope: Scope) -> str:
        return scope.prefix + (proto.name or f"{proto.op_type}_{len(self.nodes)}")


def _operator(proto: onnx.NodeProto) -> str:
    return proto.op_type if proto.domain in STANDARD_DOMAINS else f"{proto.domain}.{proto.op_type}"


def _has_subgraph(proto: onnx.NodeProto) -> bool:
    return any(item.HasField("g") or item.graphs for item in proto.attribute)


def _attribute(item: onnx.AttributeProto) -> object:
    found = onnx.helper.get_attribute_value(item)
    if isinstance(found, onnx.TensorProto):
        array: Array = numpy_helper.to_array(found)
        return array
    return found
