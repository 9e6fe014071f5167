"""An int8 file is judged by what it loses beside fake quantisation."""

from __future__ import annotations

import math

import pytest

from conformance.verdicts import Verdict
from conformance_graphs.quantized import WITHIN_DB, verdict_of


@pytest.mark.parametrize("found", [50.0, 40.0, 40.0 - WITHIN_DB])
def test_as_good_as_fake_quantisation_passes(found: float) -> None:
    assert verdict_of(found, 40.0).verdict is Verdict.PASSED


@pytest.mark.parametrize("found", [38.9, -3.0, -math.inf, math.nan])
def test_worse_than_fake_quantisation_is_wrong_with_both_numbers(found: float) -> None:
    outcome = verdict_of(found, 40.0)
    assert outcome.verdict is Verdict.WRONG
    assert "40.0 dB" in outcome.reason
