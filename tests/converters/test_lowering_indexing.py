"""Gathering, scattering and borders: negative indices, every axis, types, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from converters.onnx_nodes import Array, assert_node, single
from edgefleet.errors import UnsupportedError
from edgefleet_converters.tflite import lower

TYPES = ("float32", "int32", "int64", "uint8", "int8", "bool")


def sample(*shape: int, dtype: str = "float32", seed: int = 0) -> Array:
    return (np.random.default_rng(seed).normal(size=shape) * 9).astype(dtype)


def indices(low: int, high: int, *shape: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).integers(low, high, size=shape)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("frozen", [(), (1,)])
def test_gather_counts_from_both_ends(dtype: str, frozen: tuple[int, ...]) -> None:
    for axis in (0, -1, 1):
        assert_node("Gather", [sample(4, 4, 4, dtype=dtype), indices(-4, 4, 2, 3)], frozen, axis=axis)
    assert_node("Gather", [sample(4, 5, dtype=dtype), np.array(-1, np.int64)], frozen)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_gather_elements_of_fewer_indices(axis: int) -> None:
    shape = [2, 3, 4]
    shape[axis] = 2
    assert_node("GatherElements", [sample(3, 4, 5), indices(-3, 3, *shape)], axis=axis)
    assert_node("GatherElements", [sample(3, 4, 5, dtype="uint8"), indices(-3, 3, *shape)], (1,), axis=axis)


@pytest.mark.parametrize("batch", [0, 1, 2])
@pytest.mark.parametrize("frozen", [(), (1,)])
def test_gather_nd_with_batch_axes(batch: int, frozen: tuple[int, ...]) -> None:
    places = indices(-2, 2, *(2, 3)[:batch], 4, 1)
    assert_node("GatherND", [sample(2, 3, 4, 5), places], frozen, batch_dims=batch)
    if batch < 2:
        pairs = indices(-3, 3, *(2, 3)[:batch], 4, 2)
        assert_node("GatherND", [sample(3, 3, 4, 5)[: 2 if batch else 3], pairs], frozen, batch_dims=batch)


@pytest.mark.parametrize("reduction", ["add", "mul", "max", "min"])
@pytest.mark.parametrize("dtype", ["float32", "int32", "int64"])
@pytest.mark.parametrize("frozen", [(), (1,)])
def test_scatter_reduces_updates_of_one_place(reduction: str, dtype: str, frozen: tuple[int, ...]) -> None:
    repeated = np.array([[1], [-3], [1], [0]])
    updates = sample(4, 3, dtype=dtype, seed=2)
    assert_node("ScatterND", [sample(4, 3, dtype=dtype), repeated, updates], frozen, opset=18, reduction=reduction)
    places = np.array([[0, -1, 0], [2, 0, 0]])
    arrays = [sample(4, 3, dtype=dtype), places, updates[:2]]
    assert_node("ScatterElements", arrays, frozen, opset=18, axis=0, reduction=reduction)


@pytest.mark.parametrize("dtype", TYPES)
def test_scatter_replaces(dtype: str) -> None:
    data = sample(4, 3, dtype=dtype)
    assert_node("ScatterND", [data, np.array([[1, 2], [-1, 0]]), sample(2, dtype=dtype)], opset=16)
    assert_node("ScatterElements", [data, np.array([[2], [-2]]), sample(2, 1, dtype=dtype)], opset=13, axis=1)


def test_a_reduction_over_too_many_pairs_is_refused() -> None:
    arrays = [sample(4096), np.arange(4096).reshape(-1, 1), sample(4096)]
    with pytest.raises(UnsupportedError, match="4096 updates"):
        lower(single("ScatterND", arrays, opset=18, reduction="mul"))


@pytest.mark.parametrize("axis", [-1, 0, 1, -2])
def test_one_hot_counts_from_the_back_and_leaves_out_what_is_out_of_range(axis: int) -> None:
    wanted, depth = indices(-7, 8, 3, 4), np.array(5, np.int64)
    values = np.array([-1, 3], np.float32)
    assert_node("OneHot", [wanted, depth, values], (1, 2), by_reference=True, axis=axis)
    assert_node("OneHot", [wanted.astype(np.float32), depth, values], (1,), by_reference=True, axis=axis)


@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8", "int8"])
@pytest.mark.parametrize("largest", [0, 1])
def test_top_k_of_equal_values_and_extremes(dtype: str, largest: int) -> None:
    data = sample(3, 6, dtype=dtype)
    data[0, :4] = data[0, 0]
    if dtype != "float32":
        data[1, :2] = np.iinfo(dtype).min, np.iinfo(dtype).max
    for axis in (-1, 0):
        arrays = [data, np.array([3], np.int64)]
        assert_node("TopK", arrays, (1,), opset=24, outputs=2, by_reference=True, axis=axis, largest=largest)


@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("diagonal", [-9, -1, 0, 2, 9])
def test_trilu(upper: int, diagonal: int) -> None:
    k = np.array(diagonal, np.int64)
    assert_node("Trilu", [sample(2, 4, 5), k], (1,), upper=upper)
    assert_node("Trilu", [sample(2, 4, 5, dtype="int64"), k], (), upper=upper)


def test_compress_needs_a_constant_condition_and_a_declared_shape() -> None:
    arrays = [sample(3, 4), np.array([True, False, True])]
    for frozen in ((1,), ()):
        model = single("Compress", arrays, frozen, opset=11, axis=0)
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y0", TensorProto.FLOAT, (2, 4)))
        if frozen:
            assert lower(model).outputs[0].shape == (2, 4)
        else:
            with pytest.raises(UnsupportedError, match="condition"):
                lower(model)


@pytest.mark.parametrize(("time", "batch"), [(0, 1), (1, 0)])
@pytest.mark.parametrize("dtype", ["float32", "int64", "int8"])
def test_reverse_sequence(time: int, batch: int, dtype: str) -> None:
    arrays = [sample(5, 5, 2, dtype=dtype), np.array([1, 5, 2, 3, 4])]
    assert_node("ReverseSequence", arrays, time_axis=time, batch_axis=batch)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize("dtype", TYPES)
def test_pad(mode: str, dtype: str) -> None:
    amounts = np.array([0, 1, 2, 1, 0, 3])
    fill = np.array(3).astype(dtype) if mode == "constant" else None
    assert_node("Pad", [sample(2, 3, 4, dtype=dtype), amounts, fill], (1, 2), opset=19, mode=mode)


def test_pad_of_many_axes_with_a_computed_value() -> None:
    amounts = np.array([0, 1, 0, 2, 0, 1, 1, 0, 0, 0, 0, 2])
    data = sample(2, 1, 2, 1, 2, 3)
    assert_node("Pad", [data, amounts, np.array(2.5, np.float32)], (1, 2), opset=19)
    assert_node("Pad", [data, amounts, np.array(2.5, np.float32)], (1,), opset=19)
    cut = np.array([-1, 0, 2, 1, -2, 0])
    assert_node("Pad", [sample(3, 4, 5), cut], (1,), opset=19)


def test_pad_by_attributes() -> None:
    assert_node("Pad", [sample(2, 3, 4)], opset=2, pads=[0, 1, 0, 0, 2, 1], mode="edge")
    assert_node("Pad", [sample(2, 3, 4)], opset=2, pads=[0, 1, 0, 0, 2, 1], value=2.5)


@pytest.mark.parametrize("target", [(2, 3), (9, 8), (4, 9)])
def test_center_crop_pad(target: tuple[int, int]) -> None:
    assert_node("CenterCropPad", [sample(5, 3, 6), np.array(target)], (1,), opset=18, axes=[0, -1])


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode: str) -> None:
    assert_node("DepthToSpace", [sample(2, 12, 3, 5)], opset=13, blocksize=2, mode=mode)
    assert_node("SpaceToDepth", [sample(2, 3, 4, 6)], opset=13, blocksize=2)


def test_columns_to_image() -> None:
    columns = ((7 + 1 - 2) // 3 + 1) * (8 + 2 - 5 + 1)
    arrays = [sample(2, 24, columns), np.array([7, 8]), np.array([2, 3])]
    assert_node("Col2Im", arrays, (1, 2), opset=18, pads=[1, 0, 0, 2], dilations=[1, 2], strides=[3, 1])


def test_max_unpool_undoes_max_pool() -> None:
    places = np.array([[[[1, 7], [8, 14]]]])
    assert_node("MaxUnpool", [sample(1, 1, 2, 2), places], opset=11, kernel_shape=[2, 2], strides=[2, 2])
    with pytest.raises(UnsupportedError, match="overlapping"):
        lower(single("MaxUnpool", [sample(1, 1, 2, 2), places], opset=11, kernel_shape=[2, 2], strides=[1, 1]))
