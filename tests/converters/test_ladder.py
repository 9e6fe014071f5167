"""The ladder: what is tried for which runtime, in which order, and that it ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet_converters.gate import Status
from edgefleet_converters.ladder import (
    MOST_FLOAT_MACS,
    Attempt,
    Tried,
    best,
    explain,
    first_attempts,
    next_attempts,
    wants_culprits,
)
from edgefleet_converters.plan import PlannedVariant
from edgefleet_converters.sensitivity import Branch, Conflict, LayerNoise, Sensitivity
from edgefleet_converters.step import Ranges, Settings
from edgefleet_device_profiles.profile import Precision, Runtime

FAILED, UNPROVEN, PASSED = Status.FAILED, Status.UNPROVEN, Status.PASSED


def planned(runtime: Runtime, precision: Precision = Precision.INT8) -> PlannedVariant:
    return PlannedVariant(runtime, precision, ("arm64",), ("pi",), ("because",))


def tried(
    status: Status = FAILED,
    loss: float | None = 0.5,
    sqnr_db: float | None = 9.0,
    size_bytes: int = 100,
    why: str = "x",
) -> Tried:
    return Tried(Attempt(Settings(), why), status, loss, sqnr_db, size_bytes)


def layer(tensor: str, share: float, sqnr_db: float | None, *readers: str) -> LayerNoise:
    return LayerNoise(
        tensor=tensor,
        operator="Conv",
        macs_share=share,
        sqnr_db=sqnr_db,
        max_abs=1,
        float_tensors=(tensor, *readers),
    )


CONFLICT = Conflict(
    tensor="joined",
    widest=Branch(tensor="boxes", low=0, high=640),
    narrowest=Branch(tensor="scores", low=0, high=1),
    float_tensors=("joined", "y"),
)
CULPRITS = Sensitivity(
    layers=(
        layer("big", 0.5, 3.0),
        layer("a", 0.05, 4.0, "b"),
        layer("b", 0.05, 5.0),
        *(layer(f"small{place}", 0.02, 10.0 + place) for place in range(20)),
    ),
    samples=8,
)


def ladder(runtime: Runtime, culprits: Sensitivity | None) -> list[Attempt]:
    """Everything that is tried when nothing helps."""
    variant = planned(runtime)
    found, waiting = list[Attempt](), first_attempts(variant)
    while waiting:
        found += waiting
        failed = [Tried(attempt, FAILED, 0.5, 9.0, 100) for attempt in found]
        waiting = next_attempts(variant, failed, culprits)
    return found


@pytest.mark.parametrize(
    ("runtime", "ranges"),
    [
        (Runtime.LITERT, ["minmax", "percentile", "mse"]),
        (Runtime.OPENVINO, ["minmax", "mean"]),
        (Runtime.ONNXRUNTIME, ["minmax", "percentile"]),
        (Runtime.TENSORRT, ["minmax"]),
    ],
)
def test_each_runtime_has_its_ranges(runtime: Runtime, ranges: list[str]) -> None:
    assert [attempt.settings.ranges for attempt in ladder(runtime, None)] == ranges


def test_openvino_tries_both_ranges_at_once_and_the_better_is_kept() -> None:
    attempts = first_attempts(planned(Runtime.OPENVINO))
    found = [Tried(attempt, PASSED, 0.0, db, 100) for attempt, db in zip(attempts, (30.0, 38.0), strict=True)]
    assert best(found).attempt.settings.ranges is Ranges.MEAN
    assert next_attempts(planned(Runtime.OPENVINO), found, CULPRITS) == ()


def test_a_precision_without_a_ladder_is_tried_once() -> None:
    variant = planned(Runtime.LITERT, Precision.FP16)
    (attempt,) = first_attempts(variant)
    assert attempt.settings == variant.settings
    failed = [Tried(attempt, FAILED, 0.5, 9.0, 100)]
    assert next_attempts(variant, failed, CULPRITS) == ()
    assert not wants_culprits(variant, failed)


def test_mixed_precision_grows_and_leaves_most_macs_in_int8() -> None:
    mixed = [attempt for attempt in ladder(Runtime.LITERT, CULPRITS) if attempt.settings.float_tensors]
    # The layer that costs most has half of all, and is passed over.
    assert mixed[0].settings.float_tensors == ("a", "b")
    assert mixed[1].settings.float_tensors == ("a", "b", "small0", "small1", "small2")
    assert mixed[2].settings.float_tensors == ("a", "b", *(f"small{place}" for place in range(10)))
    assert len(mixed) == 3
    assert "'a'" in mixed[0].why
    assert "10%" in mixed[0].why
    for one in mixed:
        assert CULPRITS.macs_share(one.settings.float_tensors) <= MOST_FLOAT_MACS


def test_conflicting_branches_are_the_first_rung_and_stay_on_it() -> None:
    mixed = ladder(Runtime.ONNXRUNTIME, CULPRITS.model_copy(update={"conflicts": (CONFLICT,)}))[2:]
    assert mixed[0].settings.float_tensors == ("joined", "y")
    assert "the branches of the Concat 'joined' differ 640 x in range" in mixed[0].why
    assert all(one.settings.float_tensors[:2] == ("joined", "y") for one in mixed)
    assert mixed[1].settings.float_tensors == ("joined", "y", "a", "b")


def test_mixed_precision_takes_the_ranges_that_did_best() -> None:
    variant = planned(Runtime.LITERT)
    ranges = (Ranges.MINMAX, Ranges.PERCENTILE, Ranges.MSE)
    failed = [
        Tried(Attempt(Settings(ranges=one), "x"), FAILED, loss, 9.0, 100)
        for one, loss in zip(ranges, (0.5, 0.2, 0.3), strict=True)
    ]
    assert wants_culprits(variant, failed)
    (attempt,) = next_attempts(variant, failed, CULPRITS)
    assert attempt.settings.ranges is Ranges.PERCENTILE


def test_what_the_profiles_want_stays_on_every_rung() -> None:
    variant = replace(planned(Runtime.ONNXRUNTIME), settings=Settings(activations="int8"))
    (first,) = first_attempts(variant)
    failed = [Tried(first, FAILED, 0.5, 9.0, 100)]
    (second,) = next_attempts(variant, failed, None)
    assert (first.settings.activations, second.settings.activations) == ("int8", "int8")


def test_culprits_are_wanted_only_when_the_ranges_are_used_up() -> None:
    variant = planned(Runtime.ONNXRUNTIME)
    first = [Tried(attempt, FAILED, 0.5, 9.0, 100) for attempt in first_attempts(variant)]
    assert not wants_culprits(variant, first)
    both = [*first, *(Tried(attempt, FAILED, 0.5, 9.0, 100) for attempt in next_attempts(variant, first, None))]
    assert wants_culprits(variant, both)
    assert not wants_culprits(variant, [*both, tried(UNPROVEN)])
    assert next_attempts(variant, [*both, tried(UNPROVEN)], CULPRITS) == ()


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (tried(PASSED, 0.02), tried(UNPROVEN, 0.0)),
        (tried(UNPROVEN, 0.02), tried(FAILED, 0.0)),
        (tried(PASSED, 0.0, 20.0), tried(PASSED, 0.01, 40.0)),
        (tried(PASSED, 0.0, 40.0, 900), tried(PASSED, 0.0, 20.0, 100)),
        (tried(PASSED, 0.0, None, 900), tried(PASSED, 0.0, 40.0, 100)),
        (tried(PASSED, 0.0, 40.0, 100), tried(PASSED, 0.0, 40.0, 900)),
        (tried(FAILED, 0.9, 1.0), tried(FAILED, None, None)),
    ],
)
def test_the_better_one(better: Tried, worse: Tried) -> None:
    assert best([worse, better]) is better
    assert best([better, worse]) is better


def test_the_story_names_the_culprits_and_what_stands_in() -> None:
    culprits = CULPRITS.model_copy(update={"conflicts": (CONFLICT,)})
    text = explain(planned(Runtime.LITERT), [tried(), tried(why="the other")], culprits)
    assert "2 attempts" in text
    assert CONFLICT.text in text
    assert "'big' (Conv, 3.0 dB alone)" in text
    assert "the float variants of litert stand in for it" in text
    assert explain(planned(Runtime.LITERT), [tried(PASSED)], None) == ""


shares = st.floats(0, 1)
noises = st.one_of(st.none(), st.floats(-150, 150))
names = st.sampled_from([f"t{place}" for place in range(9)])


@st.composite
def sensitivities(draw: st.DrawFn) -> Sensitivity:
    tensors = draw(st.lists(names, unique=True, max_size=9))
    layers = tuple(layer(name, draw(shares), draw(noises), *draw(st.lists(names, max_size=3))) for name in tensors)
    conflict = CONFLICT.model_copy(update={"float_tensors": tuple(draw(st.lists(names, min_size=1, max_size=3)))})
    return Sensitivity(layers=layers, conflicts=draw(st.sampled_from([(), (conflict,)])), samples=8)


@given(
    runtime=st.sampled_from(Runtime),
    precision=st.sampled_from([Precision.INT8, Precision.FP16]),
    settings=st.builds(Settings, activations=st.sampled_from(["int8", "uint8"])),
    culprits=sensitivities(),
    outcomes=st.lists(st.tuples(st.one_of(st.none(), st.floats(0, 1)), noises), min_size=20, max_size=20),
)
def test_it_ends_repeats_nothing_and_gives_a_reason(
    runtime: Runtime,
    precision: Precision,
    settings: Settings,
    culprits: Sensitivity,
    outcomes: list[tuple[float | None, float | None]],
) -> None:
    variant = replace(planned(runtime, precision), settings=settings)
    done, waiting = list[Tried](), first_attempts(variant)
    while waiting:
        for attempt in waiting:
            loss, sqnr_db = outcomes[len(done)]
            done.append(Tried(attempt, FAILED, loss, sqnr_db, 100))
        waiting = next_attempts(variant, done, culprits if wants_culprits(variant, done) else None)
    made = [one.attempt for one in done]
    assert len({attempt.settings for attempt in made}) == len({attempt.label for attempt in made}) == len(made)
    assert all(attempt.why for attempt in made)
    assert all(attempt.settings.activations == settings.activations for attempt in made)
