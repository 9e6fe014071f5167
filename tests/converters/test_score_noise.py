"""Signal to noise of every slice: what a whole output hides is seen, and what is nothing is no alarm."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgefleet_converters.score.sqnr import CEILING_DB, kin_peaks, measure_noise, slice_axes

Floats = NDArray[np.float64]


def as_int8(values: Floats, low: float, high: float) -> Floats:
    """Rounded to 8 bits over a range that holds 0."""
    step = (high - low) / 255
    return np.asarray(np.round(np.clip(values, low, high) / step) * step)


def head(samples: int = 8, boxes: int = 2100, classes: int = 3) -> Floats:
    """[N, 1, 4 + classes, boxes]: boxes of 0 to 640, and scores that are high for a few boxes of each class."""
    generator = np.random.default_rng(0)
    found = np.empty((samples, 1, 4 + classes, boxes))
    found[:, :, :4] = generator.uniform(0, 640, (samples, 1, 4, boxes))
    found[:, :, 4:] = generator.uniform(0, 0.002, (samples, 1, classes, boxes))
    for place in range(classes):
        found[:, :, 4 + place, 10 * place : 10 * place + 6] = generator.uniform(0.5, 0.95, (samples, 1, 6))
    return found


@pytest.mark.parametrize("swap", [False, True])
def test_scores_that_share_a_scale_with_boxes_are_seen(swap: bool) -> None:
    """FACTS of the field: 54 dB over the whole output, and every score 0."""
    source = head()
    variant = as_int8(source, 0, 640)
    assert variant[:, :, 4:].max() == 0
    if swap:
        source, variant = (np.swapaxes(array, 2, 3) for array in (source, variant))
    found = measure_noise("head", variant, source)
    assert found.whole_db is not None
    assert found.whole_db > 50
    assert found.worst_db is not None
    assert found.worst_db < 10
    assert found.slices[0].axis == (3 if swap else 2) - 1
    assert found.slices[0].index >= 4


def test_the_same_scores_with_a_scale_of_their_own_are_no_alarm() -> None:
    source = head()
    variant = source.copy()
    variant[:, :, :4] = as_int8(source[:, :, :4], 0, 640)
    variant[:, :, 4:] = as_int8(source[:, :, 4:], 0, 1)
    found = measure_noise("head", variant, source)
    assert found.worst_db is not None
    assert found.worst_db > 30


def test_a_class_that_the_samples_never_show_is_no_alarm_beside_its_kin() -> None:
    source = head(classes=6)
    source[:, :, -1] = np.linspace(0, 0.0019, 2100)
    # Kin are linked step by step, as the scores of many classes are.
    for place, peak in enumerate((0.5, 0.1, 0.02)):
        source[:, :, 6 + place] *= peak
    variant = source.copy()
    variant[:, :, 4:] = as_int8(source[:, :, 4:], 0, 1)
    assert variant[:, :, -1].max() == 0
    found = measure_noise("scores", variant[:, :, 4:], source[:, :, 4:])
    assert found.worst_db is not None
    assert found.worst_db > 20


def test_slices_that_are_always_zero_are_no_alarm_and_equal_outputs_have_no_noise() -> None:
    source = np.random.default_rng(1).normal(size=(5, 1, 8, 4, 4))
    source[:, :, 3] = 0
    exact = measure_noise("out", source.copy(), source)
    assert (exact.worst_db, exact.whole_db, exact.slices) == (None, None, ())
    variant = as_int8(source, -4, 4)
    variant[:, :, 3] += 0.005
    found = measure_noise("out", variant, source)
    assert found.worst_db is not None
    assert found.worst_db > 20
    lost = variant.copy()
    lost[:, :, 5] = 0
    gone = measure_noise("out", lost, source)
    assert gone.worst_db == pytest.approx(0, abs=0.1)
    assert (gone.slices[0].axis, gone.slices[0].index) == (1, 5)
    assert gone.text == "'out', slice 5 of axis 1"


def test_an_output_that_is_zero_in_the_source_and_not_in_the_variant_is_all_noise() -> None:
    zeros = np.zeros((3, 1, 4))
    assert measure_noise("out", zeros, zeros).worst_db is None
    assert measure_noise("out", zeros + 0.1, zeros).worst_db == -CEILING_DB


def test_integers_are_compared_for_equality_and_infinities_left_out() -> None:
    classes = np.array([[3], [4], [5], [6]])
    assert measure_noise("class", np.array([[3], [4], [0], [6]]), classes).equal == 0.75
    source = np.array([[[1.0, -np.inf]], [[2.0, -np.inf]]])
    assert measure_noise("masked", source + 0.01, source).worst_db == pytest.approx(44, abs=0.1)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((), ()),
        ((7,), (0,)),
        ((1, 10), (1,)),
        ((1, 84, 8400), (1, 2)),
        ((1, 8, 4, 4), (1, 3)),
        ((1, 2, 3, 4, 5), (1, 4)),
    ],
)
def test_the_axes_that_may_hold_channels(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    assert slice_axes(shape) == axes


@given(
    st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)),
    st.floats(1e-4, 0.3),
    st.floats(1e-3, 1e3),
    st.integers(0, 10),
)
def test_noise_of_a_known_size_gives_its_ratio_whatever_the_scale(
    shape: tuple[int, int, int], noise: float, scale: float, seed: int
) -> None:
    """With equal magnitudes every slice has the same ratio, and so has the whole."""
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(shape[0], 1, *shape[1:]))
    source = scale * signs
    found = measure_noise("out", source * (1 + noise), source)
    assert found.worst_db == pytest.approx(-20 * np.log10(noise), abs=1e-6)
    assert found.whole_db == pytest.approx(found.worst_db, abs=1e-6)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30))
def test_kin_have_one_peak_and_strangers_another(peaks: list[float]) -> None:
    array = np.array(peaks)
    found = kin_peaks(array)
    assert np.all(found >= array)
    assert set(found) <= set(peaks)
    order = np.argsort(-array, kind="stable")
    assert np.all(np.diff(found[order]) <= 0)
    for before, after in pairwise(order):
        if found[after] < found[before]:
            assert array[before] > 16 * array[after]
