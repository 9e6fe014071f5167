"""Mixed precision and other ranges in real files: what int8 ruins passes the gate with few layers in float."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from onnx import helper

from conformance_graphs.judge import inputs_of
from conformance_graphs.networks import NETWORKS
from conformance_graphs.random_graphs import random_graph
from converters.hard_models import SIDE, Workbench, outlier, shared_scale
from converters.onnx_models import build, weights
from edgefleet.errors import InputError, UnsupportedError
from edgefleet.package.manifest import TensorSpec
from edgefleet_converters.artefact import Artefact
from edgefleet_converters.gate import Status
from edgefleet_converters.ladder import MOST_FLOAT_MACS, Attempt, Tried, best, first_attempts, next_attempts
from edgefleet_converters.plan import PlannedVariant
from edgefleet_converters.score.layer_noise import rank
from edgefleet_converters.score.layers import find_layers
from edgefleet_converters.sensitivity import Sensitivity
from edgefleet_converters.step import Ranges, Settings
from edgefleet_converters.steps.quantize_tflite import quantize
from edgefleet_converters.steps.tflite_layers import float_results
from edgefleet_converters.steps.tflite_ranges import find_ranges
from edgefleet_converters.tflite import lower
from edgefleet_device_profiles.profile import Precision, Runtime

Array = NDArray[np.generic]


def culprits(bench: Workbench) -> Sensitivity:
    with np.load(bench.samples) as stored:
        feeds = [{"x": x} for x in stored["x"][:8]]
    return rank(bench.model, feeds, most_layers=64, budget_s=60)


def climbed(bench: Workbench, runtime: Runtime, found: Sensitivity) -> list[Tried]:
    """The whole ladder."""
    variant = PlannedVariant(runtime, Precision.INT8, ("arm64",), ("pi",), ("because",))
    tried, waiting = list[Tried](), first_attempts(variant)
    while waiting:
        tried += [bench.climb(runtime, attempt) for attempt in waiting]
        waiting = next_attempts(variant, tried, found)
    return tried


@pytest.mark.parametrize("runtime", [Runtime.LITERT, Runtime.ONNXRUNTIME])
def test_boxes_and_scores_in_one_output_pass_once_the_concat_is_float(runtime: Runtime, tmp_path: Path) -> None:
    bench = Workbench(shared_scale(), tmp_path)
    (noise,) = bench.assess(runtime, bench.convert(runtime, Settings())).noise
    assert noise.whole_db is not None
    assert noise.worst_db is not None
    assert noise.whole_db > 50
    assert noise.worst_db < 10
    tried = climbed(bench, runtime, culprits(bench))
    assert all(one.status is Status.FAILED for one in tried[:-1])
    assert "the branches of the Concat 'joined' differ" in tried[-1].attempt.why
    assert tried[-1].attempt.settings.float_tensors == ("joined", "y")
    assert tried[-1].status is Status.PASSED
    assert tried[-1].size_bytes <= tried[0].size_bytes * 1.05


def test_openvino_keeps_the_concat_in_float_too(tmp_path: Path) -> None:
    bench = Workbench(shared_scale(), tmp_path)
    tried = bench.climb(Runtime.OPENVINO, Attempt(Settings(float_tensors=("joined", "y")), "as the others"))
    assert tried.status is Status.PASSED


WIDE = ("wide", "wide_relu", "b", "b_relu")


@pytest.mark.parametrize("runtime", [Runtime.LITERT, Runtime.ONNXRUNTIME])
def test_an_outlier_layer_in_float_saves_the_rest(runtime: Runtime, tmp_path: Path) -> None:
    bench = Workbench(outlier(), tmp_path)
    found = culprits(bench)
    tried = climbed(bench, runtime, found)
    *before, last = tried
    assert all(one.status is Status.FAILED for one in before)
    assert {one.attempt.settings.float_tensors for one in before} == {()}
    assert last.status is Status.PASSED
    assert best(tried) is last
    assert last.attempt.settings.float_tensors == WIDE
    assert found.macs_share(WIDE) <= MOST_FLOAT_MACS


def test_an_outlier_layer_in_float_saves_the_rest_in_openvino(tmp_path: Path) -> None:
    bench = Workbench(outlier(), tmp_path)
    # As int8 as a whole it has 5 dB, like the others.
    tried = bench.climb(Runtime.OPENVINO, Attempt(Settings(float_tensors=WIDE), "as the others"))
    assert tried.status is Status.PASSED


def stored_types(content: bytes) -> dict[str, type]:
    """Name of every tensor that an operator of the file returns → its type."""
    interpreter = Interpreter(model_content=content, num_threads=1)
    details = {item["index"]: item for item in interpreter.get_tensor_details()}
    operators = [operator for operator in interpreter._get_ops_details() if operator["op_name"] != "DELEGATE"]
    return {details[at]["name"]: details[at]["dtype"] for operator in operators for at in operator["outputs"]}


def saved(model: onnx.ModelProto, folder: Path) -> Artefact:
    path = folder / "source.onnx"
    onnx.save(model, path)
    anything = (TensorSpec(name="x", dtype="float32", shape=(1,)),)
    return Artefact(files=(path,), inputs=anything, outputs=anything)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_of_the_source_is_found_in_the_file(name: str, tmp_path: Path) -> None:
    make: Callable[[], onnx.ModelProto] = NETWORKS[name]
    model = make()
    source, content = saved(model, tmp_path), lower(model, int8=True).content
    layers = find_layers(model).found
    found = {layer.tensor: set(float_results(content, source, layer.tensors)) for layer in layers}
    assert all(found.values())
    # Together they are all that computes anything; what is left moves values.
    rest = set(stored_types(content)) - set().union(*found.values())
    moving = {name for node in model.graph.node for name in node.output} - {layer.tensor for layer in layers}
    # A name with a slash is the lowering's own, for a part of a layer or of a move.
    assert {name for name in rest if "/" not in name} <= moving


def test_what_must_stay_float_with_a_layer_is_found_whatever_the_layout(tmp_path: Path) -> None:
    """Random graphs: outputs that are another layout of a tensor, and nodes that nothing reads, among them."""
    for seed in range(40):
        model = random_graph(seed)
        source, content = saved(model, tmp_path), lower(model, int8=True).content
        layers = find_layers(model)
        for layer in layers.found:
            assert float_results(content, source, layers.kept_with(layer)), (seed, layer.tensor)


@pytest.mark.parametrize("name", ["MobileNetV3", "ResNet", "encoder-decoder"])
def test_the_layers_named_are_float_and_the_others_int8(name: str, tmp_path: Path) -> None:
    make: Callable[[], onnx.ModelProto] = NETWORKS[name]
    model = make()
    source, lowered = saved(model, tmp_path), lower(model, int8=True)
    feeds = [in_file_layout(lowered.inputs[0].permutation, inputs_of(model, seed)) for seed in range(2)]
    convolutions = [layer for layer in find_layers(model).found if layer.node.op_type == "Conv"]
    kept = [name for layer in convolutions[1:3] for name in layer.tensors]
    names = float_results(lowered.content, source, kept)
    plain = stored_types(quantize(lowered.content, feeds))
    mixed = stored_types(quantize(lowered.content, feeds, kept_float=names))
    assert {plain[name] for name in names} == {np.int8}
    assert {mixed[name] for name in names} == {np.float32}
    others = [name for name, kind in plain.items() if kind is np.int8 and name not in names and name in mixed]
    assert len(others) > len(names)
    assert {mixed[name] for name in others if not name.endswith("_dequant")} == {np.int8}


def in_file_layout(permutation: tuple[int, ...] | None, feed: Mapping[str, Array]) -> dict[str, Array]:
    return {
        name: np.ascontiguousarray(array.transpose(permutation) if permutation else array)
        for name, array in feed.items()
    }


@pytest.mark.parametrize("runtime", [Runtime.LITERT, Runtime.ONNXRUNTIME])
def test_a_tensor_of_no_layer_is_refused(runtime: Runtime, tmp_path: Path) -> None:
    bench = Workbench(outlier(), tmp_path)
    with pytest.raises(InputError, match="keeping 'nowhere' in float"):
        bench.convert(runtime, Settings(float_tensors=("nowhere",)))


def test_a_model_that_is_to_stay_float_as_a_whole_is_refused(tmp_path: Path) -> None:
    bench = Workbench(outlier(), tmp_path)
    everything = tuple(name for layer in find_layers(bench.model).found for name in layer.tensors)
    with pytest.raises(UnsupportedError, match="no operator of it becomes int8, with those that are to stay in float"):
        bench.convert(Runtime.LITERT, Settings(float_tensors=everything))


SPIKE = 50.0


def spiky() -> tuple[bytes, list[dict[str, Array]]]:
    """A 1 x 1 convolution that changes nothing, and samples between -1 and 1 but for one value of one sample."""
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    model = build([node], (1, 4, 32, 32), {"w": np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1)})
    random = np.random.default_rng(5)
    samples: list[dict[str, Array]] = [
        {"x": random.uniform(-1, 1, size=(1, 32, 32, 4)).astype(np.float32)} for _ in range(4)
    ]
    samples[2]["x"][0, 3, 3, 0] = SPIKE
    return lower(model, int8=True).content, samples


def test_ranges_in_litert_are_what_the_settings_say() -> None:
    content, samples = spiky()
    found = {ranges: find_ranges(content, samples, ranges) for ranges in Ranges}
    assert found[Ranges.MINMAX] == {}
    assert set(found[Ranges.PERCENTILE]) == {"x", "y"}
    low, high = found[Ranges.MEAN]["y"]
    assert low == pytest.approx(-1, abs=0.01)
    assert high == pytest.approx((SPIKE + 3) / 4, abs=0.1)
    assert found[Ranges.PERCENTILE]["y"][1] < 1.1
    assert found[Ranges.MSE]["y"][1] <= SPIKE
    for spans in (found[Ranges.PERCENTILE], found[Ranges.MSE]):
        assert all(low <= 0 <= high and low < high for low, high in spans.values())


def test_percentile_ranges_reach_the_file() -> None:
    content, samples = spiky()
    scales = {}
    for ranges in (Ranges.MINMAX, Ranges.PERCENTILE):
        made = quantize(content, samples, ranges=find_ranges(content, samples, ranges))
        details = Interpreter(model_content=made).get_tensor_details()
        scales[ranges] = max(item["quantization"][0] for item in details if item["dtype"] is np.int8)
    assert scales[Ranges.MINMAX] == pytest.approx((SPIKE + 1) / 255, rel=0.02)
    assert scales[Ranges.PERCENTILE] < 2.2 / 255


def test_a_tensor_that_is_always_zero_has_a_range_all_the_same() -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["dead"]), helper.make_node("Conv", ["dead", "v"], ["y"])]
    constants = {"w": np.zeros((4, 4, 1, 1), np.float32), "v": weights(4, 4, 1, 1)}
    content = lower(build(nodes, (1, 4, 8, 8), constants), int8=True).content
    samples: list[dict[str, Array]] = [{"x": np.ones((1, 8, 8, 4), np.float32)}]
    for ranges in (Ranges.MEAN, Ranges.PERCENTILE, Ranges.MSE):
        spans = find_ranges(content, samples, ranges)
        assert spans["dead"][1] > spans["dead"][0]


LOWEST = float(np.finfo(np.float32).min)


@pytest.mark.parametrize("form", ["pads of the pool", "lowest number", "minus infinity", "another value"])
def test_max_pool_padding_as_in_resnet50_does_not_fail(form: str) -> None:
    """What stands before the first pool of a ResNet without its Relu: any sign, one row and column of padding."""
    values = {"lowest number": LOWEST, "minus infinity": -np.inf, "another value": -1.0}
    pool = {"kernel_shape": [3, 3], "strides": [2, 2]}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], pads=[3] * 4, strides=[2, 2])]
    if form in values:
        nodes.append(helper.make_node("Pad", ["c", "around", "value"], ["padded"]))
        nodes.append(helper.make_node("MaxPool", ["padded"], ["pooled"], **pool))
    else:
        nodes.append(helper.make_node("MaxPool", ["c"], ["pooled"], pads=[1] * 4, **pool))
    nodes.append(helper.make_node("Conv", ["pooled", "v"], ["y"]))
    constants = {
        "w": weights(8, 3, 7, 7) * 0.1,
        "v": weights(8, 8, 1, 1),
        "around": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "value": np.array(values.get(form, 0), np.float32),
    }
    content = lower(build(nodes, (1, 3, 2 * SIDE, 2 * SIDE), constants), int8=True).content
    random = np.random.default_rng(3)
    shape = (1, 2 * SIDE, 2 * SIDE, 3)
    samples: list[dict[str, Array]] = [{"x": random.normal(size=shape).astype(np.float32)} for _ in range(4)]
    made = quantize(content, samples)
    expected, found = (
        Interpreter(model_content=file, num_threads=1).get_signature_runner()(x=samples[0]["x"])["y"]
        for file in (content, made)
    )
    assert 10 * np.log10(np.sum(expected**2) / np.sum((expected - found) ** 2)) > 30
