"""Formulas that exporters write out in parts: recognised where they are right, and left alone where they are not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import pytest
from onnx import helper

from converters.one_node import Array
from converters.onnx_models import assert_same, build, operators, weights
from edgefleet_converters.tflite import lowering
from edgefleet_converters.tflite.importer import import_model, part
from edgefleet_converters.tflite.operators import OPERATORS
from edgefleet_converters.tflite.passes.gains import part_gains
from edgefleet_converters.tflite.passes.recognise import recognise

_SHAPE = (2, 5, 8)


def parts(*lines: str, **attributes: Mapping[str, object]) -> list[onnx.NodeProto]:
    """Nodes written as `y = Add a b`; attributes by the result's name."""
    made = []
    for line in lines:
        result, _, operator, *operands = line.split()
        made.append(helper.make_node(operator, operands, [result], **attributes.get(result, {})))
    return made


def numbers(**values: float) -> dict[str, Array]:
    """Constants of one number each."""
    return {name: np.array(value, np.float32) for name, value in values.items()}


def model(nodes: Sequence[onnx.NodeProto], constants: Mapping[str, Array]) -> onnx.ModelProto:
    """The nodes over x, at an opset where ReduceMean has its axes as an attribute."""
    return build(nodes, _SHAPE, constants, opset=17)


def recognised(found: onnx.ModelProto) -> list[str]:
    """Operators of the graph after the pass."""
    return [node.operator for node in recognise(import_model(part(found), OPERATORS).graph).nodes]


@pytest.fixture(autouse=True)
def _recognising(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowering, "CANONICAL", (recognise, part_gains, *lowering.CANONICAL))


_LAST = {"axes": [-1]}
_MEANS = {"m": _LAST, "v": _LAST}
_NORM = ("m = ReduceMean x", "c = Sub x m", "q = Pow c two", "v = ReduceMean q", "w = Add v eps", "s = Sqrt w")
_CONSTANTS = numbers(two=2, eps=1e-5, one=1, half=0.5, minus=-0.5)


def test_layer_normalization_beside_its_gain_and_offset() -> None:
    constants = {**_CONSTANTS, "g": weights(8, seed=1), "b": weights(8, seed=2)}
    found = model(parts(*_NORM, "n = Div c s", "t = Mul g n", "y = Add t b", **_MEANS), constants)
    assert recognised(found) == ["LayerNormalization", "Mul", "Add"]
    assert operators(assert_same(found)).count("RSQRT") == 1


@pytest.mark.parametrize(
    "ending",
    [
        ("y = Div c s",),
        ("r = Reciprocal s", "y = Mul c r"),
        ("r = Div one s", "y = Mul r c"),
        ("r = Pow w minus", "y = Mul c r"),
        ("r = Pow w half", "y = Div c r"),
    ],
)
def test_every_way_to_divide_by_a_root(ending: tuple[str, ...]) -> None:
    found = model(parts(*_NORM, *ending, **_MEANS), _CONSTANTS)
    assert recognised(found) == ["LayerNormalization"]
    assert_same(found)


def test_normalization_over_two_axes_with_products_for_squares() -> None:
    lines = [line.replace("Pow c two", "Mul c c") for line in _NORM]
    axes = {"axes": [-1, 1]}
    constants = {**_CONSTANTS, "g": weights(1, 5, 1, seed=1)}
    found = model(parts(*lines, "n = Div c s", "y = Mul n g", m=axes, v=axes), constants)
    assert recognised(found) == ["LayerNormalization", "Mul"]
    assert_same(found)


def test_rms_normalization() -> None:
    lines = ("q = Pow x two", "v = ReduceMean q", "w = Add eps v", "s = Sqrt w", "r = Reciprocal s", "n = Mul x r")
    found = model(parts(*lines, "y = Mul n g", v=_LAST), {**_CONSTANTS, "g": weights(8, seed=1)})
    assert recognised(found) == ["RMSNormalization", "Mul"]
    assert_same(found)


@pytest.mark.parametrize(
    "changed",
    [
        {"m": {"axes": [1]}},  # the mean of another axis: not centred
        {"m": {"axes": [0]}, "v": {"axes": [0]}},  # not the last axis
        {"v": {"axes": [1]}},
    ],
)
def test_other_axes_are_not_layer_normalization(changed: dict[str, Mapping[str, object]]) -> None:
    found = model(parts(*_NORM, "y = Div c s", **{**_MEANS, **changed}), _CONSTANTS)
    assert "LayerNormalization" not in recognised(found)
    assert_same(found, tolerance=1e-4)


_GELU = numbers(
    root=math.sqrt(2), inverse=math.sqrt(0.5), one=1, half=0.5, three=3, cubic=0.044715, pi=0.7978845834732056
)


@pytest.mark.parametrize(
    "spelling",
    [
        "d = Div x root; e = Erf d; a = Add e one; p = Mul x a; y = Mul p half",
        "h = Mul x half; d = Mul x inverse; e = Erf d; a = Add one e; y = Mul h a",
        "d = Div x root; e = Erf d; a = Add e one; g = Mul a half; y = Mul x g",
        (
            "p = Pow x three; q = Mul cubic p; s = Add x q; i = Mul pi s; e = Tanh i; a = Add one e; h = Mul half x; "
            "y = Mul h a"
        ),
        (
            "z = Mul x cubic; q = Mul z x; k = Add q one; l = Mul x pi; i = Mul l k; e = Tanh i; a = Add e one; "
            "h = Mul x half; y = Mul h a"
        ),
    ],
)
def test_gelu_in_each_spelling(spelling: str) -> None:
    found = model(parts(*spelling.split("; ")), _GELU)
    assert recognised(found) == ["Gelu"]
    assert_same(found)


def test_a_formula_with_another_constant_is_not_gelu() -> None:
    lines = ("d = Div x three", "e = Erf d", "a = Add e one", "p = Mul x a", "y = Mul p half")
    found = model(parts(*lines), _GELU)
    assert "Gelu" not in recognised(found)
    assert_same(found)


def test_parts_that_are_read_elsewhere_stay() -> None:
    lines = ("d = Div x root", "e = Erf d", "a = Add e one", "p = Mul x a", "g = Mul p half", "y = Add g e")
    found = model(parts(*lines), _GELU)
    assert recognised(found) == ["Div", "Erf", "Gelu", "Add"]
    assert_same(found)


@pytest.mark.parametrize(
    ("operator", "opset", "expected"),
    [
        ("LayerNormalization", 17, ["LayerNormalization", "Mul", "Add"]),
        ("RMSNormalization", 23, ["RMSNormalization", "Mul"]),
    ],
)
def test_gains_become_nodes_of_their_own(operator: str, opset: int, expected: list[str]) -> None:
    constants = {"g": weights(8, seed=1), "b": weights(8, seed=2)}
    names = ["x", *list(constants)[: len(expected) - 1]]
    found = build([helper.make_node(operator, names, ["y"])], _SHAPE, constants, opset=opset)
    graph = part_gains(import_model(part(found), OPERATORS).graph)
    assert [node.operator for node in graph.nodes] == expected
    assert part_gains(graph).nodes == graph.nodes
    assert_same(found)


def test_moments_that_are_read_keep_the_gain_inside() -> None:
    constants = {"g": weights(8, seed=1)}
    node = helper.make_node("LayerNormalization", ["x", "g"], ["y", "mean"])
    found = build([node], _SHAPE, constants, ("y", "mean"))
    assert [node.operator for node in part_gains(import_model(part(found), OPERATORS).graph).nodes] == [
        "LayerNormalization"
    ]
    assert_same(found)
