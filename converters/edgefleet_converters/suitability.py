"""Whether a precision suits a model at all: rules over what its layers cost, each with its reason.

Converts and measures nothing; what the rules let through is still scored and gated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from edgefleet.errors import UnsupportedError
from edgefleet_converters.analysis import Analysis
from edgefleet_device_profiles.profile import Precision, Runtime

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "DeformConv"})
MATRICES = frozenset({"Gemm", "MatMul"})
LEAST_SHARE = 0.5
"""Part of the multiply-accumulates, or of the parameters, that must lie where the precision helps."""


def require_suitable(runtime: Runtime, precision: Precision, analysis: Analysis) -> None:
    """Raise UnsupportedError, with the numbers, for a precision that cannot help this model."""
    rule = RULES.get((runtime, precision))
    reason = rule(analysis) if rule else ""
    if reason:
        raise UnsupportedError(f"converting to {runtime} {precision}", reason, "choose int8 or fp16 for this model")


def share_of_macs(analysis: Analysis, operators: frozenset[str]) -> float:
    """Part of a model's multiply-accumulates in layers with one of these operators, 0 to 1."""
    found = sum(layer.macs for layer in analysis.layers if operators & set(layer.operators))
    return found / analysis.macs if analysis.macs else 0.0


def share_of_parameters(analysis: Analysis, operators: frozenset[str]) -> float:
    """Part of a model's parameters in layers with one of these operators, 0 to 1."""
    found = sum(layer.parameters for layer in analysis.layers if operators & set(layer.operators))
    return found / analysis.parameters if analysis.parameters else 0.0


def _few_convolutions(analysis: Analysis) -> str:
    """ONNX Runtime's dynamic convolution is 8 to 35 times slower than float32, and left in float it gains nothing."""
    share = share_of_macs(analysis, CONVOLUTIONS)
    if analysis.macs and share <= 1 - LEAST_SHARE:
        return ""
    return f"it is for transformers, and {share:.0%} of this model's multiply-accumulates are in convolutions"


def _mostly_matrices(analysis: Analysis) -> str:
    """Only the weights of matrix products have a 4-bit kernel."""
    share = share_of_parameters(analysis, MATRICES)
    if share >= LEAST_SHARE:
        return ""
    return f"4 bits are for the weights of matrix products, which are {share:.0%} of this model's parameters"


RULES: Mapping[tuple[Runtime, Precision], Callable[[Analysis], str]] = MappingProxyType(
    {
        (Runtime.ONNXRUNTIME, Precision.INT8_DYNAMIC): _few_convolutions,
        (Runtime.ONNXRUNTIME, Precision.INT4_WEIGHTS): _mostly_matrices,
    }
)
"""(Runtime, precision) → why it does not suit a model, or nothing. A pair without a row suits any model."""
