"""Sensitivity: the layer that costs the accuracy comes first, and what must stay in float with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from conformance_graphs.judge import inputs_of
from conformance_graphs.networks import NETWORKS
from converters.hard_models import SIDE, Workbench, outlier, shared_scale
from converters.onnx_models import build, in_onnxruntime, weights
from edgefleet.errors import UnsupportedError
from edgefleet_converters.score.layer_noise import quantised, rank, rounded
from edgefleet_converters.score.layers import find_layers
from edgefleet_converters.sensitivity import SensitivityJob, find_sensitivity

Feeds = list[dict[str, NDArray[np.generic]]]


def feeds(count: int = 6, shape: tuple[int, ...] = (1, 3, SIDE, SIDE)) -> Feeds:
    random = np.random.default_rng(1)
    return [{"x": random.normal(size=shape).astype(np.float32)} for _ in range(count)]


def test_the_outlier_layer_is_first_and_its_reader_stays_with_it(tmp_path: Path) -> None:
    bench = Workbench(outlier(), tmp_path)
    found = find_sensitivity(SensitivityJob(source=bench.source, samples=bench.samples))
    worst = found.layers[0]
    assert (worst.tensor, worst.operator) == ("wide_relu", "Conv")
    assert worst.sqnr_db is not None
    assert worst.sqnr_db < 20
    assert worst.float_tensors == ("wide", "wide_relu", "b", "b_relu")
    assert found.macs_share(worst.float_tensors) < 0.3
    assert found.macs_share([layer.tensor for layer in found.layers]) == pytest.approx(1)
    ranked = [layer.sqnr_db for layer in found.layers if layer.sqnr_db is not None]
    assert ranked == sorted(ranked)
    assert found.tried == len(found.layers) == 4
    assert found.conflicts == ()


def test_a_source_that_cannot_run_is_one_clear_line(tmp_path: Path) -> None:
    bench = Workbench(outlier(), tmp_path)
    np.savez(bench.samples, x=np.zeros((2, 1, 5), np.float32))
    with pytest.raises(UnsupportedError, match="finding the layers that cost the accuracy"):
        find_sensitivity(SensitivityJob(source=bench.source, samples=bench.samples))


def test_branches_that_cannot_share_a_scale_are_a_conflict() -> None:
    (conflict,) = rank(shared_scale(), feeds(), most_layers=64, budget_s=60).conflicts
    assert (conflict.tensor, conflict.widest.tensor, conflict.narrowest.tensor) == ("joined", "boxes", "scores")
    assert conflict.float_tensors == ("joined", "y")
    assert "the branches of the Concat 'joined' differ" in conflict.text


def _joined(second: onnx.NodeProto, *behind: onnx.NodeProto) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["a"]),
        second,
        helper.make_node("Concat", ["a", "b"], ["joined"], axis=1),
        *(behind or (helper.make_node("Transpose", ["joined"], ["y"], perm=[0, 2, 3, 1]),)),
    ]
    constants = {"eight": np.array(8, np.float32), "zero": np.array(0, np.float32), "w": weights(2, 6, 1, 1)}
    return build(nodes, (1, 3, 4, 4), {**constants, "thousand": np.array(1000, np.float32)})


@pytest.mark.parametrize(
    "model",
    [
        _joined(helper.make_node("Mul", ["a", "eight"], ["b"])),
        _joined(helper.make_node("Mul", ["a", "zero"], ["b"])),
        _joined(helper.make_node("Mul", ["a", "thousand"], ["b"]), helper.make_node("Conv", ["joined", "w"], ["y"])),
    ],
    ids=["8 x apart", "one is always 0", "not at the end"],
)
def test_other_concats_are_none(model: onnx.ModelProto) -> None:
    assert rank(model, feeds(2, (1, 3, 4, 4)), most_layers=64, budget_s=60).conflicts == ()


def test_a_concat_behind_a_concat_goes_with_it() -> None:
    model = _joined(
        helper.make_node("Mul", ["a", "thousand"], ["b"]),
        helper.make_node("Concat", ["joined", "a"], ["more"], axis=1),
        helper.make_node("Reshape", ["more", "flat"], ["y"]),
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, -1]), "flat"))
    found = rank(model, feeds(2, (1, 3, 4, 4)), most_layers=64, budget_s=60).conflicts
    assert [conflict.float_tensors for conflict in found] == [("joined", "more", "y"), ("more", "y")]


@pytest.mark.parametrize("name", ["MobileNetV3", "YOLO-style detector", "NHWC as tf2onnx writes"])
def test_every_layer_of_a_usual_network_is_ranked(name: str) -> None:
    make: Callable[[], onnx.ModelProto] = NETWORKS[name]
    model = make()
    found = rank(model, [inputs_of(model, 0), inputs_of(model, 1)], most_layers=12, budget_s=60)
    assert found.tried == 12
    assert sum(layer.macs_share for layer in found.layers) == pytest.approx(1)
    made = {tensor for node in model.graph.node for tensor in node.output}
    assert all(made.issuperset(layer.float_tensors) for layer in found.layers)
    assert bool(found.conflicts) == (name == "YOLO-style detector")


def test_no_layer_is_begun_after_the_budget() -> None:
    found = rank(outlier(), feeds(2), most_layers=64, budget_s=0)
    assert found.tried == 0
    assert len(found.layers) == 4


def test_only_the_layer_asked_for_is_rounded() -> None:
    model, x = outlier(), feeds(1)[0]["x"].astype(np.float32)
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in ("wide_relu", "b_relu"))
    layer = next(one for one in find_layers(model).found if one.tensor == "b_relu")
    span = (0.0, float(in_onnxruntime(shown, x)["b_relu"].max()))
    before, after = in_onnxruntime(shown, x), in_onnxruntime(quantised(shown, layer, span), x)
    np.testing.assert_array_equal(after["wide_relu"], before["wide_relu"])
    assert len(np.unique(after["b_relu"])) <= 256 < len(np.unique(before["b_relu"]))


def test_a_mask_of_minus_infinity_does_not_stop_the_ranking() -> None:
    mask = np.where(np.arange(4) < 3, 0, -np.inf).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["scores"]),
        helper.make_node("Add", ["scores", "mask"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["y"], axis=-1),
    ]
    model = build(nodes, (1, 3, 4, 4), {"w": weights(2, 3, 1, 1), "mask": mask})
    found = rank(model, feeds(2, (1, 3, 4, 4)), most_layers=64, budget_s=60)
    assert found.tried == 3
    assert all(np.isfinite(layer.max_abs) for layer in found.layers)


def test_rounding_keeps_the_ends_of_the_range_and_zero() -> None:
    array = np.array([-1.0, 0.0, 0.4999, 3.0, 9.0], np.float32)
    found = rounded(array, (-1.0, 3.0))
    step = 4 / 255
    np.testing.assert_allclose(found, [-1.0, 0.0, 0.5, 3.0, 3.0], atol=step)
    assert found[1] == 0
    np.testing.assert_array_equal(rounded(np.zeros(3, np.float32), (0.0, 0.0)), np.zeros(3))
