"""An int8 file is judged by what it loses beside fake quantisation."""

from __future__ import annotations

import math
from functools import partial

import pytest

from conformance.verdicts import Verdict
from conformance_graphs.building import Building
from conformance_graphs.judge import Graph
from conformance_graphs.quantized import WITHIN_DB, judge_int8, signal_to_noise, verdict_of


@pytest.mark.parametrize("found", [50.0, 40.0, 40.0 - WITHIN_DB])
def test_as_good_as_fake_quantisation_passes(found: float) -> None:
    assert verdict_of(found, 40.0).verdict is Verdict.PASSED


@pytest.mark.parametrize("found", [38.9, -3.0, -math.inf, math.nan])
def test_worse_than_fake_quantisation_is_wrong_with_both_numbers(found: float) -> None:
    outcome = verdict_of(found, 40.0)
    assert outcome.verdict is Verdict.WRONG
    assert "40.0 dB" in outcome.reason


def test_a_graph_whose_outputs_never_change_is_not_compared() -> None:
    b = Building(1)
    still = b.node("Softmax", b.node("GlobalAveragePool", b.input(1, 3, 4, 4)), axis=2)
    assert signal_to_noise(b.model(still)) is None
    found = judge_int8(Graph("", "", partial(b.model, still)))
    assert found.verdict is Verdict.PASSED
    assert not found.measured


def test_an_output_that_never_changes_hides_no_other() -> None:
    b = Building(2)
    given = b.input(1, 3, 4, 4)
    moving = b.conv(given, 4)
    alone = signal_to_noise(b.model(moving))
    still = b.node("Softmax", b.node("GlobalAveragePool", given), axis=2)
    assert alone is not None
    assert signal_to_noise(b.model(still, moving)) == pytest.approx(alone)


def test_fake_quantisation_rounds_what_is_only_moved() -> None:
    b = Building(3)
    found = signal_to_noise(b.model(b.node("Transpose", b.input(1, 3, 32, 32), perm=[0, 2, 1, 3])))
    assert found is not None
    # 255 steps over about 8 standard deviations.
    assert 35 < found[1] < 50
