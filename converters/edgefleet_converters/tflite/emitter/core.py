"""The emitter's centre: the node's own inputs and outputs, operands, and the one place that appends operators.

Knows no TFLite operator but CAST and RESHAPE.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from edgefleet_converters.tflite.file import Draft, Tensor, options_of
from edgefleet_converters.tflite.graph import Array, Graph, Node, NotLowerableError
from edgefleet_converters.tflite.kernels import require_kernel

Operand = Tensor | Array | float | int | bool
"""What an emitter method takes: a tensor, an array, or a number that takes the other operand's type."""

# A float out of range is undefined behaviour when it is cast to these; to a signed type of 32 bits it is not.
_UNSIGNED = ("uint8", "uint16", "uint32")


@dataclass(slots=True)
class Core:
    """Access to one node, and the operators written for it so far."""

    node: Node
    graph: Graph
    draft: Draft
    _first: int = field(init=False)
    _moved: dict[str, Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._first = len(self.draft.operators)

    # The node's own tensors.

    def has(self, position: int) -> bool:
        """Whether the node has this input: an optional one may be absent."""
        return self.node.input(position) != ""

    def input(self, position: int) -> Tensor:
        """An input of the node, computed or constant; raises NotLowerableError when it is absent."""
        name = self.node.input(position)
        if not name:
            raise NotLowerableError(f"its input {position} is absent")
        return self._tensor(name)

    def inputs(self) -> list[Tensor]:
        """All inputs of the node that are there."""
        return [self._tensor(name) for name in self.node.inputs if name]

    def array(self, position: int, role: str) -> Array:
        """A constant input's value; raises NotLowerableError, naming its role, when it is computed."""
        return self.graph.constant(self.node.input(position), role)

    def wants(self, position: int) -> bool:
        """Whether the node has this output and somebody may read it."""
        return self.node.output(position) != ""

    def output(self, position: int = 0) -> Tensor:
        """Shape and dtype of an output of the node, as ONNX infers them."""
        return self.draft.tensors[self.node.outputs[position]]

    def _tensor(self, name: str) -> Tensor:
        if name not in self.draft.tensors:
            self.draft.constant(name, self.graph.constants[name])
        return self.draft.tensors[name]

    # Operands.

    def constant(self, array: Array | Sequence[float], dtype: str = "", role: str = "constant") -> Tensor:
        """A constant of the file; `role` becomes part of its name."""
        # Strided views stay views: the writer brings weights in order as it writes them.
        stored = np.asarray(array)
        stored = stored.astype(dtype, copy=False) if dtype else stored
        return self.draft.tensors[self.draft.constant(f"{self._stem()}/{role}", stored)]

    def integers(self, values: Sequence[int], role: str = "constant") -> Tensor:
        """An int32 vector, as TFLite's operators take axes, shapes and permutations."""
        return self.constant(np.array(values, np.int32).reshape(-1), role=role)

    def operand(self, value: Operand, dtype: str) -> Tensor:
        """A tensor as it is; an array as a constant; a number as a constant of `dtype` without axes."""
        if isinstance(value, Tensor):
            return value
        if isinstance(value, np.ndarray):
            return self.constant(value)
        return self.constant(np.asarray(value, np.dtype(dtype)), role="scalar")

    def operands(self, *values: Operand) -> list[Tensor]:
        """Operands of one operator; numbers take the type of the first tensor or array among them."""
        dtype = next((str(value.dtype) for value in values if isinstance(value, Tensor | np.ndarray)), "float32")
        return [self.operand(value, dtype) for value in values]

    def _stem(self) -> str:
        return next(name for name in self.node.outputs if name)

    # Writing.

    def call(
        self,
        operator: str,
        inputs: Sequence[Tensor | None],
        shape: Sequence[int],
        dtype: str,
        options: object | None = None,
        *,
        kernel: str = "",
        version: int = 1,
    ) -> Tensor:
        """Append an operator with one output; see `calls`."""
        return self.calls(operator, inputs, [(shape, dtype)], options, kernel=kernel, version=version)[0]

    def calls(
        self,
        operator: str,
        inputs: Sequence[Tensor | None],
        outputs: Sequence[tuple[Sequence[int], str]],
        options: object | None = None,
        *,
        kernel: str = "",
        version: int = 1,
    ) -> list[Tensor]:
        """Append an operator, after asking the kernel table; None is an optional input that is absent.

        `kernel` is the type that chooses the kernel, which is the first input's unless given; `version` the oldest
        version of the operator that has the form. Raises NotLowerableError for a type, a rank or a size (0) that the
        kernel does not do.
        """
        there = [tensor for tensor in inputs if tensor is not None]
        shapes = [*(tensor.shape for tensor in there), *(shape for shape, _ in outputs)]
        rank = max(len(shape) for shape in shapes)
        require_kernel(operator, kernel or there[0].dtype, rank)
        # The shape vector that makes a scalar is empty, and that is all right.
        scalar = operator == "RESHAPE" and not outputs[0][0]
        if any(math.prod(shape) == 0 for shape in (shapes[:1] if scalar else shapes)):
            raise NotLowerableError("a tensor without elements")
        made = [
            self.draft.temporary(f"{self._stem()}/{operator.lower()}", tuple(int(n) for n in shape), dtype)
            for shape, dtype in outputs
        ]
        names = tuple(self._moved.get(item.name, item).name if item is not None else "" for item in inputs)
        self.draft.emit(operator, names, tuple(made), options, version)
        return [self.draft.tensors[name] for name in made]

    def cast(self, value: Tensor, dtype: str) -> Tensor:
        """CAST to a type by its numpy name; nothing for a tensor of that type. Integers wrap around."""
        if value.dtype == dtype:
            return value
        if value.data is not None:
            with np.errstate(all="ignore"):
                return self.constant(value.data.astype(dtype), role="cast")
        if value.dtype.startswith("float") and dtype in _UNSIGNED:
            return self.cast(self.cast(value, "int64" if dtype == "uint32" else "int32"), dtype)
        require_kernel("CAST", dtype, value.rank)
        return self.call("CAST", [value], value.shape, dtype, options_of("Cast"))

    def reshape(self, value: Tensor, shape: Sequence[int]) -> Tensor:
        """RESHAPE; one size may be -1. Nothing for a tensor that has this shape."""
        sizes = [int(size) for size in shape]
        if -1 in sizes:
            known = math.prod(size for size in sizes if size != -1)
            sizes[sizes.index(-1)] = math.prod(value.shape) // known
        if tuple(sizes) == value.shape:
            return value
        if math.prod(sizes) != math.prod(value.shape):
            raise NotLowerableError(f"the elements of {value.shape} as {tuple(sizes)}")
        if value.data is not None:
            return self.constant(value.data.reshape(sizes), role="reshaped")
        return self._reshape(value, sizes)

    def _reshape(self, value: Tensor, sizes: Sequence[int]) -> Tensor:
        options = options_of("Reshape", newShape=list(sizes))
        return self.call("RESHAPE", [value, self.integers(sizes, "shape")], sizes, value.dtype, options)

    def into(self, output: str, value: Tensor) -> None:
        """Make `value` the node's output of that name; every output that is wanted must get one.

        What was written for this node is written to the output directly; anything else is copied there.
        """
        if not output:
            return
        target = self.draft.tensors[output]
        if (value.shape, value.dtype) != (target.shape, target.dtype):
            found = f"{value.dtype}{list(value.shape)} for {output!r}, which is {target.dtype}{list(target.shape)}"
            raise NotLowerableError(f"it computes {found}")
        if math.prod(target.shape) == 0:
            self._empty(target)
        elif not self._rename(value.name, target):
            value = self._moved.get(value.name, value)
            copied = self._reshape(value, value.shape)
            self._rename(copied.name, target)

    def _empty(self, target: Tensor) -> None:
        """A block of no elements out of a constant: the one form of an empty tensor that runs."""
        whole = self.constant(np.zeros([max(size, 1) for size in target.shape], np.dtype(target.dtype)), role="none")
        bounds = self.integers([0] * target.rank, "starts"), self.integers(target.shape, "sizes")
        self.draft.emit("SLICE", (whole.name, *(item.name for item in bounds)), (target.name,), options_of("Slice"))

    def _rename(self, name: str, target: Tensor) -> bool:
        """Let the operator of this node that computes `name` compute `target` instead, if there is one."""
        written = self.draft.operators[self._first :]
        if not any(name in operator.outputs for operator in written) or name in self.node.outputs:
            return False
        for position, operator in enumerate(written, self._first):
            self.draft.operators[position] = replace(
                operator,
                inputs=tuple(target.name if item == name else item for item in operator.inputs),
                outputs=tuple(target.name if item == name else item for item in operator.outputs),
            )
        self._moved[name] = target
        return True
