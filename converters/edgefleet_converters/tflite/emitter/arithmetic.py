"""Emitter methods that compute elementwise: operands broadcast as in numpy.

A type that the kernel lacks is computed in a wider one where that is exact, and refused otherwise.
"""

from __future__ import annotations

import numpy as np

from edgefleet_converters.tflite.emitter.core import Core, Operand
from edgefleet_converters.tflite.file import FUSED, Tensor, options_of
from edgefleet_converters.tflite.graph import Activation, NotLowerableError
from edgefleet_converters.tflite.kernels import working_dtype


class Arithmetic(Core):
    """Unary, binary and comparing operators, and the choice between two values."""

    def unary(self, operator: str, value: Tensor, options: object | None = None) -> Tensor:
        """Any operator of one operand that keeps its shape and type."""
        working = working_dtype(operator, value.dtype)
        cast = self.cast(value, working)
        return self.cast(self.call(operator, [cast], cast.shape, working, options), value.dtype)

    def binary(self, operator: str, left: Operand, right: Operand, options: object | None, result: str = "") -> Tensor:
        """Any operator of two operands that broadcast; `result` is its type, if not the operands'."""
        a, b = self.operands(left, right)
        if a.dtype != b.dtype:
            raise NotLowerableError(f"{operator} of {a.dtype} and {b.dtype}")
        working = working_dtype(operator, a.dtype)
        inputs = [self.cast(a, working), self.cast(b, working)]
        made = self.call(operator, inputs, broadcast(a, b), result or working, options)
        return self.cast(made, result or a.dtype)

    # Two operands of one type.

    def add(self, left: Operand, right: Operand, activation: Activation = Activation.NONE) -> Tensor:
        """Sum; integers wrap around."""
        return self.binary("ADD", left, right, options_of("Add", fusedActivationFunction=FUSED[activation]))

    def sub(self, left: Operand, right: Operand, activation: Activation = Activation.NONE) -> Tensor:
        """Difference; integers wrap around."""
        return self.binary("SUB", left, right, options_of("Sub", fusedActivationFunction=FUSED[activation]))

    def mul(self, left: Operand, right: Operand, activation: Activation = Activation.NONE) -> Tensor:
        """Product; integers wrap around."""
        return self.binary("MUL", left, right, options_of("Mul", fusedActivationFunction=FUSED[activation]))

    def div(self, left: Operand, right: Operand, activation: Activation = Activation.NONE) -> Tensor:
        """Quotient; integers truncate, and a constant 0 among integer divisors is refused."""
        self._require_no_zero(right)
        return self.binary("DIV", left, right, options_of("Div", fusedActivationFunction=FUSED[activation]))

    def floor_div(self, left: Operand, right: Operand) -> Tensor:
        """Quotient rounded down."""
        self._require_no_zero(right)
        return self.binary("FLOOR_DIV", left, right, options_of("FloorDiv"))

    def floor_mod(self, left: Operand, right: Operand) -> Tensor:
        """Remainder with the divisor's sign."""
        self._require_no_zero(right)
        return self.binary("FLOOR_MOD", left, right, options_of("FloorMod"))

    def minimum(self, left: Operand, right: Operand) -> Tensor:
        """The smaller one."""
        return self.binary("MINIMUM", left, right, options_of("MaximumMinimum"))

    def maximum(self, left: Operand, right: Operand) -> Tensor:
        """The larger one."""
        return self.binary("MAXIMUM", left, right, options_of("MaximumMinimum"))

    def pow(self, left: Operand, right: Operand) -> Tensor:
        """Power, float32 or int32; both operands have one type."""
        return self.binary("POW", left, right, options_of("Pow"))

    def squared_difference(self, left: Operand, right: Operand) -> Tensor:
        """(left - right) squared."""
        return self.binary("SQUARED_DIFFERENCE", left, right, options_of("SquaredDifference"))

    def bitwise_xor(self, left: Operand, right: Operand) -> Tensor:
        """Exclusive or of the bits; no 64-bit types."""
        return self.binary("BITWISE_XOR", left, right, options_of("BitwiseXor"))

    def right_shift(self, left: Operand, right: Operand) -> Tensor:
        """Shift right; arithmetic for signed types."""
        return self.binary("RIGHT_SHIFT", left, right, options_of("RightShift"))

    def _require_no_zero(self, divisor: Operand) -> None:
        data = divisor.data if isinstance(divisor, Tensor) else np.asarray(divisor)
        if data is not None and data.dtype.kind in "iu" and not data.all():
            raise NotLowerableError("an integer division by 0")

    # Comparisons and logic: bool results.

    def equal(self, left: Operand, right: Operand) -> Tensor:
        """Whether equal; NaN equals nothing."""
        return self.binary("EQUAL", left, right, options_of("Equal"), "bool")

    def not_equal(self, left: Operand, right: Operand) -> Tensor:
        """Whether different; NaN differs from everything."""
        return self.binary("NOT_EQUAL", left, right, options_of("NotEqual"), "bool")

    def less(self, left: Operand, right: Operand) -> Tensor:
        """Left < right."""
        return self.binary("LESS", left, right, options_of("Less"), "bool")

    def less_equal(self, left: Operand, right: Operand) -> Tensor:
        """Left <= right."""
        return self.binary("LESS_EQUAL", left, right, options_of("LessEqual"), "bool")

    def greater(self, left: Operand, right: Operand) -> Tensor:
        """Left > right."""
        return self.binary("GREATER", left, right, options_of("Greater"), "bool")

    def greater_equal(self, left: Operand, right: Operand) -> Tensor:
        """Left >= right."""
        return self.binary("GREATER_EQUAL", left, right, options_of("GreaterEqual"), "bool")

    def logical_and(self, left: Operand, right: Operand) -> Tensor:
        """And of two bools."""
        return self.binary("LOGICAL_AND", left, right, options_of("LogicalAnd"), "bool")

    def logical_or(self, left: Operand, right: Operand) -> Tensor:
        """Or of two bools."""
        return self.binary("LOGICAL_OR", left, right, options_of("LogicalOr"), "bool")

    def logical_not(self, value: Tensor) -> Tensor:
        """Not of a bool."""
        return self.unary("LOGICAL_NOT", value, options_of("LogicalNot"))

    def select(self, condition: Operand, chosen: Operand, other: Operand) -> Tensor:
        """`chosen` where the bool condition holds, else `other`; all three broadcast."""
        asked = self.operand(condition, "bool")
        a, b = self.operands(chosen, other)
        if a.dtype != b.dtype:
            raise NotLowerableError(f"a choice between {a.dtype} and {b.dtype}")
        shape = np.broadcast_shapes(asked.shape, a.shape, b.shape)
        working = working_dtype("SELECT_V2", a.dtype)
        inputs = [asked, self.cast(a, working), self.cast(b, working)]
        made = self.call("SELECT_V2", inputs, shape, working, options_of("SelectV2"), kernel=working)
        return self.cast(made, a.dtype)

    # One operand; all but abs, neg and sign are float32 only.

    def abs(self, value: Tensor) -> Tensor:
        """Magnitude."""
        if value.dtype == "int64":
            return self.maximum(value, self.neg(value))
        return self.unary("ABS", value, options_of("Abs"))

    def neg(self, value: Tensor) -> Tensor:
        """Negative."""
        return self.unary("NEG", value, options_of("Neg"))

    def sign(self, value: Tensor) -> Tensor:
        """-1, 0 or 1."""
        return self.unary("SIGN", value, options_of("Sign"))

    def exp(self, value: Tensor) -> Tensor:
        """E to the power."""
        return self.unary("EXP", value, options_of("Exp"))

    def log(self, value: Tensor) -> Tensor:
        """Natural logarithm."""
        return self.unary("LOG", value)

    def sqrt(self, value: Tensor) -> Tensor:
        """Square root."""
        return self.unary("SQRT", value)

    def rsqrt(self, value: Tensor) -> Tensor:
        """1 / square root."""
        return self.unary("RSQRT", value)

    def square(self, value: Tensor) -> Tensor:
        """Value x value."""
        return self.unary("SQUARE", value, options_of("Square")) if value.dtype == "float32" else self.mul(value, value)

    def sin(self, value: Tensor) -> Tensor:
        """Sine."""
        return self.unary("SIN", value)

    def cos(self, value: Tensor) -> Tensor:
        """Cosine."""
        return self.unary("COS", value, options_of("Cos"))

    def floor(self, value: Tensor) -> Tensor:
        """Rounded down."""
        return self.unary("FLOOR", value)

    def ceil(self, value: Tensor) -> Tensor:
        """Rounded up."""
        return self.unary("CEIL", value)

    def round(self, value: Tensor) -> Tensor:
        """Rounded to nearest, half to even."""
        return self.unary("ROUND", value)

    def sigmoid(self, value: Tensor) -> Tensor:
        """1 / (1 + exp(-value))."""
        return self.unary("LOGISTIC", value)

    def tanh(self, value: Tensor) -> Tensor:
        """Hyperbolic tangent."""
        return self.unary("TANH", value)

    def relu(self, value: Tensor) -> Tensor:
        """max(value, 0), of any type that has a maximum."""
        return self.unary("RELU", value) if value.dtype == "float32" else self.maximum(value, 0)

    def relu6(self, value: Tensor) -> Tensor:
        """min(max(value, 0), 6), float32."""
        return self.unary("RELU6", value)

    def leaky_relu(self, value: Tensor, alpha: float) -> Tensor:
        """value, times alpha where negative."""
        return self.unary("LEAKY_RELU", value, options_of("LeakyRelu", alpha=alpha))


def broadcast(left: Tensor, right: Tensor) -> tuple[int, ...]:
    """Shape of an elementwise result; raises NotLowerableError when the operands do not broadcast."""
    try:
        return np.broadcast_shapes(left.shape, right.shape)
    except ValueError as error:
        raise NotLowerableError(f"operands {left.shape} and {right.shape} do not broadcast") from error
