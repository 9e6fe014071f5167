"""Trigonometric and hyperbolic functions and their inverses, and erf; float32 only.

TFLite has SIN, COS, TANH and ATAN2; the others are their textbook identities.
"""

from __future__ import annotations

import math

import numpy as np

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Tensor
from edgefleet_converters.tflite.operators.contract import Lowering
from edgefleet_converters.tflite.operators.elementwise import unary

_LN2 = math.log(2)
# From here on x² + 1 and x² - 1 are x² in float32.
_LARGE = 1e8


def _atan2(e: Emitter, y: Tensor, x: Tensor) -> Tensor:
    return e.call("ATAN2", [y, x], y.shape, y.dtype)


def _cathetus(e: Emitter, x: Tensor) -> Tensor:
    """sqrt(1 - x²), by factors so that nothing is lost near 1."""
    return e.sqrt(e.mul(e.sub(1.0, x), e.add(x, 1.0)))


def _halves(e: Emitter, x: Tensor) -> tuple[Tensor, Tensor]:
    """e^x / 2 and e^-x / 2, halved in the exponent so that they overflow no earlier than their sum does."""
    return e.exp(e.sub(x, _LN2)), e.exp(e.sub(e.neg(x), _LN2))


def _sinh(e: Emitter, x: Tensor) -> Tensor:
    return e.sub(*_halves(e, x))


def _cosh(e: Emitter, x: Tensor) -> Tensor:
    return e.add(*_halves(e, x))


def _log_of_sum(e: Emitter, x: Tensor, squared: Tensor) -> Tensor:
    """log(x + sqrt(squared)), which is log(2 x) where x is large and its square overflows."""
    return e.select(e.greater(x, _LARGE), e.add(e.log(x), _LN2), e.log(e.add(x, e.sqrt(squared))))


def _asinh(e: Emitter, x: Tensor) -> Tensor:
    """On the magnitude, as the sum of a negative number and its root would cancel."""
    size = e.abs(x)
    return e.mul(e.sign(x), _log_of_sum(e, size, e.add(e.mul(size, size), 1.0)))


def _acosh(e: Emitter, x: Tensor) -> Tensor:
    return _log_of_sum(e, x, e.mul(e.sub(x, 1.0), e.add(x, 1.0)))


def _atanh(e: Emitter, x: Tensor) -> Tensor:
    return e.mul(e.log(e.div(e.add(x, 1.0), e.sub(1.0, x))), 0.5)


def _atan(e: Emitter, x: Tensor) -> Tensor:
    return _atan2(e, x, e.constant(np.ones(x.shape, np.float32)))


def erf(e: Emitter, x: Tensor) -> Tensor:
    """Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: at most 1.5e-7 off."""
    size = e.abs(x)
    t = e.div(1.0, e.add(e.mul(size, 0.3275911), 1.0))
    sum_ = e.mul(t, 1.061405429)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        sum_ = e.mul(e.add(sum_, coefficient), t)
    return e.mul(e.sign(x), e.sub(1.0, e.mul(sum_, e.exp(e.neg(e.mul(size, size))))))


OPERATORS: dict[str, Lowering] = {
    "Acos": unary(lambda e, x: _atan2(e, _cathetus(e, x), x)),
    "Acosh": unary(_acosh),
    "Asin": unary(lambda e, x: _atan2(e, x, _cathetus(e, x))),
    "Asinh": unary(_asinh),
    "Atan": unary(_atan),
    "Atanh": unary(_atanh),
    "Cos": unary(lambda e, x: e.cos(x)),
    "Cosh": unary(_cosh),
    "Erf": unary(erf),
    "Sin": unary(lambda e, x: e.sin(x)),
    "Sinh": unary(_sinh),
    "Tan": unary(lambda e, x: e.div(e.sin(x), e.cos(x))),
}
