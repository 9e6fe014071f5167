"""The ladder: how a planned variant is tried, and how it is tried again when the gate refuses it.

Pure: it knows what was tried and found, and runs nothing. The lowest rungs, fp16 and fp32, are no attempts: `plan` has
them as variants of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from edgefleet_converters.gate import Status
from edgefleet_converters.plan import PlannedVariant
from edgefleet_converters.sensitivity import LayerNoise, Sensitivity
from edgefleet_converters.step import Ranges, Settings
from edgefleet_device_profiles.profile import Precision, Runtime

AT_ONCE: Mapping[Runtime, tuple[Ranges, ...]] = MappingProxyType(
    {
        Runtime.LITERT: (Ranges.MINMAX,),
        # Neither is better: +7 to +11 dB on two models, nothing on a third.
        Runtime.OPENVINO: (Ranges.MINMAX, Ranges.MEAN),
        Runtime.ONNXRUNTIME: (Ranges.MINMAX,),
    }
)
"""Runtime → the ranges that int8 is tried with before anything is known; others are not on the ladder."""

NEXT: Mapping[Runtime, tuple[Ranges, ...]] = MappingProxyType(
    {
        Runtime.LITERT: (Ranges.PERCENTILE, Ranges.MSE),
        Runtime.ONNXRUNTIME: (Ranges.PERCENTILE,),
    }
)
"""Runtime → the ranges that it is tried with after those have failed."""

MOST_FLOAT_MACS = 0.3
"""Share of a model's multiply-accumulates that may stay in float: with more, fp16 is as good."""

GROWTH: tuple[int | None, ...] = (1, 4, None)
"""How many of the layers that cost most stay in float, from rung to rung; None: as many as may."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way to make a planned variant."""

    settings: Settings
    why: str

    @property
    def label(self) -> str:
        """What is special about it, as part of a folder's name."""
        floats = f"-mixed{len(self.settings.float_tensors)}" if self.settings.float_tensors else ""
        return f"{self.settings.ranges}{floats}"


@dataclass(frozen=True, slots=True)
class Tried:
    """An attempt and what became of it; `loss` is None when it could not be made or run."""

    attempt: Attempt
    status: Status
    loss: float | None
    """What it lost of the metric against the fp32 source; less is better."""
    sqnr_db: float | None
    """Of the worst slice; None where nothing differs, or where nothing was measured."""
    size_bytes: int


def first_attempts(planned: PlannedVariant) -> tuple[Attempt, ...]:
    """What is tried at once: the better one is kept."""
    ranges = AT_ONCE.get(planned.runtime, ()) if planned.precision is Precision.INT8 else ()
    if not ranges:
        return (Attempt(planned.settings, "as the profiles want it"),)
    return tuple(_with_ranges(planned, one, f"{one} ranges") for one in ranges)


def next_attempts(planned: PlannedVariant, tried: Sequence[Tried], culprits: Sensitivity | None) -> tuple[Attempt, ...]:
    """What is tried after all that failed; none where something may ship, or the ladder has no more rungs.

    `culprits` may be None until `wants_culprits` says that only they lead further.
    """
    if not tried or _has_shipped(tried):
        return ()
    done = {one.attempt.settings for one in tried}
    found = [one for one in _range_attempts(planned) if one.settings not in done]
    if found or culprits is None:
        return tuple(found)
    return tuple([one for one in _mixed_attempts(planned, tried, culprits) if one.settings not in done][:1])


def wants_culprits(planned: PlannedVariant, tried: Sequence[Tried]) -> bool:
    """Whether the next rung is mixed precision, which needs to know the layers that cost the accuracy."""
    if not tried or _has_shipped(tried) or planned.precision is not Precision.INT8 or planned.runtime not in AT_ONCE:
        return False
    # A microcontroller computes in integers throughout.
    if planned.settings.micro:
        return False
    return not next_attempts(planned, tried, None)


def best(tried: Sequence[Tried]) -> Tried:
    """The better one: passed before unproven before failed, then the metric, the worst slice, and size."""
    return min(tried, key=_rank)


def explain(planned: PlannedVariant, tried: Sequence[Tried], culprits: Sensitivity | None) -> str:
    """One line on the climb: what was tried, what costs the accuracy, and what stands in for a variant that failed."""
    kept = best(tried)
    parts = [f"{len(tried)} attempts, {kept.attempt.why} kept"] if len(tried) > 1 else []
    if culprits is not None:
        parts += [conflict.text for conflict in culprits.conflicts]
        parts += [_blame(culprits)] if _suspects(culprits) else []
    if kept.status is Status.FAILED and planned.precision is Precision.INT8:
        parts.append(f"the float variants of {planned.runtime} stand in for it")
    return "; ".join(parts)


def _has_shipped(tried: Sequence[Tried]) -> bool:
    return any(one.status is not Status.FAILED for one in tried)


def _rank(one: Tried) -> tuple[int, float, float, int]:
    status = tuple(Status).index(one.status)
    if one.loss is None:
        return status, float("inf"), float("inf"), one.size_bytes
    return status, one.loss, float("-inf") if one.sqnr_db is None else -one.sqnr_db, one.size_bytes


def _with_ranges(planned: PlannedVariant, ranges: Ranges, why: str) -> Attempt:
    return Attempt(planned.settings.model_copy(update={"ranges": ranges}), why)


def _range_attempts(planned: PlannedVariant) -> Iterator[Attempt]:
    if planned.precision is not Precision.INT8:
        return
    for ranges in NEXT.get(planned.runtime, ()):
        yield _with_ranges(planned, ranges, f"{ranges} ranges, after {AT_ONCE[planned.runtime][-1]} failed")


def _mixed_attempts(planned: PlannedVariant, tried: Sequence[Tried], culprits: Sensitivity) -> Iterator[Attempt]:
    """Ever more layers in float, with the ranges that did best without."""
    if planned.precision is not Precision.INT8 or planned.runtime not in AT_ONCE or planned.settings.micro:
        return
    plain = best([one for one in tried if one.attempt.settings.float_tensors == planned.settings.float_tensors])
    before: tuple[str, ...] = planned.settings.float_tensors
    for tensors, why in _float_sets(culprits, before):
        if len(tensors) > len(before):
            before = tensors
            share = f"{culprits.macs_share(tensors):.0%} of the multiply-accumulates in float"
            yield Attempt(plain.attempt.settings.model_copy(update={"float_tensors": tensors}), f"{why} ({share})")


def _float_sets(culprits: Sensitivity, before: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Sets of tensors, each with the ones before it, and why; conflicting branches first, for they cost nothing."""
    base = tuple(dict.fromkeys((*before, *(name for one in culprits.conflicts for name in one.float_tensors))))
    if culprits.conflicts:
        yield base, "; ".join(f"{one.text}: kept in float" for one in culprits.conflicts)
    for most in GROWTH:
        tensors, blamed = base, list[str]()
        for layer in _suspects(culprits):
            more = tuple(dict.fromkeys((*tensors, *layer.float_tensors)))
            if len(blamed) == most:
                break
            if len(more) > len(tensors) and culprits.macs_share(more) <= MOST_FLOAT_MACS:
                tensors = more
                blamed.append(layer.tensor)
        yield tensors, f"mixed precision, {_named(blamed)} kept in float"


def _suspects(culprits: Sensitivity) -> list[LayerNoise]:
    return [layer for layer in culprits.layers if layer.sqnr_db is not None]


def _blame(culprits: Sensitivity) -> str:
    worst = [f"{layer.tensor!r} ({layer.operator}, {layer.sqnr_db:.1f} dB alone)" for layer in _suspects(culprits)[:3]]
    return f"the accuracy goes in {', '.join(worst)}"


def _named(tensors: Sequence[str]) -> str:
    shown = ", ".join(f"{name!r}" for name in tensors[:3])
    return shown if len(tensors) <= 3 else f"{shown} and {len(tensors) - 3} more"
