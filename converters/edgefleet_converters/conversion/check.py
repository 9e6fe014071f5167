"""The built-in check: is the file, as it will ship, what the source computes? Samples, tolerance and verdict.

Runs nothing itself: `comparison` does, in a child process, because a runtime may crash.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from pydantic import BaseModel

from edgefleet.errors import GateError, MissingExtraError
from edgefleet_converters import child
from edgefleet_converters.conversion.samples import InputLike, Samples
from edgefleet_converters.conversion.tensors import Array, TensorLayout, layouts, save_feeds
from edgefleet_converters.tflite import LoweredTensor
from edgefleet_device_profiles.profile import Precision

TIMEOUT_S = 600.0
RANDOM_SAMPLES = 3
GOLDEN_SAMPLES = 8
TOLERANCES: Mapping[Precision, float] = MappingProxyType({Precision.FP32: 1e-3, Precision.FP16: 5e-2})
"""Largest difference that may be written, as a share of the reference's largest value; others are only reported."""
# Differences below this are rounding, however small the reference.
_ROUNDING = 1e-5
# A share of fewer rows than these would refuse float16 for a single box in another's place.
_FEWEST_ROWS = 40
_HALF = 0.5


class CompareJob(BaseModel):
    """A source, a file, and samples in the source's layout, `RANDOM_SAMPLES` random ones first."""

    model: Path
    file: Path
    inputs: tuple[TensorLayout, ...]
    outputs: tuple[TensorLayout, ...]
    feeds: Path


class Difference(BaseModel):
    """One output over all samples: largest |d|, the reference's largest |value|, and what no number can say.

    With `rows`, its data decide how many rows it has, such as the boxes that NonMaxSuppression selects. It is compared
    as a set, because rounding may change the order: `largest` counts the rows in only one of the two, `reference` those
    in ONNX Runtime.
    """

    name: str
    rows: bool = False
    largest: float = 0.0
    reference: float = 0.0
    golden: float | None = None
    """Largest |d| on the person's own samples, where there are any."""
    unequal: str = ""
    constant: bool = False
    """Whether the source gives the same for every sample, so that agreement proves little."""

    def exceeds(self, tolerance: float) -> bool:
        """Whether this is more than rounding, at a tolerance relative to the reference's largest value, or its rows."""
        whole = max(self.reference, _FEWEST_ROWS) if self.rows else self.reference
        return bool(self.unequal) or self.largest > max(tolerance * whole, _ROUNDING)

    @property
    def text(self) -> str:
        """The difference in a few words."""
        own = "" if self.golden is None else f" ({self.golden:.3g} on the given samples)"
        weak = ", but the source gives the same for every sample" if self.constant else ""
        told = f"max |d| {self.largest:.3g} of {self.reference:.3g}"
        if self.rows:
            told = f"rows in any order: {self.largest:g} in only one of the two, {self.reference:g} in the source"
        return self.unequal or f"{told}{own}{weak}"


class Comparison(BaseModel):
    """All outputs, and the operators outside XNNPACK; or why there is nothing to compare with."""

    samples: int
    outputs: tuple[Difference, ...] = ()
    outside: dict[str, int] = {}
    without_reference: str = ""

    @property
    def notes(self) -> list[str]:
        """What the person should be told even though the file is written."""
        if self.without_reference:
            return [f"not checked: {self.without_reference}"]
        return [
            f"{item.name!r} differs by half of its {'rows' if item.rows else 'largest value'} or more: "
            "measure the accuracy before you use this file"
            for item in self.outputs
            if item.largest > _HALF * item.reference
        ]


def compare(
    model: Path,
    file: Path,
    borders: tuple[Sequence[LoweredTensor], Sequence[LoweredTensor]],
    feeds: Samples,
) -> Comparison:
    """Measure in a child process; raises GateError when the file does not even run, or crashes the runtime."""
    inputs, outputs = layouts(borders[0]), layouts(borders[1])
    with tempfile.TemporaryDirectory(prefix="edgefleet-check-") as work:
        path = Path(work) / "feeds.npz"
        save_feeds(path, inputs, feeds)
        # The child works in a folder of its own.
        job = CompareJob(model=model.resolve(), file=file.resolve(), inputs=inputs, outputs=outputs, feeds=path)
        try:
            return child.call(
                "edgefleet_converters.conversion.comparison:run_job", job, Comparison, timeout_s=TIMEOUT_S
            )
        except child.ChildFailedError as error:
            if "No module named" in str(error):
                module = str(error).rpartition("'")[0].rpartition("'")[2]
                raise MissingExtraError("checking the file", module, "convert-litert") from error
            remedy = "convert with --no-check to look at the file itself"
            raise GateError("checking the file in LiteRT", f"it does not run: {error}", remedy) from error


def make_feeds(inputs: Sequence[InputLike], golden: Samples | None) -> Samples:
    """Seeded random samples, and the first of the person's own where there are any.

    Where there are any, the random ones are mixed from them, value by value: a quantised file saturates by design on
    what its samples never showed, and indices stay in range.
    """
    generator = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    for spec in inputs:
        own = None if golden is None else golden[spec.name]
        random = _random(spec, own, generator)
        feeds[spec.name] = random if own is None else np.concatenate([random, own[:GOLDEN_SAMPLES]])
    return feeds


def _random(spec: InputLike, own: Array | None, generator: np.random.Generator) -> Array:
    shape, dtype = (RANDOM_SAMPLES, *spec.shape), np.dtype(spec.dtype)
    if own is not None:
        return np.take_along_axis(own, generator.integers(0, len(own), shape), axis=0)
    if dtype.kind == "f":
        return np.asarray(generator.normal(size=shape).astype(dtype))
    if dtype.kind == "c":
        return np.asarray((generator.normal(size=shape) + 1j * generator.normal(size=shape)).astype(dtype))
    # Wide integers are mostly indices, lengths or masks: 0 and 1 are right for all of them.
    limits = np.iinfo(dtype) if dtype.itemsize == 1 and dtype.kind in "iu" else None
    low, high = (int(limits.min), int(limits.max)) if limits else (0, 1)
    return np.asarray(generator.integers(low, high, shape, endpoint=True).astype(dtype))


def judge(comparison: Comparison, precision: Precision, hint: str) -> None:
    """Raise GateError for a file that differs by more than its precision explains."""
    limit = TOLERANCES.get(precision)
    wrong = [
        f"{item.name!r}: {item.text}"
        for item in comparison.outputs
        if (item.unequal if limit is None else item.exceeds(limit))
    ]
    if wrong:
        found = f"the file differs from the source in {'; '.join(wrong)}"
        raise GateError("checking the file against ONNX Runtime", found, hint)
