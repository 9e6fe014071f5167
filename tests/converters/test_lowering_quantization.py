"""Integer products and quantisation, exact to the last bit, and Fourier transforms."""

from __future__ import annotations

import numpy as np
import pytest

from converters.onnx_models import weights
from converters.onnx_nodes import Array, Attributes, assert_node, single
from edgefleet.errors import UnsupportedError
from edgefleet_converters.tflite import lower


def whole(dtype: str, *shape: int, seed: int = 0) -> Array:
    """Numbers over the whole range of a type."""
    bounds = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(bounds.min, bounds.max + 1, size=shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16"])
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("frozen", [(1, 2), ()])
def test_quantize_and_dequantize(dtype: str, axis: int | None, frozen: tuple[int, ...]) -> None:
    data = np.asarray(weights(2, 3, 4) * 100)
    shape = () if axis is None else (data.shape[axis],)
    scale: Array = np.asarray(np.abs(weights(*shape, seed=1)) + 0.1).astype(np.float32)
    zero: Array = np.asarray(whole(dtype, *shape, seed=2) // 4)
    where: Attributes = {} if axis is None else {"axis": axis}
    assert_node("QuantizeLinear", [data, scale, zero.astype(dtype)], frozen, opset=21, **where)
    assert_node("DequantizeLinear", [whole(dtype, 2, 3, 4), scale, zero.astype(dtype)], frozen, opset=21, **where)


def test_quantize_rounds_half_to_even_and_clamps() -> None:
    data = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -1e9, 126.5, 127.5], np.float32)
    assert_node("QuantizeLinear", [data, np.array(1, np.float32), np.array(0, np.int8)], (1, 2), opset=13)
    assert_node("QuantizeLinear", [data, np.array(1, np.float32)], (1,), opset=13)


def test_blocks_of_scales() -> None:
    scale = np.abs(weights(2, 6)) + np.float32(0.1)
    arrays = [weights(4, 6) * 9, scale, whole("uint8", 2, 6)]
    assert_node("QuantizeLinear", arrays, (1, 2), opset=21, axis=0, block_size=2)
    assert_node("DequantizeLinear", [whole("uint8", 4, 6), *arrays[1:]], opset=21, axis=0, block_size=2)


def test_dequantize_of_32_bits() -> None:
    assert_node("DequantizeLinear", [whole("int32", 2, 3) // 999, np.array(0.3, np.float32)], (1,), opset=13)


@pytest.mark.parametrize("terms", [3, 200, 900])
@pytest.mark.parametrize(("left", "right"), [("uint8", "uint8"), ("uint8", "int8"), ("int8", "int8")])
def test_integer_products_are_exact(terms: int, left: str, right: str) -> None:
    arrays = [whole(left, 2, 5, terms), whole(right, terms, 4, seed=1), np.array(7, left), np.array(3, right)]
    for frozen in ((1, 2, 3), (2, 3)):
        assert_node("MatMulInteger", arrays, frozen, opset=10)
    assert_node("MatMulInteger", arrays[:2], (1,), opset=10)


def test_an_integer_product_of_extremes_is_exact() -> None:
    arrays = [np.full((1, 999), 255, np.uint8), np.full((999, 2), 255, np.uint8)]
    assert_node("MatMulInteger", arrays, (1,), opset=10)
    assert_node("MatMulInteger", arrays, (), opset=10)
    with pytest.raises(UnsupportedError, match="sums of 5000 products"):
        lower(single("MatMulInteger", [whole("uint8", 1, 5000), whole("uint8", 5000, 2)], opset=10))


@pytest.mark.parametrize("channels", [2, 64])
@pytest.mark.parametrize("group", [1, 2])
def test_integer_convolutions(channels: int, group: int) -> None:
    data, kernel = whole("uint8", 1, channels, 7, 8), whole("uint8", 4, channels // group, 3, 3, seed=1)
    where: Attributes = {"group": group, "pads": [1, 0, 1, 2], "strides": [1, 2]}
    assert_node("ConvInteger", [data, kernel, np.array(9, np.uint8)], (1, 2), opset=10, **where)
    by_channel = np.abs(weights(4)) / 100 + np.float32(0.01)
    signed = kernel.astype(np.int8)
    arrays = [
        *(data, np.array(0.02, np.float32), np.array(9, np.uint8)),
        *(signed, by_channel, np.zeros(4, np.int8)),
        *(np.array(3, np.float32), np.array(100, np.uint8), whole("int16", 4).astype(np.int32)),
    ]
    assert_node("QLinearConv", arrays, range(1, 9), opset=10, **where)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_quantised_matrix_products(dtype: str) -> None:
    real = [np.array(value, np.float32) for value in (0.02, 0.03, 0.9)]
    zeros = [np.array(value, dtype) for value in (7, 3, 4)]
    left, right = whole(dtype, 5, 30), whole(dtype, 30, 4, seed=1)
    arrays = [left, real[0], zeros[0], right, real[1], zeros[1], real[2], zeros[2]]
    assert_node("QLinearMatMul", arrays, range(1, 8), opset=10)


@pytest.mark.parametrize("length", [None, 8, 13])
@pytest.mark.parametrize("axis", [1, 2])
def test_fourier_transforms(length: int | None, axis: int) -> None:
    wanted = None if length is None else np.array(length)
    for inverse, onesided, parts in ((0, 0, 1), (0, 0, 2), (1, 0, 2), (0, 1, 1)):
        arrays = [weights(2, 10, 7, parts), wanted, np.array(axis)]
        assert_node("DFT", arrays, (1, 2), opset=20, inverse=inverse, onesided=onesided)
    assert_node(
        "DFT", [weights(2, 6, 6, 2), None, np.array(axis)], (2,), opset=20, by_reference=True, inverse=1, onesided=1
    )


@pytest.mark.parametrize("onesided", [0, 1])
def test_short_time_fourier_transform(onesided: int) -> None:
    signal, step = weights(2, 64, 1), np.array(5)
    windowed = [signal, step, np.hanning(16).astype(np.float32), np.array(16)]
    assert_node("STFT", windowed, (1, 2, 3), onesided=onesided)
    assert_node("STFT", windowed, (1, 3), onesided=onesided)
    assert_node("STFT", windowed[:3], (1, 2), onesided=onesided)
    assert_node("STFT", [signal, step, None, np.array(15)], (1, 3), onesided=onesided)
