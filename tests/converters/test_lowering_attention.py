"""Attention and its relatives against ONNX's reference implementation and numpy, and what the files consist of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from converters.one_node import Array, OneNode, assert_equal, in_litert, in_reference
from converters.onnx_models import operators, weights
from edgefleet.errors import UnsupportedError

_BATCH, _QUERIES, _KEYS, _SIZE = 2, 3, 5, 4


def attend(heads: int = 4, shared: int = 2, mask: Array | None = None, **attributes: object) -> OneNode:
    """Attention of rank-4 values over `shared` heads of keys."""
    inputs = (
        weights(_BATCH, heads, _QUERIES, _SIZE, seed=0),
        weights(_BATCH, shared, _KEYS, _SIZE, seed=1),
        weights(_BATCH, shared, _KEYS, _SIZE + 1, seed=2),
        mask,
    )
    return OneNode("Attention", inputs, opset=25, attributes=attributes)


def half_visible(seed: int = 3) -> Array:
    """A bool mask in which one query sees nothing."""
    mask = np.random.default_rng(seed).random((_BATCH, 1, _QUERIES, _KEYS)) > 0.5
    mask[..., 0] = True
    mask[1, 0, 2] = False
    return mask


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("causal", [0, 1])
def test_masks_with_a_row_that_sees_nothing(kind: str, constant: bool, causal: int) -> None:
    seen = half_visible()
    mask = seen if kind == "bool" else np.where(seen, weights(*seen.shape, seed=4), -np.inf).astype(np.float32)
    case = replace(attend(mask=mask, is_causal=causal), constant=(3,) if constant else ())
    expected = in_reference(case)
    assert not np.asarray(expected["y"])[1, :, 2].any()
    assert_equal(case, expected)


@pytest.mark.parametrize("constant", [(), (3,)])
def test_one_row_of_mask_for_all_queries_beside_causality(constant: tuple[int, ...]) -> None:
    row = weights(1, _KEYS, seed=5)
    whole = attend(mask=np.repeat(row, _QUERIES, axis=0), is_causal=1)
    assert_equal(replace(attend(mask=row, is_causal=1), constant=constant), in_reference(whole))


def test_a_mask_that_is_too_short_hides_the_rest() -> None:
    for mask in (half_visible()[..., :3], weights(_QUERIES, 3, seed=5)):
        for constant in ((), (3,)):
            case = replace(attend(mask=np.ascontiguousarray(mask)), constant=constant)
            assert_equal(case, in_reference(case))


@pytest.mark.parametrize("window", [(-1, 1), (0, -1), (1, 0), (2, 2)])
@pytest.mark.parametrize("constant", [False, True])
def test_windows_and_valid_keys(window: tuple[int, int], constant: bool) -> None:
    left, right = window
    case = attend(left_window_size=left, right_window_size=right, is_causal=1)
    valid = np.array([3, 5], np.int64)
    padded = replace(case, inputs=(*case.inputs, None, None, valid), constant=(6,) if constant else ())
    assert_equal(case, in_reference(case))
    assert_equal(padded, in_reference(padded))


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_every_form_of_the_scores(mode: int) -> None:
    case = replace(
        attend(mask=half_visible(), softcap=0.8, scale=0.4, qk_matmul_output_mode=mode), outputs=("y", "", "", "qk")
    )
    expected = dict(in_reference(case))
    if mode == 0:
        # By the operator's definition the first form is before the softcap; the reference applies it.
        query, key = (np.asarray(array, np.float32) for array in (case.inputs[0], case.inputs[1]))
        expected["qk"] = np.float32(0.4) * (query @ np.repeat(key, 2, axis=1).swapaxes(-1, -2))
    assert_equal(case, expected)


def test_past_keys_and_half_precision() -> None:
    case = attend(is_causal=1)
    past = (weights(_BATCH, 2, 3, _SIZE, seed=6), weights(_BATCH, 2, 3, _SIZE + 1, seed=7))
    whole = replace(case, inputs=(*case.inputs, *past), outputs=("y", "key", "value"))
    assert_equal(whole, in_reference(whole))
    halves = tuple(None if array is None else array.astype(np.float16) for array in whole.inputs)
    half = replace(whole, inputs=halves)
    assert_equal(half, in_reference(half), tolerance=4e-3)


def test_shared_heads_are_two_products_and_repeat_nothing() -> None:
    lowered, _ = in_litert(attend(heads=6, shared=2))
    names = [name for name in operators(lowered) if name != "RESHAPE"]
    assert names == ["MUL", "BATCH_MATMUL", "SOFTMAX", "BATCH_MATMUL"]


def test_a_mask_that_hides_nothing_costs_nothing() -> None:
    seen = np.ones((_QUERIES, _KEYS), np.bool_)
    lowered, _ = in_litert(replace(attend(mask=seen), constant=(3,)))
    assert "ADD" not in operators(lowered)


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="Reshape"):
        in_litert(attend(heads=3, shared=2))


def test_double_precision_is_refused() -> None:
    doubles = tuple(None if array is None else array.astype(np.float64) for array in attend().inputs)
    with pytest.raises(UnsupportedError, match="float64"):
        in_litert(replace(attend(), inputs=doubles))


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("constant", [(), (1, 2), (1, 2, 3)])
def test_rotary_embedding(interleaved: int, constant: tuple[int, ...]) -> None:
    angles = weights(8, 2, seed=8)
    positions = np.array([[0, 5, 7], [3, 3, -1]], np.int64)
    inputs = (weights(2, 3, 12, seed=9), np.cos(angles), np.sin(angles), positions)
    attributes = {"interleaved": interleaved, "num_heads": 2, "rotary_embedding_dim": 4}
    case = OneNode("RotaryEmbedding", inputs, opset=23, constant=constant, attributes=attributes)
    assert_equal(case, in_reference(case))


def test_causal_convolution_in_half_precision() -> None:
    inputs = (weights(2, 4, 6), weights(4, 1, 3, seed=1), weights(4, seed=2), weights(2, 4, 2, seed=3))
    halves = tuple(array.astype(np.float16) for array in inputs)
    case = OneNode("CausalConvWithState", halves, ("y", "state"), 27, (1, 2), {"activation": "silu"})
    assert_equal(case, in_reference(case), tolerance=4e-3)


def test_linear_attention_of_unequal_heads() -> None:
    inputs = (
        weights(2, 3, 4 * 2, seed=0),
        weights(2, 3, 2 * 2, seed=1),
        weights(2, 3, 2 * 5, seed=2),
        weights(2, 2, 2, 5, seed=3),
        -np.abs(weights(2, 3, 2, seed=4)),
        weights(2, 3, 1, seed=5),
    )
    attributes = {"q_num_heads": 4, "kv_num_heads": 2, "scale": 0.7}
    case = OneNode("LinearAttention", inputs, ("y", "state"), 27, (), attributes)
    assert_equal(case, in_reference(case))


def test_causal_convolution_without_its_state() -> None:
    # ONNX infers nothing for this node when its second output is absent.
    inputs = (weights(2, 4, 6), weights(4, 1, 3, seed=1))
    case = OneNode("CausalConvWithState", inputs, ("y",), 27, (1,))
    whole = replace(case, outputs=("y", "state"))
    assert_equal(case, {"y": in_reference(whole)["y"]})
