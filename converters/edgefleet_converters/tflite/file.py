"""What a TFLite file will hold, gathered operator by operator: tensors with their data, and operators.

Knows TFLite's numbering and defaults, but not ONNX; `writer` turns it into bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ai_edge_litert import schema_py_generated as schema

from edgefleet_converters.tflite.graph import Activation, Array

FUSED = {
    Activation.NONE: schema.ActivationFunctionType.NONE,
    Activation.RELU: schema.ActivationFunctionType.RELU,
    Activation.RELU6: schema.ActivationFunctionType.RELU6,
}


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """One tensor of the file; `data` is None when it is computed at run time."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    data: Array | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Operator:
    """One TFLite operator; `code` is a BuiltinOperator, `options` its options table (or None)."""

    code: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    options: object | None
    version: int


@dataclass(slots=True)
class Draft:
    """The file while it is being written; names are unique."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    operators: list[Operator] = field(default_factory=list)

    def constant(self, name: str, array: Array) -> str:
        """Add a constant under a free name like `name`, which is returned; an equal one is used again."""
        free, number = name, 1
        while (known := self.tensors.get(free)) is not None and known.data is not array:
            free, number = f"{name};{number}", number + 1
        self.tensors[free] = Tensor(free, array.shape, str(array.dtype), array)
        return free

    def temporary(self, name: str, shape: tuple[int, ...], dtype: str = "float32") -> str:
        """Add a tensor that is computed at run time; returns its name."""
        self.tensors[name] = Tensor(name, shape, dtype)
        return name

    def emit(
        self, code: int, inputs: tuple[str, ...], output: str, options: object | None = None, version: int = 1
    ) -> None:
        """Append an operator with one output; `version` is the oldest kernel version that can run it."""
        self.operators.append(Operator(code, inputs, (output,), options, version))
