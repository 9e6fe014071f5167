"""Data against the declared normalisation, and held-out samples against calibration samples."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edgefleet.errors import InputError
from edgefleet_converters.data import check_normalisation, overlap
from edgefleet_converters.intake.input_spec import ImageInput, InputSpec
from edgefleet_converters.step import Samples

IMAGENET = ImageInput(layout="nchw", scale=255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
RAW = ImageInput(layout="nhwc")
Floats = NDArray[np.floating]


def pixels(layout: str = "nchw") -> Floats:
    """Twenty noisy images, black and white pixels among them."""
    shape = (20, 1, 3, 8, 8) if layout == "nchw" else (20, 1, 8, 8, 3)
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)


def check(samples: Floats, image: ImageInput) -> tuple[str, ...]:
    return check_normalisation({"x": samples}, InputSpec(inputs={"x": image}), "reading the data")


def imagenet(levels: Floats) -> Floats:
    mean, std = (np.array(numbers, np.float32).reshape(3, 1, 1) for numbers in (IMAGENET.mean, IMAGENET.std))
    found: Floats = (levels / 255 - mean) / std
    return found


def test_data_that_are_as_declared() -> None:
    assert check(imagenet(pixels()), IMAGENET) == ()
    assert check(pixels("nhwc"), RAW) == ()


def test_raw_pixels_where_normalised_ones_are_declared() -> None:
    with pytest.raises(InputError) as refused:
        check(pixels(), IMAGENET)
    text = str(refused.value)
    assert "'x' has values 0 to 255" in text
    assert "scale 255, mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225" in text
    assert "-2.12 to 2.64" in text
    assert "(mean 131 128 128, deviation 75.8 74.1 73.8 by channel)" in text
    assert "the data are not normalised like that; normalise them as the input spec says" in text


def test_normalised_data_where_raw_pixels_are_declared() -> None:
    with pytest.raises(InputError, match=r"'x' has values 0 to 1.*the data are normalised already, or in another way"):
        check(pixels("nhwc") / 255, RAW)


def test_a_mean_that_was_not_taken_off_is_a_warning() -> None:
    (warning,) = check(pixels() / 255, IMAGENET)
    assert "no pixel is darker than the mean" in warning


def test_a_little_overshoot_of_a_resampler_is_allowed() -> None:
    assert check(pixels("nhwc") * 1.05 - 5, RAW) == ()


def test_overlap_counts_equal_samples_of_all_inputs() -> None:
    x: Floats = pixels()[:10]
    ids = np.arange(10).reshape(10, 1)
    calibration: Samples = {"x": x[:5], "ids": ids[:5]}
    assert overlap(calibration, {"ids": ids[3:], "x": x[3:]}) == 2
    assert overlap(calibration, {"x": x[3:], "ids": ids[3:] + 10}) == 0
    assert overlap(calibration, {"x": x[5:], "ids": ids[5:]}) == 0
