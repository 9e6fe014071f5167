"""What a .tflite file holds, read from its own bytes: operators, fused activations, types of inputs and outputs.

Does not run the file, and copies none of its weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from edgefleet_converters.tflite import LoweredTensor
from edgefleet_converters.tflite.delegation import outside_xnnpack
from edgefleet_converters.tflite.runtime_versions import min_runtime_version

_OPERATORS = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
_TYPES = {code: name.lower() for name, code in vars(schema.TensorType).items() if isinstance(code, int)}
_OPTIONS = {code: name for name, code in vars(schema.BuiltinOptions).items() if isinstance(code, int)}
# Codes from here on are in the longer field of the two that the format has.
_FIRST_LONG_CODE = 127


@dataclass(frozen=True, slots=True)
class Border:
    """One input or output as the file has it, and the permutation that leads there from the source's layout.

    `bounded`: the data decide the length of its first axis, and `shape` has the largest that it can be.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    permutation: tuple[int, ...] | None
    scale: float | None
    zero_point: int | None
    bounded: bool = False


@dataclass(frozen=True, slots=True)
class FileFacts:
    """Operators by name with their counts, how many have an activation fused in, and the borders."""

    operators: Mapping[str, int]
    fused: int
    min_runtime: str
    """Oldest TensorFlow Lite release that can run the file."""
    outside: Mapping[str, int]
    """Operators that XNNPACK does not take, by the table of what it usually does."""
    inputs: tuple[Border, ...]
    outputs: tuple[Border, ...]

    @property
    def transposes(self) -> int:
        """How many operators only move data to another layout."""
        return self.operators.get("TRANSPOSE", 0)


def read_facts(content: bytes, inputs: tuple[LoweredTensor, ...], outputs: tuple[LoweredTensor, ...]) -> FileFacts:
    """Facts of a file with one graph and one signature, whose names are those of `inputs` and `outputs`."""
    model = schema.Model.GetRootAs(content)
    graph, signature = model.Subgraphs(0), model.SignatureDefs(0)
    codes = [model.OperatorCodes(at) for at in range(model.OperatorCodesLength())]
    names = [_OPERATORS[max(code.DeprecatedBuiltinCode(), code.BuiltinCode())] for code in codes]
    found = [graph.Operators(at) for at in range(graph.OperatorsLength())]
    entries = {_text(item.Name()): item.TensorIndex() for item in _each(signature, "Inputs")}
    exits = {_text(item.Name()): item.TensorIndex() for item in _each(signature, "Outputs")}
    return FileFacts(
        operators=dict(Counter(names[operator.OpcodeIndex()] for operator in found).most_common()),
        fused=sum(_is_fused(operator) for operator in found),
        min_runtime=min_runtime_version(content),
        outside=dict(Counter(outside_xnnpack(content)).most_common()),
        inputs=tuple(_border(graph.Tensors(entries[item.name]), item) for item in inputs),
        outputs=tuple(_border(graph.Tensors(exits[item.name]), item) for item in outputs),
    )


def _each(table: Any, field: str) -> Iterator[Any]:
    return (getattr(table, field)(at) for at in range(getattr(table, f"{field}Length")()))


def _text(name: bytes) -> str:
    return name.decode()


def _is_fused(operator: Any) -> bool:
    kind = operator.BuiltinOptionsType()
    stored = operator.BuiltinOptions()
    if not kind or stored is None:
        return False
    options = getattr(schema, _OPTIONS[kind])()
    options.Init(stored.Bytes, stored.Pos)
    activation = getattr(options, "FusedActivationFunction", None)
    return activation is not None and activation() != schema.ActivationFunctionType.NONE


def _border(tensor: Any, source: LoweredTensor) -> Border:
    quantization = tensor.Quantization()
    quantized = quantization is not None and quantization.ScaleLength() > 0
    return Border(
        name=source.name,
        dtype=_TYPES[tensor.Type()],
        shape=tuple(tensor.Shape(at) for at in range(tensor.ShapeLength())),
        permutation=source.permutation,
        scale=quantization.Scale(0) if quantized else None,
        zero_point=quantization.ZeroPoint(0) if quantized else None,
        bounded=source.bounded,
    )
