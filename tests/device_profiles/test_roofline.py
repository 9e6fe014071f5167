"""The roofline against hand-computed times, and the rules that every precision keeps."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_device_profiles import catalogue
from edgefleet_device_profiles.profile import Defaults, Peak, Precision, Profile
from edgefleet_device_profiles.roofline import FORMS, Bound, LayerWork, ModelPrediction, Widths, predict, widths

PEAK = Peak(fp32_gops=100.0, fp16_gops=200.0, int8_gops=400.0, bandwidth_gb_s=10.0)
FP32_ONLY = Peak(fp32_gops=100.0, bandwidth_gb_s=10.0)


def board(peak: Peak | None, threads: int = 4) -> Profile:
    """Four cores."""
    return catalogue.load("raspberry-pi-5").model_copy(update={"peak": peak, "defaults": Defaults(threads=threads)})


def predicted(work: LayerWork, precision: Precision, peak: Peak = PEAK, threads: int | None = None) -> ModelPrediction:
    found = predict([work], board(peak), precision, threads)
    assert found is not None
    return found


HEAVY = LayerWork(operations=10**9, weights=10**6, activations=10**6)
WIDE = LayerWork(operations=10**6, weights=10**6, activations=10**6)


@pytest.mark.parametrize(
    ("work", "precision", "time_s", "bound", "intensity"),
    [
        # 10⁹ operations at 10¹¹/s; 8·10⁶ bytes at 10¹⁰/s.
        (HEAVY, Precision.FP32, 1e-2, Bound.COMPUTE, 125.0),
        (WIDE, Precision.FP32, 8e-4, Bound.MEMORY, 0.125),
        (HEAVY, Precision.FP16, 5e-3, Bound.COMPUTE, 250.0),
        (WIDE, Precision.FP16, 4e-4, Bound.MEMORY, 0.25),
        (HEAVY, Precision.INT8, 2.5e-3, Bound.COMPUTE, 500.0),
        (WIDE, Precision.INT8, 2e-4, Bound.MEMORY, 0.5),
        # Weights narrow, activations stay float32.
        (HEAVY, Precision.INT8_DYNAMIC, 2.5e-3, Bound.COMPUTE, 200.0),
        (WIDE, Precision.INT8_DYNAMIC, 5e-4, Bound.MEMORY, 0.2),
        (WIDE, Precision.INT4_WEIGHTS, 4.5e-4, Bound.MEMORY, 1 / 4.5),
        (HEAVY, Precision.INT8_WEIGHTS, 1e-2, Bound.COMPUTE, 200.0),
        (WIDE, Precision.INT16X8, 3e-4, Bound.MEMORY, 1 / 3),
    ],
)
def test_a_layer_takes_the_longer_of_its_arithmetic_and_its_bytes(
    work: LayerWork, precision: Precision, time_s: float, bound: Bound, intensity: float
) -> None:
    (layer,) = predicted(work, precision).layers
    assert layer.time_s == pytest.approx(time_s)
    assert layer.bound is bound
    assert layer.intensity == pytest.approx(intensity)


def test_every_precision_has_a_row() -> None:
    assert set(FORMS) == set(Precision)


def test_layers_without_weights_stay_float_where_only_weights_are_quantised() -> None:
    softmax = LayerWork(operations=10**9, weights=0, activations=10)
    assert predicted(softmax, Precision.INT8_DYNAMIC).time_s == pytest.approx(1e-2)
    assert predicted(softmax, Precision.INT8).time_s == pytest.approx(2.5e-3)


def test_biases_and_token_numbers_never_shrink() -> None:
    work = LayerWork(0, 0, 0, fixed_weight_bytes=3 * 10**6, fixed_activation_bytes=10**6)
    assert [predicted(work, precision).time_s for precision in Precision] == pytest.approx([4e-4] * len(Precision))


def test_a_peak_that_is_not_stated_counts_as_the_next_wider_and_is_said() -> None:
    found = predicted(HEAVY, Precision.INT8, FP32_ONLY)
    assert found.time_s == pytest.approx(1e-2)
    assert found.reason == "no int8 peak is stated: fp32 at 100 Gop/s (4 of 4 cores), 10 GB/s"
    between = predicted(HEAVY, Precision.INT8, FP32_ONLY.model_copy(update={"fp16_gops": 200.0}))
    assert between.reason.startswith("no int8 peak is stated: fp16 at 200 Gop/s")
    assert predicted(HEAVY, Precision.INT8).reason == "int8 at 400 Gop/s (4 of 4 cores), 10 GB/s"


def test_fp16_activations_are_wide_where_the_processor_computes_in_float32() -> None:
    assert widths(board(PEAK), Precision.FP16) == Widths(16, 16)
    assert widths(board(FP32_ONLY), Precision.FP16) == Widths(16, 32)
    assert widths(board(None), Precision.FP16) == Widths(16, 32)
    assert widths(board(FP32_ONLY), Precision.INT8) == Widths(8, 8)


def test_threads_share_the_arithmetic_but_not_the_bandwidth() -> None:
    assert predicted(HEAVY, Precision.FP32, threads=1).time_s == pytest.approx(4e-2)
    assert predicted(WIDE, Precision.FP32, threads=1).time_s == pytest.approx(8e-4)
    assert predicted(HEAVY, Precision.FP32, threads=99).time_s == pytest.approx(1e-2)
    default = predict([HEAVY], board(PEAK, threads=2), Precision.FP32)
    assert default is not None
    assert default.time_s == pytest.approx(2e-2)
    assert "2 of 4 cores" in default.reason


def test_a_model_is_the_sum_of_its_layers() -> None:
    found = predict([HEAVY, WIDE, WIDE], board(PEAK), Precision.FP32)
    assert found is not None
    assert found.time_s == pytest.approx(1e-2 + 2 * 8e-4)
    assert found.bound is Bound.COMPUTE
    many = predict([HEAVY, *[WIDE] * 13], board(PEAK), Precision.FP32)
    assert many is not None
    assert many.bound is Bound.MEMORY


def test_nothing_takes_no_time() -> None:
    found = predict([LayerWork(0, 0, 0)], board(PEAK), Precision.FP32)
    assert found is not None
    assert (found.time_s, found.layers[0].intensity) == (0.0, 0.0)
    assert predict([], board(PEAK), Precision.FP32) is not None


def test_a_profile_without_peaks_predicts_nothing() -> None:
    assert predict([HEAVY], board(None), Precision.INT8) is None


def test_four_bit_weights_round_up_to_bytes() -> None:
    assert Widths(4, 32).weight_bytes(3, 8) == 10


COUNTS = st.integers(min_value=0, max_value=10**12)
WORKS = st.builds(LayerWork, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS)


@given(WORKS, st.sampled_from(Precision))
def test_no_precision_is_slower_than_fp32_or_faster_than_its_own_peaks(work: LayerWork, precision: Precision) -> None:
    found, full = predicted(work, precision), predicted(work, Precision.FP32)
    assert found.time_s <= full.time_s * (1 + 1e-9)
    assert found.time_s >= work.operations / 400e9 * (1 - 1e-9)


def test_it_loads_neither_numpy_nor_onnx() -> None:
    code = "import sys; from edgefleet_device_profiles import roofline; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"numpy", "onnx"}.isdisjoint(done.stdout.split())
