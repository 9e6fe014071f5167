"""ONNX files for TensorRT: every rule of explicit quantisation holds, and the numbers are the source's.

No engine is built here; ONNX Runtime runs the same graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from converters.onnx_models import build, in_onnxruntime, weights
from edgefleet.package.manifest import TensorSpec
from edgefleet_converters.artefact import Artefact, Form
from edgefleet_converters.recipes import RECIPES
from edgefleet_converters.step import Context, Ranges, Settings
from edgefleet_converters.steps import narrow_tensorrt, quantize_tensorrt
from edgefleet_device_profiles.profile import Precision, Runtime

Floats = NDArray[np.float32]
SHAPE = (1, 8, 12, 12)


def residual_net() -> onnx.ModelProto:
    """A residual sum of convolutions; a plain and a grouped transposed one; pooling; two products."""
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], "stem", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c0"], ["r0"], "relu"),
        helper.make_node("Conv", ["r0", "w1", "b0"], ["c1"], "inner", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c1", "r0"], ["sum"], "residual"),
        helper.make_node("ConvTranspose", ["sum", "w2"], ["up"], "up", strides=[2, 2]),
        helper.make_node("ConvTranspose", ["up", "w3"], ["grouped"], "grouped", group=4),
        helper.make_node("GlobalAveragePool", ["grouped"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "flat"),
        helper.make_node("Gemm", ["flat", "w4", "b4"], ["hidden"], "gemm", transB=1),
        helper.make_node("MatMul", ["hidden", "w5"], ["y"], "head"),
    ]
    constants: dict[str, NDArray[np.generic]] = {
        "w0": weights(8, 8, 3, 3, seed=1) / 8,
        "b0": weights(8, seed=2),
        "w1": weights(8, 8, 3, 3, seed=3) / 8,
        "w2": weights(8, 4, 2, 2, seed=4) / 4,
        "w3": weights(4, 1, 2, 2, seed=5),
        "w4": weights(16, 4, seed=6),
        "b4": weights(16, seed=7),
        "w5": weights(16, 5, seed=8),
    }
    return build(nodes, SHAPE, constants)


def attention_net() -> onnx.ModelProto:
    """Scores of two computed matrices, and their product with a third."""
    nodes = [
        helper.make_node("MatMul", ["x", "wq"], ["q"], "query"),
        helper.make_node("MatMul", ["x", "wk"], ["k"], "key"),
        helper.make_node("Transpose", ["k"], ["kt"], "turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"], "scores"),
        helper.make_node("Softmax", ["scores"], ["p"], "softmax", axis=-1),
        helper.make_node("MatMul", ["p", "x"], ["mixed"], "mix"),
        helper.make_node("Add", ["mixed", "bias"], ["y"], "bias"),
    ]
    constants: dict[str, NDArray[np.generic]] = {
        "wq": weights(16, 16, seed=1) / 4,
        "wk": weights(16, 16, seed=2) / 4,
        "bias": weights(16, seed=3),
    }
    return build(nodes, (1, 6, 16), constants)


def step(
    model: onnx.ModelProto, folder: Path, module: object, samples: Floats | None = None, **settings: object
) -> onnx.ModelProto:
    """The file that a step makes of a model."""
    onnx.save(model, folder / "source.onnx")
    shape = tuple(axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim)
    spec = TensorSpec(name="x", dtype="float32", shape=shape)
    artefact = Artefact(
        files=(folder / "source.onnx",), inputs=(spec,), outputs=(spec.model_copy(update={"name": "y"}),)
    )
    given = samples if samples is not None else weights(32, *shape, seed=9)
    chosen = Settings.model_validate(settings)
    found = module.run(artefact, Context({"x": given}, folder, chosen))  # type: ignore[attr-defined] # a step module
    made = onnx.load(found.files[0])
    onnx.checker.check_model(made, full_check=True)
    return made


def arrays(model: onnx.ModelProto) -> dict[str, NDArray[np.generic]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def pair_of(model: onnx.ModelProto, name: str) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    """The QuantizeLinear and the DequantizeLinear that a tensor comes out of."""
    made = {output: node for node in model.graph.node for output in node.output}
    dequantize = made[name]
    assert dequantize.op_type == "DequantizeLinear"
    quantize = made[dequantize.input[0]]
    assert quantize.op_type == "QuantizeLinear"
    return quantize, dequantize


def named(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def quantized(model: onnx.ModelProto, *operators: str) -> list[str]:
    """Names of the nodes of these types that read something that is int8."""
    made = {output: node.op_type for node in model.graph.node for output in node.output}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in operators and any(made.get(name) == "DequantizeLinear" for name in node.input)
    ]


def loss_db(expected: Sequence[Floats], found: Sequence[Floats]) -> float:
    signal = sum(float(np.sum(np.square(each, dtype=np.float64))) for each in expected)
    noise = sum(float(np.sum(np.square(a - b, dtype=np.float64))) for a, b in zip(expected, found, strict=True))
    return 10 * float(np.log10(signal / noise))


@pytest.mark.parametrize("make", [residual_net, attention_net])
def test_every_pair_is_symmetric_int8_with_positive_constant_scales(tmp_path: Path, make: object) -> None:
    model = step(make(), tmp_path, quantize_tensorrt)  # type: ignore[operator] # one of the functions above
    constants = arrays(model)
    nodes = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(nodes) >= 8
    for node in nodes:
        scale, zero = constants[node.input[1]], constants[node.input[2]]
        assert scale.dtype == np.float32
        assert (scale.astype(np.float32) > 0).all()
        assert zero.dtype == np.int8
        assert not zero.any()
        assert zero.shape == scale.shape
    for dequantize in (node for node in nodes if node.op_type == "DequantizeLinear"):
        quantize, _ = pair_of(model, dequantize.output[0])
        assert list(quantize.input[1:]) == list(dequantize.input[1:])
        assert list(quantize.attribute) == list(dequantize.attribute)


def test_weights_have_a_scale_for_each_output_channel_and_stay_float32(tmp_path: Path) -> None:
    model = step(residual_net(), tmp_path, quantize_tensorrt)
    constants = arrays(model)
    for name, axis, channels in (("stem", 0, 8), ("inner", 0, 8), ("up", 1, 4), ("gemm", 0, 16), ("head", 1, 5)):
        quantize, _ = pair_of(model, named(model, name).input[1])
        weight, scale = constants[quantize.input[0]], constants[quantize.input[1]]
        assert weight.dtype == np.float32
        assert scale.shape == (channels,)
        assert helper.get_node_attr_value(quantize, "axis") == axis
        others = tuple(place for place in range(weight.ndim) if place != axis)
        np.testing.assert_allclose(np.abs(weight).max(axis=others) / scale, 127, rtol=1e-5)


def test_biases_and_what_follows_a_product_stay_float(tmp_path: Path) -> None:
    model = step(residual_net(), tmp_path, quantize_tensorrt)
    constants = arrays(model)
    assert constants[named(model, "stem").input[2]].dtype == np.float32
    assert constants[named(model, "gemm").input[2]].dtype == np.float32
    assert TensorProto.INT32 not in {tensor.data_type for tensor in model.graph.initializer}
    products = {name for node in model.graph.node if node.op_type == "Conv" for name in node.output}
    assert not [node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] in products]
    assert quantized(model, "Relu", "GlobalAveragePool", "Flatten", "Softmax") == []


def test_a_residual_is_read_from_the_pair_that_the_next_convolution_reads(tmp_path: Path) -> None:
    model = step(residual_net(), tmp_path, quantize_tensorrt)
    made = {output: node for node in model.graph.node for output in node.output}
    total = next(node for node in model.graph.node if node.op_type == "Add")
    kinds = [made[name].op_type for name in total.input]
    assert sorted(kinds) == ["Conv", "DequantizeLinear"]
    residual = total.input[kinds.index("DequantizeLinear")]
    assert residual == named(model, "inner").input[0]


def test_a_transposed_convolution_in_groups_stays_float(tmp_path: Path) -> None:
    model = step(residual_net(), tmp_path, quantize_tensorrt)
    assert quantized(model, "ConvTranspose") == ["up"]


def test_products_of_two_computed_matrices_are_int8_and_constant_sums_are_not(tmp_path: Path) -> None:
    model = step(attention_net(), tmp_path, quantize_tensorrt)
    assert sorted(quantized(model, "MatMul")) == ["key", "mix", "query", "scores"]
    for name in named(model, "scores").input:
        assert arrays(model)[pair_of(model, name)[0].input[1]].shape == ()
    assert quantized(model, "Add") == []


@pytest.mark.parametrize("make", [residual_net, attention_net])
@pytest.mark.parametrize("ranges", list(Ranges))
def test_int8_keeps_the_outputs(tmp_path: Path, make: object, ranges: Ranges) -> None:
    source: onnx.ModelProto = make()  # type: ignore[operator] # one of the functions above
    model = step(source, tmp_path, quantize_tensorrt, ranges=ranges)
    shape = [axis.dim_value for axis in source.graph.input[0].type.tensor_type.shape.dim]
    inputs = [weights(*shape, seed=seed) for seed in range(100, 108)]
    expected = [in_onnxruntime(source, x)["y"] for x in inputs]
    found = [in_onnxruntime(model, x)["y"] for x in inputs]
    assert loss_db(expected, found) > 25


def test_the_mean_of_the_ranges_is_below_the_largest(tmp_path: Path) -> None:
    scales = []
    for ranges in (Ranges.MINMAX, Ranges.MEAN):
        folder = tmp_path / ranges
        folder.mkdir()
        samples = weights(8, *SHAPE, seed=11)
        model = step(residual_net(), folder, quantize_tensorrt, samples, ranges=ranges)
        quantize, _ = pair_of(model, named(model, "stem").input[0])
        scales.append(float(arrays(model)[quantize.input[1]]))
    largest = np.abs(weights(8, *SHAPE, seed=11)).reshape(8, -1).max(axis=1)
    assert scales == pytest.approx([largest.max() / 127, largest.mean() / 127], rel=1e-6)


def test_layers_that_are_asked_for_stay_float(tmp_path: Path) -> None:
    model = step(residual_net(), tmp_path, quantize_tensorrt, float_tensors=("c0", "y"))
    assert quantized(model, "Conv", "Gemm", "MatMul") == ["inner", "gemm"]


def test_a_tensor_that_is_always_zero_gets_a_scale_above_zero(tmp_path: Path) -> None:
    model = step(residual_net(), tmp_path, quantize_tensorrt, np.zeros((4, *SHAPE), np.float32))
    x = np.zeros(SHAPE, np.float32)
    np.testing.assert_allclose(in_onnxruntime(model, x)["y"], in_onnxruntime(residual_net(), x)["y"], atol=0.2)


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        made.append(step(residual_net(), tmp_path / name, quantize_tensorrt).SerializeToString())
    assert made[0] == made[1]


@pytest.mark.parametrize("module", [quantize_tensorrt, narrow_tensorrt])
@pytest.mark.parametrize("make", [residual_net, attention_net])
def test_only_operators_of_the_onnx_standard_are_used(tmp_path: Path, module: object, make: object) -> None:
    model = step(make(), tmp_path, module)  # type: ignore[operator] # one of the functions above
    assert {node.domain for node in model.graph.node} == {""}


def test_fp16_halves_the_weights_and_keeps_the_borders(tmp_path: Path) -> None:
    source = residual_net()
    model = step(source, tmp_path, narrow_tensorrt)
    assert {tensor.data_type for tensor in model.graph.initializer} == {TensorProto.FLOAT16}
    borders = [*model.graph.input, *model.graph.output]
    assert {item.type.tensor_type.elem_type for item in borders} == {TensorProto.FLOAT}
    x = weights(*SHAPE, seed=12)
    assert loss_db([in_onnxruntime(source, x)["y"]], [in_onnxruntime(model, x)["y"]]) > 50


def test_no_variant_for_tensorrt_is_scored_here_and_all_start_from_onnx() -> None:
    rows = {precision: recipe for (runtime, precision), recipe in RECIPES.items() if runtime is Runtime.TENSORRT}
    assert set(rows) == {Precision.FP32, Precision.FP16, Precision.INT8}
    for recipe in rows.values():
        assert not recipe.scored
        assert set(recipe.steps) == {Form.ONNX}
