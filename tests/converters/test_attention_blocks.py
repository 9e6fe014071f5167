"""Blocks with attention against ONNX Runtime: what the files consist of, and that nothing is lost at any size.

Latency is not measured here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converters.attention_graphs import LOWEST, Sizes, exported, interleaved, language, pixels, shared, vision
from converters.onnx_models import in_litert, in_onnxruntime, operators, weights
from edgefleet_converters.tflite import Lowered, lower

SMALL = Sizes()
SHARED = Sizes(heads=6, groups=2)
LEAN = Counter(FULLY_CONNECTED=4, RESHAPE=4, TRANSPOSE=4, BATCH_MATMUL=2, SOFTMAX=1, ADD=1)
# What computes a mask from the input.
SEEN = Counter(SLICE=1, GREATER=1, RESHAPE=1)


def agreeing(model: onnx.ModelProto, *, hides_all: bool = False) -> Lowered:
    """The file of a model that gives what ONNX Runtime does, NaN included, also where a mask hides all of an entry."""
    shape = [axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim]
    x = weights(*shape, seed=9)
    if len(shape) == 3:
        x[:, 0, 0] = 1
        x[-1, :, 0] = -np.abs(x[-1, :, 0]) if hides_all else x[-1, :, 0]
    lowered = lower(model)
    found, expected = in_litert(lowered, x), in_onnxruntime(model, x)
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5, err_msg=name)
    return lowered


@pytest.mark.parametrize("scale", ["query", "both"])
@pytest.mark.parametrize("cut", ["Gather", "Split", "Slice"])
@pytest.mark.parametrize("batch", [1, 2])
def test_one_projection_becomes_three_and_takes_the_scale(batch: int, cut: str, scale: str) -> None:
    assert Counter(operators(agreeing(vision(cut, Sizes(batch=batch), scale)))) == LEAN


def test_columns_that_lie_apart_are_brought_together() -> None:
    assert Counter(operators(agreeing(interleaved(SMALL)))) == LEAN


def test_parts_are_no_larger_than_the_whole() -> None:
    model = interleaved(Sizes(length=9, heads=4, size=32))
    held = sum(tensor.ByteSize() for tensor in model.graph.initializer)
    assert len(agreeing(model).content) < held + 12_000


MASKS: dict[str, tuple[onnx.ModelProto, Counter[str]]] = {
    "none": (language("", SMALL), LEAN),
    "added": (language("added", SMALL), LEAN + SEEN + Counter(CAST=1, SUB=1, MUL=1, ADD=1)),
    "filled": (language("filled", SMALL), LEAN + SEEN + Counter(LOGICAL_NOT=1, SELECT_V2=1, ADD=1)),
    "filled, finite": (
        language("filled", SMALL, fill=LOWEST),
        LEAN + SEEN + Counter(LOGICAL_NOT=1, SELECT_V2=1, ADD=1),
    ),
    "causal": (language("causal", SMALL), LEAN + Counter(ADD=1)),
    "causal, finite": (language("causal", SMALL, fill=LOWEST), LEAN + Counter(ADD=1)),
    "causal, guarded": (language("causal", SMALL, guarded=True), LEAN + Counter(ADD=1)),
    "expanded": (language("expanded", SMALL), LEAN + SEEN + Counter(SELECT_V2=1, ADD=1)),
    "expanded, guarded": (
        language("expanded", SMALL, guarded=True),
        LEAN + SEEN + Counter(SELECT_V2=2, ADD=1, NOT_EQUAL=1),
    ),
    "finite, guarded": (
        language("expanded", SMALL, fill=LOWEST, guarded=True),
        LEAN + SEEN + Counter(SELECT_V2=1, ADD=1),
    ),
    "exported": (exported("", SMALL), LEAN),
    "exported, causal": (exported("causal", SMALL), LEAN + Counter(ADD=1)),
    "exported, expanded": (exported("expanded", SMALL), LEAN + SEEN + Counter(SELECT_V2=2, ADD=1, NOT_EQUAL=1)),
}


@pytest.mark.parametrize("case", MASKS)
def test_masks_cost_one_sum_and_the_scale_nothing(case: str) -> None:
    model, wanted = MASKS[case]
    assert Counter(operators(agreeing(model))) == wanted
    agreeing(model, hides_all=True)


@pytest.mark.parametrize("fill", [-1e4, -1e9])
def test_a_fill_that_scores_can_be_told_from_is_not_summed(fill: float) -> None:
    model = language("filled", SMALL, fill=fill)
    assert "BROADCAST_TO" not in operators(agreeing(model, hides_all=True))
    assert Counter(operators(lower(model)))["ADD"] == LEAN["ADD"]


def test_what_sets_rows_right_is_after_the_product_where_that_is_less() -> None:
    long, short = (Sizes(length=length, heads=1, size=16) for length in (32, 4))
    found = [operators(agreeing(language("expanded", s, guarded=True), hides_all=True)) for s in (long, short)]
    assert [names.index("NOT_EQUAL") > len(names) - names[::-1].index("BATCH_MATMUL") - 1 for names in found] == [
        True,
        False,
    ]


@pytest.mark.parametrize("how", ["Expand", "Tile"])
def test_shared_heads_are_not_repeated(how: str) -> None:
    found = Counter(operators(agreeing(shared(SHARED, how))))
    assert found == LEAN + Counter(RESHAPE=4, ADD=1)


def test_one_head_for_all_needs_no_transpose_of_keys_and_values() -> None:
    found = Counter(operators(agreeing(shared(Sizes(heads=6, groups=1)))))
    assert (found["TRANSPOSE"], found["BROADCAST_TO"]) == (2, 0)


@pytest.mark.parametrize("batch", [1, 2])
def test_attention_of_pixels(batch: int) -> None:
    found = Counter(operators(agreeing(pixels(5, 2, 4, 16, batch))))
    assert found == Counter(CONV_2D=5, DEPTHWISE_CONV_2D=1, RESHAPE=4, TRANSPOSE=4, BATCH_MATMUL=2, SOFTMAX=1, ADD=2)


DRAWN: tuple[Callable[[Sizes], onnx.ModelProto], ...] = (
    lambda s: vision("Gather", s),
    lambda s: vision("Split", s, "both"),
    interleaved,
    lambda s: language("filled", s, guarded=True),
    lambda s: language("causal", s),
    lambda s: exported("expanded", s),
    shared,
    lambda s: shared(s, "Tile"),
)


@settings(max_examples=30, derandomize=True)
@given(
    make=st.sampled_from(DRAWN),
    batch=st.integers(1, 3),
    length=st.integers(1, 6),
    groups=st.integers(1, 3),
    repeats=st.integers(1, 3),
    size=st.integers(1, 9),
    hides_all=st.booleans(),
)
def test_blocks_of_any_size(
    make: Callable[[Sizes], onnx.ModelProto],
    batch: int,
    length: int,
    groups: int,
    repeats: int,
    size: int,
    hides_all: bool,
) -> None:
    agreeing(make(Sizes(batch, length, groups * repeats, size, groups)), hides_all=hides_all)
