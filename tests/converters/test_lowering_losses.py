"""NegativeLogLikelihoodLoss and SoftmaxCrossEntropyLoss against ONNX Runtime; ignored labels may be no class at all."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from onnx import helper

from converters.node_checks import Array, check
from converters.onnx_models import weights

SHAPES = ((4, 5), (4, 5, 3), (2, 5, 3, 2), (2, 3, 2, 2, 2))


def _given(shape: tuple[int, ...], ignored: int | None, *, weighted: bool) -> dict[str, Array]:
    """Scores [N, C, ...], labels [N, ...] of which some are the ignored one, and weights [C] if asked for."""
    random = np.random.default_rng(3)
    labels = random.integers(0, shape[1], size=(shape[0], *shape[2:]))
    if ignored is not None:
        labels = np.where(random.random(labels.shape) < 0.3, ignored, labels)
    given: dict[str, Array] = {"x": weights(*shape), "t": labels}
    if weighted:
        given["w"] = np.abs(weights(shape[1], seed=2)) + np.float32(0.1)
    return given


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("ignored", [None, 2, -1, 10])
@pytest.mark.parametrize("operator", ["NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"])
def test_loss(operator: str, reduction: str, ignored: int | None) -> None:
    attributes: dict[str, object] = {"reduction": reduction}
    if ignored is not None:
        attributes["ignore_index"] = ignored
    outputs = ["y"] if operator.startswith("Negative") else ["y", "log_probabilities"]
    for shape, weighted in itertools.product(SHAPES, (False, True)):
        given = _given(shape, ignored, weighted=weighted)
        check(helper.make_node(operator, list(given), outputs, **attributes), given, opset=13)


def test_an_impossible_class_costs_nothing_where_it_is_not_the_label() -> None:
    scores = np.array([[0.0, -np.inf], [-1.0, -2.0]], np.float32)
    given: dict[str, Array] = {"x": scores, "t": np.array([0, 1])}
    found = check(helper.make_node("NegativeLogLikelihoodLoss", ["x", "t"], ["y"], reduction="none"), given, opset=13)
    assert np.isfinite(found["y"]).all()
