"""How long to wait after failures: doubling, capped, and never an overflow."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet.retry import backoff_s


@pytest.mark.parametrize(
    ("failures", "wanted"), [(1, 1.0), (2, 2.0), (3, 4.0), (6, 32.0), (7, 60.0), (8, 60.0), (100, 60.0)]
)
def test_it_doubles_up_to_the_cap(failures: int, wanted: float) -> None:
    assert backoff_s(failures, 1.0, 60.0) == wanted


@pytest.mark.parametrize("failures", [1025, 10_000, 10**9, 10**400])
def test_a_week_of_failures_is_no_overflow(failures: int) -> None:
    """2.0**1024 raises OverflowError: an agent that was offline for hours ended by it."""
    assert backoff_s(failures, 1.0, 60.0) == 60.0


def test_no_failure_yet_waits_like_the_first() -> None:
    assert backoff_s(0, 2.0, 60.0) == 2.0


def test_a_first_wait_above_the_cap_is_capped() -> None:
    assert backoff_s(1, 90.0, 60.0) == 60.0


@given(st.floats(0.01, 100.0), st.floats(0.01, 1000.0))
def test_it_never_goes_down_nor_above_the_cap(first_s: float, cap_s: float) -> None:
    waits = [backoff_s(failures, first_s, cap_s) for failures in range(1, 40)]
    assert all(a <= b <= cap_s for a, b in itertools.pairwise(waits))
    assert isinstance(waits[0], float)
