"""The intervals: they hold what they promise on simulated data, and never collapse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgefleet_converters.score.interval import bootstrap_upper, jackknife_groups, jackknife_upper, paired_upper

Z2 = 1.959963984540054**2


def brute_score(lost: int, gained: int, samples: int, loss: float) -> float:
    """The score statistic with the likeliest share of gained samples found on a grid."""
    shares = np.linspace(1e-7, (1 - loss) / 2 - 1e-7, 400_001)
    kept = samples - lost - gained
    likelihood = lost * np.log(shares + loss) + gained * np.log(shares) + kept * np.log(1 - 2 * shares - loss)
    share = shares[likelihood.argmax()]
    return float((lost - gained - samples * loss) / np.sqrt(samples * (2 * share + loss - loss**2)))


@pytest.mark.parametrize(("lost", "gained", "samples"), [(1, 0, 44), (5, 3, 100), (12, 1, 60), (30, 28, 400)])
def test_the_end_is_where_the_score_test_turns(lost: int, gained: int, samples: int) -> None:
    assert brute_score(lost, gained, samples, paired_upper(lost, gained, samples)) == pytest.approx(-1.96, abs=2e-3)


def test_where_nothing_changed_the_end_says_how_little_so_few_samples_prove() -> None:
    for samples in (10, 100, 5000):
        assert paired_upper(0, 0, samples) == pytest.approx(Z2 / (samples + Z2))


@given(st.integers(1, 2000), st.data())
def test_the_upper_end_is_above_the_loss_and_grows_with_it(samples: int, data: st.DataObject) -> None:
    lost = data.draw(st.integers(0, samples))
    gained = data.draw(st.integers(0, samples - lost))
    upper = paired_upper(lost, gained, samples)
    assert (lost - gained) / samples <= upper <= 1
    if lost + gained < samples:
        assert paired_upper(lost + 1, gained, samples) >= upper
        assert paired_upper(lost, gained + 1, samples) <= upper + 1e-9 or lost == 0


@pytest.mark.parametrize(("lost", "gained"), [(0.01, 0.01), (0.03, 0.005), (0.1, 0.1), (0.002, 0.0)])
def test_the_paired_interval_covers_as_often_as_it_says(lost: float, gained: float) -> None:
    """The upper end of a two-sided 95 % interval is below the truth in 2.5 % of all studies; discrete, so roughly."""
    generator = np.random.default_rng(3)
    counts = generator.multinomial(500, [lost, gained, 1 - lost - gained], size=2000)
    covered = np.mean([paired_upper(int(a), int(b), 500) >= lost - gained for a, b, _ in counts])
    assert 0.96 <= covered <= 1


def test_the_bootstrap_covers_as_often_as_it_says() -> None:
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(200):
        losses = generator.normal(0.02, 0.1, 200)
        covered += bootstrap_upper(lambda weights, losses=losses: weights @ losses / 200, 200) >= 0.02  # type: ignore[misc]
    assert 0.94 <= covered / 200 <= 0.995


def test_the_bootstrap_is_seeded_and_leaves_out_what_is_not_defined() -> None:
    losses = np.random.default_rng(1).normal(size=50)

    def loss(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        means = weights @ losses / 50
        return np.where(means < -0.1, np.nan, means)

    assert bootstrap_upper(loss, 50) == bootstrap_upper(loss, 50)
    assert np.isfinite(bootstrap_upper(loss, 50))
    assert np.isnan(bootstrap_upper(lambda weights: np.full(len(weights), np.nan), 50))


def test_the_jackknife_agrees_with_the_formula_for_a_mean() -> None:
    """For a mean, leaving out groups gives its usual standard error, but for the groups' own noise."""
    losses = np.random.default_rng(2).normal(0, 1, 4000)
    groups = jackknife_groups(4000)
    assert len(groups) == 20
    assert sorted(4000 - len(stay) for stay in groups) == [200] * 20
    left_out = np.concatenate([np.setdiff1d(np.arange(4000), stay) for stay in groups])
    assert sorted(left_out) == list(range(4000))
    upper = jackknife_upper(float(losses.mean()), [float(losses[stay].mean()) for stay in groups])
    expected = 2.093 * losses.std(ddof=1) / np.sqrt(4000)
    assert upper - losses.mean() == pytest.approx(expected, rel=0.4)


def test_too_few_samples_have_no_groups() -> None:
    assert jackknife_groups(19) == []
