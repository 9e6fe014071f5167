"""Convolutions of every rank, grouped, dilated, padded, transposed and deformed, with constant and computed weights."""

from __future__ import annotations

import numpy as np
import pytest

from converters.onnx_models import operators, weights
from converters.onnx_nodes import Attributes, assert_node

SIZES = {1: (9,), 2: (9, 8), 3: (6, 7, 5)}
KERNELS = {1: (3,), 2: (3, 2), 3: (2, 3, 2)}


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("frozen", [(1, 2), ()])
def test_conv_by_rank_and_group(rank: int, group: int, frozen: tuple[int, ...]) -> None:
    pads = [1, 0, 2, 1, 2, 0][: 2 * rank]
    arrays = [weights(2, 4, *SIZES[rank]), weights(8, 4 // group, *KERNELS[rank]), weights(8)]
    assert_node("Conv", arrays, frozen, group=group, pads=pads, strides=[2, 1, 1][:rank])
    assert_node("Conv", arrays[:2], frozen, group=group, dilations=[2, 1, 2][:rank])


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("automatic", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_conv_with_auto_pad(rank: int, automatic: str) -> None:
    arrays = [weights(1, 3, *SIZES[rank]), weights(4, 3, *KERNELS[rank])]
    assert_node("Conv", arrays, (1,), auto_pad=automatic, strides=[2, 3, 1][:rank])


def test_a_grouped_conv_is_one_operator() -> None:
    arrays = [weights(1, 6, 5, 5), weights(4, 3, 3, 3)]
    assert operators(assert_node("Conv", arrays, (1,), group=2)) == ["CONV_2D"]


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"strides": [2, 3, 1], "pads": [1, 0, 1, 0, 1, 0]},
        {"strides": [3, 2, 2], "output_padding": [2, 1, 0]},
        {"dilations": [2, 1, 3], "strides": [1, 2, 1]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2, 1]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2, 1]},
        {"auto_pad": "VALID", "strides": [2, 2, 1]},
    ],
    ids=["plain", "pads", "output padding", "dilations", "same upper", "same lower", "valid"],
)
def test_conv_transpose(rank: int, group: int, attributes: Attributes) -> None:
    cut: Attributes = {
        name: [*value[:rank], *value[3 : 3 + rank]] if isinstance(value, list) else value
        for name, value in attributes.items()
    }
    arrays = [weights(2, 4, *SIZES[rank]), weights(4, 3, *KERNELS[rank]), weights(3 * group)]
    assert_node("ConvTranspose", arrays, (1, 2), group=group, **cut)


@pytest.mark.parametrize("shape", [[18, 17], [17, 16], [20, 17]])
def test_conv_transpose_with_an_output_shape(shape: list[int]) -> None:
    arrays = [weights(1, 2, 9, 8), weights(2, 3, 4, 3)]
    assert_node("ConvTranspose", arrays, (1,), strides=[2, 2], output_shape=shape)


def test_conv_transpose_to_less_than_its_input() -> None:
    arrays = [weights(1, 2, 3, 3, 6), weights(2, 3, 1, 2, 2)]
    assert_node("ConvTranspose", arrays, (1,), strides=[1, 2, 2], output_shape=[2, 5, 12])


def test_conv_transpose_of_twice_the_size_is_one_operator() -> None:
    for kernel, pads in ((4, [1, 1, 1, 1]), (2, [0, 0, 0, 0]), (3, [0, 0, 1, 1])):
        arrays = [weights(1, 3, 5, 6), weights(3, 2, kernel, kernel)]
        lowered = assert_node("ConvTranspose", arrays, (1,), strides=[2, 2], pads=pads)
        assert operators(lowered) == ["TRANSPOSE_CONV"]


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("offset_group", [1, 2])
def test_deform_conv(group: int, offset_group: int) -> None:
    output = (5, 7)
    arrays = [
        weights(2, 4, 9, 8),
        weights(6, 4 // group, 3, 2),
        weights(2, offset_group * 12, *output, seed=3),
        weights(6),
        np.abs(weights(2, offset_group * 6, *output, seed=4)),
    ]
    attributes: Attributes = {"strides": [2, 1], "pads": [1, 0, 1, 1], "dilations": [1, 2]}
    assert_node("DeformConv", arrays, (1, 3), opset=19, group=group, offset_group=offset_group, **attributes)
    assert_node("DeformConv", arrays[:3], (1,), opset=19, group=group, offset_group=offset_group, **attributes)
