"""Which precisions suit which models: shares of arithmetic and of parameters, and the refusal with the numbers."""

from __future__ import annotations

import pytest

from conformance_graphs.networks import mobilenet_v2
from conformance_graphs.sequences import bert, keywords
from converters import recipe_models
from edgefleet.errors import UnsupportedError
from edgefleet_converters.analysis import analyze
from edgefleet_converters.suitability import (
    CONVOLUTIONS,
    MATRICES,
    RULES,
    require_suitable,
    share_of_macs,
    share_of_parameters,
)
from edgefleet_device_profiles.profile import Precision, Runtime

ORT = Runtime.ONNXRUNTIME


@pytest.mark.parametrize("precision", [precision for _, precision in RULES])
def test_transformers_and_dense_networks_pass(precision: Precision) -> None:
    for model in (bert(), recipe_models.transformer(), recipe_models.autoencoder()):
        require_suitable(ORT, precision, analyze(model))


@pytest.mark.parametrize("precision", [precision for _, precision in RULES])
def test_convolutional_networks_are_refused(precision: Precision) -> None:
    with pytest.raises(UnsupportedError, match=rf"^converting to onnxruntime {precision}: .*\d%"):
        require_suitable(ORT, precision, analyze(mobilenet_v2()))


def test_a_pair_without_a_rule_suits_all() -> None:
    require_suitable(ORT, Precision.INT8, analyze(mobilenet_v2()))


def test_shares() -> None:
    dense = analyze(recipe_models.autoencoder())
    assert share_of_macs(dense, MATRICES) == 1.0
    assert share_of_macs(dense, CONVOLUTIONS) == 0.0
    assert share_of_parameters(dense, MATRICES) > 0.97
    mixed = analyze(keywords())
    assert 0 < share_of_macs(mixed, CONVOLUTIONS) < 1
