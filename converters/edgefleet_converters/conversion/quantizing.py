"""Quantising a lowered file in a child process: the job, and what of the image normalisation folds into it.

The quantiser itself is a step; this module never loads it.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel

from edgefleet.errors import InputError, UnsupportedError
from edgefleet_converters import child
from edgefleet_converters.conversion.samples import Samples
from edgefleet_converters.conversion.tensors import TensorLayout, layouts, save_feeds
from edgefleet_converters.tflite import Lowered
from edgefleet_device_profiles.profile import Precision

TIMEOUT_S = 1800.0

BorderType = Literal["float32", "uint8", "int8"]
_LEVELS = 255


@dataclass(frozen=True, slots=True)
class Borders:
    """What the file's float inputs and outputs become.

    With `mean` and `std`, in levels 0 to 255, a uint8 input is the image itself: x = (level - mean) / std.
    """

    dtype: BorderType = "float32"
    mean: float | None = None
    std: float | None = None

    def check(self, precision: Precision) -> None:
        """Raise InputError for a combination that cannot be."""
        doing = f"choosing --io {self.dtype}"
        if self.dtype != "float32" and precision != Precision.INT8:
            raise InputError(doing, f"the precision is {precision}", "only int8 has integer inputs and outputs")
        if (self.mean is None) != (self.std is None):
            raise InputError(doing, "only one of --mean and --std", "give both")
        if self.mean is None or self.std is None:
            return
        if self.dtype != "uint8":
            raise InputError(doing, "--mean and --std", "they fold into a uint8 input only: give --io uint8")
        if not 0 <= self.mean <= _LEVELS or not 0 < self.std < float("inf"):
            found = f"--mean {self.mean:g} --std {self.std:g}"
            raise InputError(doing, found, "give a mean from 0 to 255 and a std above 0, in levels of the image")

    def ranges(self, inputs: tuple[TensorLayout, ...]) -> dict[str, tuple[float, float]]:
        """Ranges of the float inputs that the normalisation decides, instead of the calibration."""
        if self.mean is None or self.std is None:
            return {}
        # The zero point is a whole level, so the range is that of the nearest whole mean.
        whole = round(self.mean)
        span = (-whole / self.std, (_LEVELS - whole) / self.std)
        return {item.name: span for item in inputs if item.dtype == "float32"}


class QuantizeJob(BaseModel):
    """One float .tflite file to quantise; `feeds` are in the file's layout, or None where none are needed."""

    source: Path
    result: Path
    precision: Precision
    border: BorderType
    inputs: tuple[TensorLayout, ...]
    feeds: Path | None
    ranges: dict[str, tuple[float, float]]


class Quantized(BaseModel):
    """The child's answer: the file is where the job says."""

    size_bytes: int


def quantize(lowered: Lowered, precision: Precision, samples: Samples | None, borders: Borders) -> bytes:
    """The quantised file; raises UnsupportedError when the quantiser fails on this model."""
    inputs = layouts(lowered.inputs)
    with tempfile.TemporaryDirectory(prefix="edgefleet-quantize-") as work:
        folder = Path(work)
        source, result, feeds = folder / "float.tflite", folder / "quantized.tflite", folder / "feeds.npz"
        source.write_bytes(lowered.content)
        if samples is not None:
            stored = {item.name: _stored(item, samples) for item in inputs}
            save_feeds(feeds, inputs, stored)
        job = QuantizeJob(
            source=source,
            result=result,
            precision=precision,
            border=borders.dtype,
            inputs=inputs,
            feeds=feeds if precision in (Precision.INT8, Precision.INT16X8) else None,
            ranges=borders.ranges(inputs),
        )
        try:
            child.call("edgefleet_converters.steps.tflite_precisions:run_job", job, Quantized, timeout_s=TIMEOUT_S)
        except child.ChildFailedError as error:
            remedy = "choose another precision: fp32 needs no quantiser"
            raise UnsupportedError(f"quantising to {precision}", f"the quantiser failed: {error}", remedy) from error
        return result.read_bytes()


def _stored(item: TensorLayout, samples: Samples) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    array = samples[item.name]
    if item.permutation is None:
        return array
    return np.ascontiguousarray(array.transpose(0, *(axis + 1 for axis in item.permutation)))
