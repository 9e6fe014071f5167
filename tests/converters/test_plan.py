"""Planning: a pure rule from profiles and the source's forms to variants and refused pairs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgefleet.errors import UnsupportedError
from edgefleet_converters.artefact import Form
from edgefleet_converters.plan import make_plan
from edgefleet_converters.recipes import RECIPES
from edgefleet_device_profiles import catalogue
from edgefleet_device_profiles.profile import AllowedRuntime, Precision, Profile, Runtime

LITERT = (Runtime.LITERT, Precision.INT8)
ORT = (Runtime.ONNXRUNTIME, Precision.INT8)


def profile(identity: str, architecture: str, *runtimes: tuple[Runtime, Precision]) -> Profile:
    known = catalogue.load("generic-x86-64")
    return known.model_copy(
        update={
            "id": identity,
            "cpu": known.cpu.model_copy(update={"architecture": architecture}),
            "runtimes": tuple(
                AllowedRuntime(name=runtime, version=">=1", precisions=(precision,), reason="because")
                for runtime, precision in runtimes
            ),
        }
    )


def test_a_recipe_that_two_architectures_want_is_planned_once_each_runtime_with_a_float_fallback() -> None:
    plan = make_plan([profile("pi", "arm64", LITERT), profile("nuc", "amd64", LITERT)], [Form.ONNX])
    assert [planned.name for planned in plan.variants] == ["litert-int8", "litert-fp16"]
    assert plan.variants[0].architectures == ("amd64", "arm64")
    assert plan.variants[0].profiles == ("pi", "nuc")
    assert plan.variants[0].reasons == ("pi: choice 1, because", "nuc: choice 1, because")
    assert plan.variants[1].reasons[0] == "pi: choice 1, a float variant to fall back to"
    assert plan.refused == ()


# Nothing that they run starts from an ONNX file.
APPLE = {"iphone"}


@pytest.mark.parametrize("name", sorted(set(catalogue.names()) - APPLE))
def test_every_profile_of_the_catalogue_gets_something_from_an_onnx_model_and_a_reason_for_the_rest(name: str) -> None:
    board = catalogue.load(name)
    plan = make_plan([board], [Form.ONNX])
    wanted = {(allowed.name, precision) for allowed in board.runtimes for precision in allowed.choices}
    planned = {(variant.runtime, variant.precision) for variant in plan.variants}
    refused = {(pair.runtime, pair.precision) for pair in plan.refused}
    assert planned | refused == wanted
    assert not planned & refused
    assert all(pair.reason for pair in plan.refused)


@pytest.mark.parametrize("name", sorted(APPLE))
def test_a_device_that_gets_nothing_from_an_onnx_model_is_an_error_with_all_reasons(name: str) -> None:
    with pytest.raises(UnsupportedError, match=f"planning for {name}: coreml .* starts from torch, the model is onnx"):
        make_plan([catalogue.load(name)], [Form.ONNX])


def test_a_form_that_no_recipe_starts_from_is_a_refused_pair() -> None:
    plan = make_plan([profile("phone", "arm64", LITERT, (Runtime.EXECUTORCH, Precision.FP32))], [Form.ONNX])
    assert {planned.runtime for planned in plan.variants} == {Runtime.LITERT}
    (pair,) = plan.refused
    assert (pair.profile, pair.runtime, pair.precision) == ("phone", Runtime.EXECUTORCH, Precision.FP32)


def test_a_limit_of_the_device_is_a_refused_pair_and_all_of_them_an_error() -> None:
    small = profile("small", "arm64", LITERT)
    plan = make_plan(
        [small], [Form.ONNX], lambda _p, _a, precision: None if precision is Precision.INT8 else "14 MB, 8 MB are free"
    )
    assert [pair.reason for pair in plan.refused] == ["14 MB, 8 MB are free"]
    with pytest.raises(UnsupportedError, match=r"planning for small: litert int8: too large; litert fp16: too large"):
        make_plan([small], [Form.ONNX], lambda *_: "too large")


@st.composite
def boards(draw: st.DrawFn) -> list[Profile]:
    """Devices with any runtimes and any precisions of theirs."""
    found = []
    for place in range(draw(st.integers(1, 3))):
        runtimes = draw(st.lists(st.sampled_from(Runtime), min_size=1, max_size=4, unique=True))
        allowed = tuple(
            AllowedRuntime(
                name=runtime,
                version=">=1",
                precisions=tuple(draw(st.lists(st.sampled_from(Precision), min_size=1, unique=True))),
                reason="because",
            )
            for runtime in runtimes
        )
        board = profile(f"board-{place}", draw(st.sampled_from(("amd64", "arm64", "arm"))))
        found.append(board.model_copy(update={"runtimes": allowed}))
    return found


@given(boards(), st.sets(st.sampled_from(Form), min_size=1))
def test_every_wish_is_planned_once_or_refused_with_a_reason(wishes: list[Profile], forms: set[Form]) -> None:
    pairs = [(board.id, one.name, kind) for board in wishes for one in board.runtimes for kind in one.choices]
    made_of = {pair: set(recipe.steps) for pair, recipe in RECIPES.items()}
    served = {board for board, runtime, kind in pairs if made_of.get((runtime, kind), set()) & forms}
    empty = [board.id for board in wishes if board.id not in served]
    if empty:
        with pytest.raises(UnsupportedError, match=f"planning for {empty[0]}: "):
            make_plan(wishes, forms)
        return
    plan = make_plan(wishes, forms)
    planned = [(name, made.runtime, made.precision) for made in plan.variants for name in made.profiles]
    refused = [(pair.profile, pair.runtime, pair.precision) for pair in plan.refused]
    assert sorted([*planned, *refused]) == sorted(pairs)
    assert all(pair.reason for pair in plan.refused)
    assert len({made.name for made in plan.variants}) == len(plan.variants)
    assert all(set(made.recipe.steps) & forms for made in plan.variants)
    assert plan == make_plan(wishes, forms)
