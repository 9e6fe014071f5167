"""What is checked about data before anything is built on them: their normalisation, and that sets do not overlap.

Pure: takes samples, gives text; raises InputError only where there is no doubt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edgefleet.errors import InputError
from edgefleet_converters.intake.input_spec import ImageInput, InputSpec
from edgefleet_converters.step import Samples

# Resampling overshoots a little, and so does rounding; another normalisation misses by far more.
_SLACK = 0.1
# All samples together in this share of what the spec promises: not even the darkest pictures are that flat.
_FLAT = 0.02


def check_normalisation(samples: Samples, spec: InputSpec, doing: str) -> tuple[str, ...]:
    """Compare image inputs with what the spec says of them; returns warnings, raises InputError."""
    warnings = []
    for name, image in spec.inputs.items():
        low, high = float(samples[name].min()), float(samples[name].max())
        least, most = image.span
        width = most - least
        if low < least - _SLACK * width or high > most + _SLACK * width:
            found = _contrast(name, samples[name], image)
            raise InputError(doing, f"{found}: the data are not normalised like that", _REMEDY)
        if high - low < _FLAT * width:
            found = _contrast(name, samples[name], image)
            raise InputError(doing, f"{found}: the data are normalised already, or in another way", _REMEDY)
        if low >= 0 and least < -_SLACK * width:
            found = _contrast(name, samples[name], image)
            warnings.append(f"{found}: no pixel is darker than the mean, so they may be normalised in another way")
    return tuple(warnings)


_REMEDY = "normalise them as the input spec says, or correct the spec"


def overlap(calibration: Samples, evaluation: Samples) -> int:
    """How many evaluation samples are calibration samples too, bit by bit."""
    seen = set(_digests(calibration))
    return sum(digest in seen for digest in _digests(evaluation))


def _digests(samples: Samples) -> Iterator[bytes]:
    """sha256 of each sample, over all inputs in the order of their names."""
    arrays = [samples[name] for name in sorted(samples)]
    for place in range(len(arrays[0]) if arrays else 0):
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(np.ascontiguousarray(array[place]).tobytes())
        yield digest.digest()


def _contrast(name: str, array: NDArray[np.generic], image: ImageInput) -> str:
    """What an input's values are, in all and by channel, and what they should be."""
    # One axis more than the input: the samples.
    axis = image.channel_axis + 1
    others = tuple(place for place in range(array.ndim) if place != axis)
    values = array.astype(np.float64)
    mean, deviation = (" ".join(f"{number:.3g}" for number in find(values, axis=others)) for find in (np.mean, np.std))
    found = f"{name!r} has values {_range(values.min(), values.max())} (mean {mean}, deviation {deviation} by channel)"
    return f"{found}, and the input spec ({image.described}) makes {_range(*image.span)} of pixels"


def _range(low: float, high: float) -> str:
    return f"{low:.3g} to {high:.3g}"
