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
# Operators that no runtime knows at version 1.
_FIRST_VERSION = {"BROADCAST_TO": 2}


@dataclass(frozen=True, slots=True)
class Quantization:
    """real = scale x (stored - zero point); one pair, or one for each index of `axis`."""

    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """One tensor of the file; `data` is None when it is computed at run time."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    data: Array | None = None
    quantization: Quantization | None = None
    bounded: bool = False
    """Whether run-time data decide the length of the first axis; the shape then has the largest."""

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)


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

    def constant(self, name: str, array: Array, quantization: Quantization | None = None) -> str:
        """Add a constant under a free name like `name`, which is returned; the same array is used again."""
        free, number = name, 1
        while (known := self.tensors.get(free)) is not None and known.data is not array:
            free, number = f"{name};{number}", number + 1
        self.tensors[free] = Tensor(free, array.shape, str(array.dtype), array, quantization)
        return free

    def temporary(
        self, name: str, shape: tuple[int, ...], dtype: str = "float32", quantization: Quantization | None = None
    ) -> str:
        """Add a tensor that is computed at run time under a free name like `name`; returns that name."""
        free, number = name, 1
        while free in self.tensors:
            free, number = f"{name};{number}", number + 1
        self.tensors[free] = Tensor(free, shape, dtype, None, quantization)
        return free

    def emit(
        self,
        operator: str,
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        options: object | None = None,
        version: int = 1,
    ) -> None:
        """Append an operator by its BuiltinOperator name; `version` is the oldest kernel version that can run it."""
        code = getattr(schema.BuiltinOperator, operator)
        if operator == "RESHAPE":
            inputs = (self._before_reshape(inputs[0]), *inputs[1:])
        self.operators.append(Operator(code, inputs, outputs, options, max(version, _FIRST_VERSION.get(operator, 1))))

    def _before_reshape(self, name: str) -> str:
        """What a RESHAPE that made this tensor read, else the tensor itself.

        LiteRT 2.3 lets RESHAPE share its input's memory but counts readers over one step only: after two in a row it
        computes other things in place of what is still to be read.
        """
        made = next((operator for operator in reversed(self.operators) if name in operator.outputs), None)
        return made.inputs[0] if made is not None and made.code == schema.BuiltinOperator.RESHAPE else name


def options_of(table: str, **fields: object) -> object:
    """An options table by its schema name without `Options`, with its fields set."""
    options: object = getattr(schema, f"{table}OptionsT")()
    for name, value in fields.items():
        if not hasattr(options, name):
            raise AttributeError(f"{table}Options has no field {name}")
        setattr(options, name, value)
    return options
