"""Pools of every rank with ceil_mode, dilations, SAME padding, indices, and types that TFLite's own pools lack."""

from __future__ import annotations

import numpy as np
import pytest

from converters.onnx_models import operators, weights
from converters.onnx_nodes import Array, Attributes, assert_node, single
from edgefleet.errors import UnsupportedError
from edgefleet_converters.tflite import lower

SIZES = {1: (11,), 2: (11, 8), 3: (7, 8, 6)}
FORMS: dict[str, dict[str, list[int] | str | int]] = {
    "plain": {},
    "strides": {"strides": [2, 1, 3]},
    "pads": {"pads": [1, 0, 1, 1, 1, 0], "strides": [2, 2, 1]},
    "ceil": {"ceil_mode": 1, "strides": [3, 2, 2]},
    "ceil and pads": {"ceil_mode": 1, "pads": [1, 1, 0, 0, 1, 1], "strides": [3, 3, 2]},
    "dilations": {"dilations": [2, 3, 1], "strides": [1, 2, 1]},
    "dilations, ceil and pads": {"dilations": [2, 1, 2], "ceil_mode": 1, "strides": [2, 3, 1], "pads": [1] * 6},
    "same upper": {"auto_pad": "SAME_UPPER", "strides": [2, 1, 2]},
    "same lower": {"auto_pad": "SAME_LOWER", "strides": [2, 1, 2]},
}


def cut(form: str, rank: int) -> Attributes:
    return {
        "kernel_shape": [3, 2, 3][:rank],
        **{
            name: [*value[:rank], *value[3 : 3 + rank]] if isinstance(value, list) else value
            for name, value in FORMS[form].items()
        },
    }


def bottomless(*shape: int) -> Array:
    """Values that are all negative, so that padding would win if it could."""
    return -1 - np.abs(weights(*shape))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("form", FORMS)
def test_pools(rank: int, form: str) -> None:
    data = bottomless(2, 3, *SIZES[rank])
    assert_node("MaxPool", [data], opset=22, **cut(form, rank))
    assert_node("LpPool", [data], opset=22, p=3, **cut(form, rank))
    for including in (0, 1):
        assert_node("AveragePool", [data], opset=22, count_include_pad=including, **cut(form, rank))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("form", ["plain", "ceil and pads", "dilations", "same upper"])
@pytest.mark.parametrize("order", [0, 1])
def test_indices_of_max_pool(rank: int, form: str, order: int) -> None:
    data = np.round(bottomless(2, 3, *SIZES[rank]))
    assert_node("MaxPool", [data], opset=22, outputs=2, storage_order=order, **cut(form, rank))


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_max_pool_of_small_integers(dtype: str) -> None:
    bounds = np.iinfo(dtype)
    data = np.random.default_rng(0).integers(bounds.min, bounds.max + 1, size=(1, 2, 7, 8)).astype(dtype)
    assert_node("MaxPool", [data], opset=12, kernel_shape=[3, 3], pads=[1, 1, 0, 1], strides=[2, 1])


@pytest.mark.parametrize("operator", ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_global_pools(operator: str, rank: int) -> None:
    assert_node(operator, [bottomless(2, 3, *SIZES[rank])])


@pytest.mark.parametrize("p", [1, 2, 3])
def test_powers_of_lp_pool(p: int) -> None:
    assert_node("LpPool", [weights(1, 2, 6, 6)], opset=22, p=p, kernel_shape=[2, 3], pads=[1, 0, 0, 1])
    assert_node("GlobalLpPool", [weights(1, 2, 6, 6)], p=p)


def test_ceil_mode_and_same_padding_need_no_pad_operator() -> None:
    forms: tuple[Attributes, ...] = ({"ceil_mode": 1}, {"auto_pad": "SAME_UPPER"})
    for attributes in forms:
        lowered = assert_node(
            "MaxPool", [weights(1, 2, 8, 8)], opset=12, kernel_shape=[3, 3], strides=[2, 2], **attributes
        )
        assert operators(lowered) == ["MAX_POOL_2D"]


def test_a_window_of_padding_alone_is_refused() -> None:
    attributes: Attributes = {"kernel_shape": [2], "strides": [3], "pads": [1, 1], "ceil_mode": 1}
    model = single("MaxPool", [weights(1, 2, 8)], opset=12, **attributes)
    with pytest.raises(UnsupportedError, match="nothing but padding"):
        lower(model)


def test_same_windows_that_leave_elements_out_are_refused() -> None:
    model = single("MaxPool", [weights(1, 2, 9)], opset=12, kernel_shape=[1], strides=[3], auto_pad="SAME_UPPER")
    with pytest.raises(UnsupportedError, match="leave out"):
        lower(model)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("centres", ["half_pixel", "output_half_pixel"])
def test_roi_align(mode: str, centres: str) -> None:
    regions = np.array([[0, 0, 5, 6], [-3, -3, 20, 20], [2, 1, 3, 8], [4, 4, 4, 4]], np.float32)
    arrays = [weights(2, 3, 9, 10), regions, np.array([1, 0, 1, 0])]
    sizes: Attributes = {"output_height": 3, "output_width": 2, "sampling_ratio": 2, "spatial_scale": 0.7}
    assert_node("RoiAlign", arrays, opset=16, mode=mode, coordinate_transformation_mode=centres, **sizes)


def test_sampling_that_depends_on_the_region_is_refused() -> None:
    arrays = [weights(1, 1, 5, 5), np.zeros((1, 4), np.float32), np.array([0])]
    with pytest.raises(UnsupportedError, match="sampling_ratio=0"):
        lower(single("RoiAlign", arrays, opset=16))
