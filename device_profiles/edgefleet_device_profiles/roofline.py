"""The roofline: how fast a model can at best be on a device, from its peak rates (Williams et al., CACM 52(4), 2009).

No measurement and no efficiency: every time is the least that a CPU with exactly the profile's peaks can need, good for
ranking and for refusing what cannot keep a budget; a machine of a generic profile may well be faster. Launch costs,
caches and the kernels of one runtime are not in it, nor are accelerators.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from edgefleet_device_profiles.profile import Peak, Precision, Profile


class Bound(StrEnum):
    """What a layer waits for."""

    COMPUTE = "compute"
    """Its arithmetic takes longer than its bytes."""
    MEMORY = "memory"
    """Its bytes take longer than its arithmetic."""


class Arithmetic(StrEnum):
    """The type that a multiplication is done in, by its row of `Peak`."""

    INT8 = "int8"
    """Eight-bit integers, summed in 32."""
    FP16 = "fp16"
    """Half precision."""
    FP32 = "fp32"
    """Single precision."""


@dataclass(frozen=True, slots=True)
class LayerWork:
    """What one layer computes and touches, once per inference.

    `operations` count a multiply-accumulate as two. `weights` and `activations` are numbers of floats read and
    written, which a precision stores in fewer bits; the fixed bytes (biases, token numbers, masks) it leaves alone.
    """

    operations: int
    weights: int
    activations: int
    fixed_weight_bytes: int = 0
    fixed_activation_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Widths:
    """Bits that one weight and one activation take."""

    weight_bits: int
    activation_bits: int

    def weight_bytes(self, floats: int, fixed_bytes: int) -> int:
        """Bytes of so many weights, rounded up, and of what does not shrink."""
        return -(-floats * self.weight_bits // 8) + fixed_bytes

    def activation_bytes(self, floats: int, fixed_bytes: int) -> int:
        """Bytes of so many activations and of what does not shrink."""
        return floats * self.activation_bits // 8 + fixed_bytes


@dataclass(frozen=True, slots=True)
class Prediction:
    """One layer: seconds, what they are spent on, and operations per byte."""

    time_s: float
    bound: Bound
    intensity: float


@dataclass(frozen=True, slots=True)
class ModelPrediction:
    """All layers, one after another; `reason` says at which rates."""

    layers: tuple[Prediction, ...]
    reason: str

    @property
    def time_s(self) -> float:
        """Seconds in all."""
        return sum(layer.time_s for layer in self.layers)

    @property
    def bound(self) -> Bound:
        """What most of the time is spent on."""
        computing = sum(layer.time_s for layer in self.layers if layer.bound is Bound.COMPUTE)
        return Bound.COMPUTE if computing * 2 > self.time_s else Bound.MEMORY


@dataclass(frozen=True, slots=True)
class _Form:
    """A precision: bits of a weight, bits of an activation (None: those of the arithmetic), and its arithmetic."""

    weight_bits: int
    activation_bits: int | None
    weighted: Arithmetic
    """For layers that have weights."""
    rest: Arithmetic
    """For the others."""


FORMS: Mapping[Precision, _Form] = MappingProxyType(
    {
        Precision.FP32: _Form(32, None, Arithmetic.FP32, Arithmetic.FP32),
        # Stored in 16 bits; runtimes also compute in them where the processor can, and a bound allows for that.
        Precision.FP16: _Form(16, None, Arithmetic.FP16, Arithmetic.FP16),
        Precision.INT8: _Form(8, 8, Arithmetic.INT8, Arithmetic.INT8),
        Precision.INT8_DYNAMIC: _Form(8, 32, Arithmetic.INT8, Arithmetic.FP32),
        Precision.INT8_WEIGHTS: _Form(8, 32, Arithmetic.FP32, Arithmetic.FP32),
        Precision.INT4_WEIGHTS: _Form(4, 32, Arithmetic.INT8, Arithmetic.FP32),
        Precision.INT16X8: _Form(8, 16, Arithmetic.FP32, Arithmetic.FP32),
    }
)
"""What a precision does to bytes and arithmetic."""

_BITS: Mapping[Arithmetic, int] = MappingProxyType({Arithmetic.INT8: 8, Arithmetic.FP16: 16, Arithmetic.FP32: 32})


def widths(profile: Profile, precision: Precision) -> Widths:
    """Bits in which a device keeps weights and activations of a precision."""
    form = FORMS[precision]
    used, _ = _rate(profile.peak, form.weighted)
    return Widths(form.weight_bits, form.activation_bits or _BITS[used])


def predict(
    layers: Iterable[LayerWork], profile: Profile, precision: Precision, threads: int | None = None
) -> ModelPrediction | None:
    """Least time of the layers, or None where the profile states no peak.

    `threads` (the profile's own default where None) of all cores share in the arithmetic; one can already fill the
    memory's bandwidth. A peak that is not stated counts as that of the next wider type.
    """
    peak = profile.peak
    if peak is None:
        return None
    form, bits = FORMS[precision], widths(profile, precision)
    busy = min(threads or profile.defaults.threads, profile.cpu.cores)
    share = busy / profile.cpu.cores
    used, weighted_gops = _rate(peak, form.weighted)
    _, rest_gops = _rate(peak, form.rest)
    found = tuple(
        _predicted(work, bits, (weighted_gops if work.weights else rest_gops) * share * 1e9, peak.bandwidth_gb_s * 1e9)
        for work in layers
    )
    reason = f"{used} at {weighted_gops * share:.4g} Gop/s ({busy} of {profile.cpu.cores} cores)"
    if used is not form.weighted:
        reason = f"no {form.weighted} peak is stated: {reason}"
    return ModelPrediction(found, f"{reason}, {peak.bandwidth_gb_s:.4g} GB/s")


def _rate(peak: Peak | None, wanted: Arithmetic) -> tuple[Arithmetic, float]:
    """The arithmetic that is used, and its 10⁹ operations/s on all cores."""
    if peak is None:
        return Arithmetic.FP32, 0.0
    stated = {Arithmetic.INT8: peak.int8_gops, Arithmetic.FP16: peak.fp16_gops}
    for arithmetic, gops in stated.items():
        if gops is not None and _BITS[arithmetic] >= _BITS[wanted]:
            return arithmetic, gops
    return Arithmetic.FP32, peak.fp32_gops


def _predicted(work: LayerWork, bits: Widths, operations_per_s: float, bytes_per_s: float) -> Prediction:
    moved = bits.weight_bytes(work.weights, work.fixed_weight_bytes)
    moved += bits.activation_bytes(work.activations, work.fixed_activation_bytes)
    computing_s, moving_s = work.operations / operations_per_s, moved / bytes_per_s
    bound = Bound.COMPUTE if computing_s > moving_s else Bound.MEMORY
    return Prediction(max(computing_s, moving_s), bound, work.operations / moved if moved else 0.0)
