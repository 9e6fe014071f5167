"""Resize and sampling: every mode against ONNX Runtime, or ONNX's definition where the runtime departs from it."""

from __future__ import annotations

import numpy as np
import pytest

from converters.onnx_models import operators, weights
from converters.onnx_nodes import Array, Attributes, assert_node, single
from edgefleet.errors import UnsupportedError
from edgefleet_converters.tflite import lower

COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
SIZES = ((9, 11), (4, 10), (3, 2), (1, 7))


def sizes(*wanted: int) -> list[Array | None]:
    return [weights(2, 3, 5, 6), None, None, np.array([2, 3, *wanted])]


def scales(*factors: float) -> list[Array | None]:
    return [weights(2, 3, 5, 6), None, np.array([1, 1, *factors], np.float32)]


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("wanted", SIZES)
def test_linear_and_cubic(coordinates: str, wanted: tuple[int, int]) -> None:
    attributes: Attributes = {"opset": 19, "coordinate_transformation_mode": coordinates, "by_reference": True}
    assert_node("Resize", sizes(*wanted), (3,), mode="linear", **attributes)
    for outside in (0, 1):
        cubic: Attributes = {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": outside}
        assert_node("Resize", sizes(*wanted), (3,), **cubic, **attributes)


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_nearest(coordinates: str, rounding: str) -> None:
    attributes: Attributes = {
        "mode": "nearest",
        "nearest_mode": rounding,
        "coordinate_transformation_mode": coordinates,
    }
    # The runtime computes the symmetric form in a way that misses whole numbers.
    attributes["by_reference"] = coordinates == "half_pixel_symmetric"
    for wanted in SIZES:
        assert_node("Resize", sizes(*wanted), (3,), opset=19, **attributes)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("factors", [(0.6, 0.4), (0.5, 2.0), (1.0, 0.3)])
def test_antialias(mode: str, factors: tuple[float, float]) -> None:
    assert_node("Resize", scales(*factors), (2,), opset=19, mode=mode, antialias=1)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_crop_and_resize(mode: str) -> None:
    corners = np.array([0.6, 0.1, 0.9, 1.3], np.float32)
    arrays = [weights(2, 3, 5, 6), corners, None, np.array([7, 4])]
    attributes: Attributes = {"mode": mode, "coordinate_transformation_mode": "tf_crop_and_resize", "axes": [3, 2]}
    assert_node("Resize", arrays, (1, 3), opset=19, by_reference=True, extrapolation_value=3.0, **attributes)


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
def test_aspect_ratio(policy: str) -> None:
    arrays = [weights(2, 3, 5, 6), None, None, np.array([9, 8])]
    assert_node("Resize", arrays, (3,), opset=19, mode="linear", axes=[2, 3], keep_aspect_ratio_policy=policy)


@pytest.mark.parametrize("shape", [(2, 3, 7), (2, 3, 4, 3, 5)])
def test_other_ranks(shape: tuple[int, ...]) -> None:
    factors = np.array([1, 1, *[2.5] * (len(shape) - 2)], np.float32)
    for mode in ("linear", "nearest"):
        assert_node("Resize", [weights(*shape), None, factors], (2,), opset=19, mode=mode)


def test_upsampling_of_older_models() -> None:
    for mode in ("nearest", "linear"):
        twice = np.array([1, 1, 2, 3], np.float32)
        assert_node("Upsample", [weights(1, 2, 4, 5), twice], (1,), opset=9, mode=mode)
        assert_node("Upsample", [weights(1, 2, 4, 5)], opset=7, mode=mode, scales=[1.0, 1.0, 2.0, 2.0])
        assert_node("Resize", [weights(1, 2, 4, 5), twice], (1,), opset=10, mode=mode)
    smaller = np.array([1, 1, 0.5, 0.5], np.float32)
    with pytest.raises(UnsupportedError, match="opset 10"):
        lower(single("Resize", [weights(1, 2, 4, 4), smaller], (1,), opset=10))


def test_what_tflite_has_is_one_operator() -> None:
    for coordinates in ("half_pixel", "align_corners", "asymmetric"):
        attributes: Attributes = {"mode": "linear", "coordinate_transformation_mode": coordinates}
        assert operators(assert_node("Resize", sizes(9, 11), (3,), opset=19, **attributes)) == ["RESIZE_BILINEAR"]
    lowered = assert_node("Resize", scales(2, 2), (2,), opset=19, mode="nearest", nearest_mode="floor")
    assert set(operators(lowered)) <= {"GATHER", "RESIZE_NEAREST_NEIGHBOR"}


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("aligned", [0, 1])
def test_grid_sample(mode: str, padding: str, aligned: int) -> None:
    attributes: Attributes = {"mode": mode, "padding_mode": padding, "align_corners": aligned}
    flat = [weights(2, 3, 5, 6), weights(2, 4, 7, 2, seed=1)]
    assert_node("GridSample", flat, opset=20, **attributes)
    assert_node("GridSample", flat, (1,), opset=20, **attributes)
    if mode != "cubic":
        solid = [weights(2, 3, 4, 5, 6), weights(2, 3, 4, 5, 3, seed=1)]
        assert_node("GridSample", solid, opset=20, **attributes)


@pytest.mark.parametrize("aligned", [0, 1])
def test_affine_grid(aligned: int) -> None:
    assert_node("AffineGrid", [weights(2, 2, 3), np.array([2, 3, 4, 5])], (1,), opset=20, align_corners=aligned)
    assert_node("AffineGrid", [weights(2, 3, 4), np.array([2, 3, 4, 5, 6])], (1,), opset=20, align_corners=aligned)
