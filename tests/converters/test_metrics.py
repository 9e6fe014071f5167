"""Metrics, the choice among them, and what an assessment says of a variant."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from converters.scored import Arrays, measured
from edgefleet.errors import InputError, UnsupportedError
from edgefleet_converters.score.accuracy import METRICS, Counted, Weighted, auc, mae, r2, rmse, top1, top5
from edgefleet_converters.score.metrics import assess, check_source
from edgefleet_converters.score.task import Task, choose_task
from edgefleet_device_profiles.profile import Precision

ROWS = np.array([[2, 0, 1], [0, 2, 1], [0, 1, 2], [2, 1, 0]], np.float32)[:, np.newaxis]
LABELS = np.array([0, 1, 2, 2])
GENERATOR = np.random.default_rng(7)


def value(metric: Weighted, outputs: NDArray[np.generic], labels: NDArray[np.generic]) -> float:
    return float(metric.values(outputs, labels, np.ones((1, len(labels))))[0])


def brute_auc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    return float(np.mean(pairs))


def test_top1_and_top5() -> None:
    assert top1(ROWS, LABELS).tolist() == [True, True, True, False]
    ten = np.arange(10, 0, -1, dtype=np.float32) * np.ones((10, 1), np.float32)
    assert top5(ten, np.arange(10)).tolist() == [True] * 5 + [False] * 5


def test_a_nan_row_is_wrong_even_where_argmax_says_otherwise() -> None:
    outputs = np.array([[np.nan, 0], [1, 0]], np.float32)
    for metric in (top1, top5):
        assert metric(outputs, np.array([0, 0])).tolist() == [False, True]


def test_top5_of_a_dead_output_is_not_flattered_by_its_ties() -> None:
    assert top5(np.zeros((10, 10), np.float32), np.arange(10)).mean() == 0.5


def test_errors_of_numbers() -> None:
    labels = np.array([[1.0, 2.0], [3.0, 6.0]])
    outputs = np.array([[1.0, 4.0], [3.0, 6.0]], np.float32)[:, np.newaxis]
    assert value(Weighted(rmse, False), outputs, labels) == pytest.approx(1.0)
    assert value(Weighted(mae, False), outputs, labels) == pytest.approx(0.5)
    # Spread around each target's mean: 2 + 8; squared error 4.
    assert value(Weighted(r2, True), outputs, labels) == pytest.approx(1 - 4 / 10)
    assert np.isnan(value(Weighted(r2, True), outputs, np.ones((2, 2))))
    far = labels + 1e8
    assert value(Weighted(r2, True), far + 0.0, far) == pytest.approx(1.0)


def test_auc_counts_pairs_and_half_of_the_ties() -> None:
    scores = np.round(GENERATOR.normal(size=60), 1)
    positive = GENERATOR.random(60) < 0.3
    found = value(Weighted(auc, True), scores[:, np.newaxis], positive.astype(np.int64))
    assert found == pytest.approx(brute_auc(scores, positive))
    two = np.stack([-scores, scores], axis=1)[:, np.newaxis]
    assert value(Weighted(auc, True), two, positive.astype(np.int64)) == pytest.approx(found)


def test_auc_of_several_classes_is_the_mean_of_each_against_the_rest() -> None:
    scores, labels = GENERATOR.normal(size=(50, 4)), GENERATOR.integers(0, 3, 50)
    expected = np.mean([brute_auc(scores[:, kind], labels == kind) for kind in range(3)])
    assert value(Weighted(auc, True), scores, labels) == pytest.approx(expected)
    assert np.isnan(value(Weighted(auc, True), scores, np.zeros(50, np.int64)))


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if isinstance(metric, Weighted)])
def test_a_weight_counts_a_sample_as_often(name: str) -> None:
    metric = METRICS[name]
    assert isinstance(metric, Weighted)
    outputs = GENERATOR.normal(size=(30, 1))
    labels = (outputs[:, 0] + GENERATOR.normal(size=30) > 0).astype(np.int64)
    times = GENERATOR.integers(0, 4, 30)
    repeated = value(metric, np.repeat(outputs, times, axis=0), np.repeat(labels, times))
    assert metric.values(outputs, labels, times[np.newaxis].astype(np.float64))[0] == pytest.approx(repeated)


CLASSES: Arrays = {"boxes": np.zeros((4, 1, 4, 9), np.float32), "out": ROWS}
FIELD: Arrays = {"out": np.zeros((4, 1, 3, 8, 8), np.float32)}
ONE: Arrays = {"out": np.zeros((4, 1, 1), np.float32)}
INTEGERS: Arrays = {"out": np.zeros((4, 1), np.int64)}


@pytest.mark.parametrize(
    ("outputs", "labels", "task"),
    [
        (CLASSES, LABELS, Task("top1", "out")),
        (CLASSES, None, Task("agreement", "out")),
        (FIELD, None, Task("sqnr")),
        (INTEGERS, None, Task("agreement", "out")),
        (ONE, np.array([0.5, 1, 2, 3]), Task("rmse", "out")),
        (ONE, np.array([0, 1, 1, 0]), Task("auc", "out")),
        (ONE, np.array([4, 1, 7, 0]), Task("rmse", "out")),
        (CLASSES, np.zeros((4, 4, 9)), Task("rmse", "boxes")),
    ],
)
def test_the_labels_choose_the_metric(outputs: Arrays, labels: NDArray[np.generic] | None, task: Task) -> None:
    assert choose_task("auto", outputs, labels) == task


def test_a_metric_is_taken_by_its_name_or_is_the_persons_own() -> None:
    assert choose_task("top5", CLASSES, LABELS) == Task("top5", "out")
    assert choose_task("sqnr", CLASSES, None) == Task("sqnr")
    assert choose_task("map=boxes.score:mean", FIELD, LABELS) == Task("map", None, "boxes.score:mean")
    assert choose_task("score:mean", FIELD, LABELS) == Task("score:mean", None, "score:mean")


@pytest.mark.parametrize(
    ("wanted", "outputs", "labels", "text"),
    [
        ("map", CLASSES, LABELS, r"mAP has no one form of boxes: map=your_module:your_function"),
        ("f1", CLASSES, LABELS, "no metric 'f1'; choose from auto, top1, top5"),
        ("top1", CLASSES, None, "top1 needs labels"),
        ("a:b", CLASSES, None, "a:b needs labels"),
        ("top1=a:b", CLASSES, LABELS, "takes the name of a metric that is there already"),
        ("top1", FIELD, LABELS, r"top1 of labels int64 \[4\] fits no float output \(out \[1, 3, 8, 8\]\)"),
        ("agreement", FIELD, None, "no output has one row of them"),
    ],
)
def test_a_metric_that_does_not_fit_is_said(
    wanted: str, outputs: Arrays, labels: NDArray[np.generic] | None, text: str
) -> None:
    with pytest.raises(InputError, match=text):
        choose_task(wanted, outputs, labels)


def test_an_assessment_of_a_classifier() -> None:
    variant = ROWS.copy()
    variant[1] = [[2.5, 0, 1]]
    found = assess(measured(variant), measured(ROWS), LABELS)
    assert (found.score.metric, found.score.value, found.score.reference) == ("top1", 0.5, 0.75)
    assert found.score.agreement == 0.75
    assert found.score.max_abs_difference == 2.5
    assert found.score.drop_upper is not None
    assert 0.25 < found.score.drop_upper < 1
    assert (found.faults, found.metric_output) == ((), "out")
    assert found.tolerances["out"] == pytest.approx(10 / 255 * 2.5)


def test_an_assessment_without_labels_and_of_the_source_itself() -> None:
    found = assess(measured(ROWS), measured(ROWS), None).score
    assert (found.metric, found.value, found.reference, found.sqnr_db) == ("agreement", 1.0, 1.0, None)
    image = GENERATOR.normal(size=(4, 1, 3, 8, 8)).astype(np.float32)
    noisy = assess(measured(image + np.float32(0.01)), measured(image), None).score
    assert (noisy.metric, noisy.reference, noisy.value) == ("sqnr", 150.0, noisy.sqnr_db)
    assert 38 < noisy.value < 42


def test_a_growing_error_has_an_interval_too() -> None:
    labels = GENERATOR.normal(size=200)
    source, variant = (labels + GENERATOR.normal(size=200) * noise for noise in (0.1, 0.2))
    found = assess(measured(variant[:, np.newaxis]), measured(source[:, np.newaxis]), labels).score
    assert (found.metric, found.higher_is_better) == ("rmse", False)
    assert found.drop_upper is not None
    assert found.value - found.reference < found.drop_upper < 3 * (found.value - found.reference)


def test_labels_may_be_a_column_and_any_two_numbers() -> None:
    column = assess(measured(ROWS), measured(ROWS), LABELS[:, np.newaxis]).score
    assert (column.metric, column.value) == ("top1", 0.75)
    outputs = GENERATOR.normal(size=(30, 1, 1))
    signs = np.where(outputs[:, 0, 0] > 0, 1, -1)
    assert assess(measured(outputs), measured(outputs), signs, metric="auc").score.value == 1.0


def test_labels_that_are_no_numbers_are_refused() -> None:
    outputs = np.zeros((4, 1, 1), np.float32)
    with pytest.raises(InputError, match="rmse of labels with NaN"):
        assess(measured(outputs), measured(outputs), np.array([0.5, np.nan, 1, 2]))


def test_labels_of_one_class_have_no_auc() -> None:
    outputs = GENERATOR.normal(size=(8, 1, 1))
    with pytest.raises(InputError, match="not defined on these labels"):
        assess(measured(outputs), measured(outputs), np.zeros(8, np.int64), metric="auc")


HOOKS: list[tuple[str, bool, Callable[[NDArray[np.float64]], float]]] = [
    ("err=converters.scored:mean_error", False, lambda rows: float(np.mean(np.abs(rows[:, 0] - np.arange(40) % 3)))),
    ("converters.scored:best_box", True, lambda rows: float(np.mean(rows.argmax(axis=1) == np.arange(40) % 3))),
]


@pytest.mark.parametrize(("wanted", "higher", "expected"), HOOKS)
def test_a_metric_of_the_persons_own(
    wanted: str, higher: bool, expected: Callable[[NDArray[np.float64]], float]
) -> None:
    source = GENERATOR.normal(size=(40, 3))
    variant = source + 0.3 * GENERATOR.normal(size=(40, 3))
    found = assess(measured(variant), measured(source), np.arange(40) % 3, metric=wanted)
    score = found.score
    assert score.metric == wanted.partition("=")[0]
    assert score.higher_is_better is higher
    assert score.value == pytest.approx(expected(variant))
    assert score.reference == pytest.approx(expected(source))
    loss = (score.reference - score.value) * (1 if higher else -1)
    assert score.drop_upper is not None
    assert loss < score.drop_upper < loss + 0.5
    assert found.metric_output is None


@pytest.mark.parametrize(
    ("name", "variant", "kind", "text"),
    [
        ("absent:function", ROWS, InputError, "No module named 'absent'"),
        ("converters.scored:absent", ROWS, InputError, "has no attribute 'absent'"),
        ("converters.scored:broken", ROWS, InputError, r"it fails on the source's outputs: KeyError\('boxes'\)"),
        ("converters.scored:undefined", 0 * ROWS, UnsupportedError, "it gives nan for the variant"),
    ],
)
def test_a_metric_that_cannot_be_computed(
    name: str, variant: NDArray[np.generic], kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text):
        assess(measured(variant), measured(ROWS), LABELS, metric=name)


def faults(variant: NDArray[np.generic], source: NDArray[np.generic] = ROWS) -> tuple[str, ...]:
    return assess(measured(variant), measured(source), None).faults


def test_values_that_are_not_finite_are_a_fault_where_the_sources_are() -> None:
    variant = ROWS.copy()
    variant[2, 0, 1] = np.nan
    variant[3, 0, 1] = np.inf
    found = assess(measured(variant), measured(ROWS), LABELS)
    assert found.faults == ("'out' has NaN or infinite values in 2 of 4 samples",)
    # A score with NaN in it could not be written down.
    assert found.score.model_validate_json(found.score.model_dump_json()) == found.score
    masked = ROWS.copy()
    masked[2, 0, 1] = -np.inf
    assert faults(masked, masked) == ()


def test_an_output_that_stands_still_is_a_fault_unless_the_source_does_too() -> None:
    assert faults(np.full_like(ROWS, 3)) == ("every value of 'out' is the same number, and not in the fp32 source",)
    assert faults(np.repeat(ROWS[:1], 4, axis=0)) == ("'out' is the same for every sample, and not in the fp32 source",)
    constant = np.full_like(ROWS, 3)
    assert faults(constant, constant) == ()
    assert faults(constant, constant + np.float32(1e-5) * ROWS) == ()


def test_an_answer_that_changes_from_run_to_run_is_a_fault() -> None:
    """As OpenVINO's int8 autoencoder gave on a processor with AVX512-VNNI: other numbers on every run."""
    again = np.stack([ROWS[:2], ROWS[:2] + np.float32(0.5)])
    found = assess(measured({"out": ROWS}, {"out": again}), measured(ROWS), None)
    assert found.faults == ("the same input twice differs by 0.5 in 'out', more than 0.00784",)
    with pytest.raises(InputError, match="the same input twice differs"):
        check_source(measured({"out": ROWS}, {"out": again}))


def test_a_source_with_nan_cannot_be_compared_with() -> None:
    bad = ROWS.copy()
    bad[1:3, 0, 0] = np.nan
    with pytest.raises(InputError, match=r"output 'out' is NaN for 2 of 4 samples"):
        check_source(measured(bad))
    check_source(measured(ROWS))


@pytest.mark.parametrize(
    ("precision", "share"), [(Precision.FP32, 1e-3), (Precision.FP16, 1e-2), (Precision.INT8, 10 / 255)]
)
def test_the_golden_tolerance_is_a_share_of_each_outputs_own_range(precision: Precision, share: float) -> None:
    outputs: Arrays = {
        "boxes": np.array([[0.0, 640.0]], np.float32),
        "offset": np.array([[9.0, 10.0]], np.float32),
        "still": np.zeros((1, 2), np.float32),
        "count": np.array([[3, 100]], np.int64),
    }
    found = assess(measured(outputs), measured(outputs), None, precision=precision).tolerances
    assert found == pytest.approx({"boxes": 640 * share, "offset": 10 * share, "still": 1e-6, "count": 0})
    assert found["still"] > 0


def test_the_table_names_every_metric() -> None:
    assert set(METRICS) == {"top1", "top5", "auc", "rmse", "mae", "r2"}
    assert [name for name, metric in METRICS.items() if isinstance(metric, Counted)] == ["top1", "top5"]


def test_a_source_that_names_one_class_for_every_sample_is_judged_by_its_signal() -> None:
    """Agreement with it is 100 % for any file at all."""
    same = {"out": np.repeat(ROWS[:1], 4, axis=0)}
    assert choose_task("auto", same, None) == Task("sqnr")
    assert choose_task("auto", {"out": ROWS}, None) == Task("agreement", "out")
