"""ONNX Runtime's recipes on real files: every precision, every kind of range, mixed precision, and the same bytes."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from converters import recipe_models
from converters.onnx_models import build
from converters.recipe_runs import Made
from edgefleet.errors import InputError, UnsupportedError
from edgefleet_converters.recipes import ORT_ACTIVATIONS, RECIPES
from edgefleet_converters.step import Ranges, Settings
from edgefleet_converters.steps.onnx_ranges import BINS, LIMITS, find_ranges
from edgefleet_converters.steps.quantize_onnx_fp16 import narrow_weights
from edgefleet_converters.steps.quantize_onnx_int4 import BLOCK, quantize_blocks
from edgefleet_device_profiles.profile import Precision, Runtime

ORT = Runtime.ONNXRUNTIME
PRECISIONS = [precision for runtime, precision in RECIPES if runtime is ORT]
# Least signal to noise, and largest share of the source's bytes.
TRANSFORMER = {
    Precision.FP32: (290.0, 1.0),
    Precision.FP16: (55.0, 0.6),
    Precision.INT8: (25.0, 0.45),
    Precision.INT8_DYNAMIC: (25.0, 0.4),
    Precision.INT4_WEIGHTS: (14.0, 0.3),
}
CONVOLUTIONS = {Precision.FP32: 290.0, Precision.FP16: 55.0, Precision.INT8: 28.0}


def test_every_precision_of_the_table_is_tested() -> None:
    assert set(TRANSFORMER) == set(PRECISIONS)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_transformer_in_every_precision(transformer: Made, precision: Precision) -> None:
    made = transformer.convert(ORT, precision)
    least_db, share = TRANSFORMER[precision]
    assert transformer.worst_db(ORT, made) >= least_db
    assert made.size_bytes <= share * transformer.onnx_form.size_bytes
    assert (made.inputs, made.outputs) == (transformer.source.inputs, transformer.source.outputs)


@pytest.mark.parametrize("precision", CONVOLUTIONS)
def test_convolutions_with_two_inputs_and_outputs(convolutions: Made, precision: Precision) -> None:
    assert convolutions.worst_db(ORT, convolutions.convert(ORT, precision)) >= CONVOLUTIONS[precision]


@pytest.mark.parametrize("precision", [Precision.INT8_DYNAMIC, Precision.INT4_WEIGHTS])
def test_a_convolutional_network_is_refused_with_the_numbers(convolutions: Made, precision: Precision) -> None:
    with pytest.raises(
        UnsupportedError, match=r"\d+% of this model's.*; choose int8 or fp16 for this model$"
    ) as refused:
        convolutions.convert(ORT, precision)
    assert "\n" not in str(refused.value)


def test_ranks_3_and_5(tmp_path: Path) -> None:
    made = Made(tmp_path, recipe_models.volumes())
    assert made.worst_db(ORT, made.convert(ORT, Precision.INT8)) >= 30


def _dense(bias: tuple[int, ...]) -> onnx.ModelProto:
    generator = np.random.default_rng(3)
    constants = {
        "w": generator.normal(size=(16, 10)).astype(np.float32),
        "b": generator.normal(size=bias).astype(np.float32),
    }
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["product"]),
        onnx.helper.make_node("Add", ["product", "b"], ["y"]),
    ]
    return build(nodes, (1, 16), constants)


@pytest.mark.parametrize("bias", [(10,), (1, 10)])
def test_a_bias_may_be_a_row(tmp_path: Path, bias: tuple[int, ...]) -> None:
    """As scikit-learn and TensorFlow write a dense layer."""
    made = Made(tmp_path, _dense(bias))
    assert made.worst_db(ORT, made.convert(ORT, Precision.INT8)) >= 30


def test_a_file_that_would_be_all_float_is_not_called_int8(tmp_path: Path) -> None:
    made = Made(tmp_path, _dense((10,)))
    with pytest.raises(UnsupportedError, match="none of the weights would be int8"):
        made.convert(ORT, Precision.INT8, Settings(float_tensors=("product", "y")))


@pytest.mark.parametrize("ranges", LIMITS)
def test_a_mask_of_infinities_decides_no_range(tmp_path: Path, ranges: Ranges) -> None:
    mask = np.where(np.arange(10) < 7, 0.0, -np.inf).astype(np.float32)
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["product"]),
        onnx.helper.make_node("Add", ["product", "mask"], ["masked"]),
        onnx.helper.make_node("Softmax", ["masked"], ["y"]),
    ]
    weights = np.random.default_rng(3).normal(size=(16, 10)).astype(np.float32)
    model = onnx.shape_inference.infer_shapes(build(nodes, (1, 16), {"w": weights, "mask": mask}))
    onnx.save(model, tmp_path / "model.onnx")
    feeds: list[dict[str, NDArray[np.generic]]] = [
        {"x": np.random.default_rng(seed).normal(size=(1, 16)).astype(np.float32)} for seed in range(8)
    ]
    found = find_ranges(tmp_path / "model.onnx", feeds, ranges)
    assert set(found) == {"x", "product", "masked", "y"}
    assert np.isfinite(list(found.values())).all()
    assert found["masked"][0] >= found["product"][0]


def test_the_same_inputs_give_the_same_bytes(
    transformer: Made, convolutions: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two processes whose sets are in another order."""
    for made, precision in [*((transformer, precision) for precision in PRECISIONS), (convolutions, Precision.INT8)]:
        first = made.convert(ORT, precision).files[0].read_bytes()
        monkeypatch.setenv("PYTHONHASHSEED", "4")
        assert made.convert(ORT, precision, again=True).files[0].read_bytes() == first


def _activation_types(path: Path) -> set[str]:
    """Types to which activations are quantised."""
    graph = onnx.load(path).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    zeros = [constants[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]
    return {numpy_helper.to_array(zero).dtype.name for zero in zeros}


@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_the_profile_chooses_the_type_of_activations(convolutions: Made, activations: str) -> None:
    settings = Settings.model_validate({"activations": activations})
    made = convolutions.convert(ORT, Precision.INT8, settings)
    assert _activation_types(made.files[0]) == {activations}
    assert convolutions.worst_db(ORT, made) >= 28


def test_x86_wants_unsigned_activations_and_arm_signed_ones() -> None:
    assert ORT_ACTIVATIONS == {"amd64": "uint8", "arm64": "int8", "arm": "int8"}


def test_clipped_ranges_survive_an_outlier(tmp_path: Path) -> None:
    made = Made(tmp_path, recipe_models.convolutions(), count=200)
    np.asarray(made.samples["x"])[-1, 0, 0, 0, 0] = 200.0
    found = {
        ranges: made.worst_db(ORT, made.convert(ORT, Precision.INT8, Settings(ranges=ranges)))
        for ranges in (Ranges.MINMAX, Ranges.PERCENTILE, Ranges.MSE)
    }
    assert found[Ranges.MINMAX] < 15
    # The squared error of the one outlier still counts.
    assert found[Ranges.MSE] > found[Ranges.MINMAX] + 0.5
    assert found[Ranges.PERCENTILE] > 25


def _scale(path: Path, tensor: str) -> float:
    found = [item for item in onnx.load(path).graph.initializer if item.name == f"{tensor}_scale"]
    return float(numpy_helper.to_array(found[0]))


def test_mean_ranges_are_narrower(convolutions: Made) -> None:
    plain, mean = (
        convolutions.convert(ORT, Precision.INT8, Settings(ranges=ranges)) for ranges in (Ranges.MINMAX, Ranges.MEAN)
    )
    wide, narrow = (_scale(variant.files[0], "x") for variant in (plain, mean))
    assert 0.4 * wide < narrow < 0.95 * wide


def test_limits_of_a_histogram() -> None:
    """10,000 values in [0, 1] and one at 100."""
    edges = np.linspace(-1.0, 100.0, BINS + 1)
    counts = np.zeros(BINS, np.int64)
    inside = (edges[:-1] >= 0) & (edges[1:] <= 1.05)
    counts[inside] = 20_000 // inside.sum()
    counts[-1] = 1
    low, high = LIMITS[Ranges.PERCENTILE](counts, edges)
    assert low == 0.0
    assert high == pytest.approx(1.05, abs=0.06)
    wide = LIMITS[Ranges.MSE](counts, edges)
    assert wide[0] >= -1.0
    assert 29 <= wide[1] <= 100
    counts[-1] = 0
    assert LIMITS[Ranges.MSE](counts, edges)[1] == pytest.approx(30.0)


def _in_float(path: Path) -> list[str]:
    """Outputs of the convolutions that read no dequantised weights."""
    graph = onnx.load(path).graph
    widened = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    return [node.output[0] for node in convolutions if node.input[1] not in widened]


def test_layers_stay_in_float_by_their_names_in_the_source(convolutions: Made) -> None:
    nodes = onnx.load(convolutions.onnx_form.files[0]).graph.node
    first, second, _ = (node for node in nodes if node.op_type == "Conv")
    assert _in_float(convolutions.convert(ORT, Precision.INT8).files[0]) == []
    # Their BatchNormalization is folded into them, so their own outputs are no more.
    settings = Settings(float_tensors=(first.output[0], second.output[0]))
    assert len(_in_float(convolutions.convert(ORT, Precision.INT8, settings).files[0])) == 2


def test_a_layer_that_is_not_there_cannot_stay_in_float(convolutions: Made) -> None:
    with pytest.raises(InputError, match=r"^keeping 'nothing' in float: "):
        convolutions.convert(ORT, Precision.INT8, Settings(float_tensors=("nothing",)))


def test_a_residual_add_has_one_scale_for_each_tensor(convolutions: Made) -> None:
    """NNCF's ONNX backend gave it one for each channel, and ONNX Runtime refused the file."""
    graph = onnx.load(convolutions.convert(ORT, Precision.INT8).files[0]).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    made = {name: node for node in graph.node for name in node.output}
    (added,) = [node for node in graph.node if node.op_type == "Add"]
    scales = [constants[made[name].input[1]] for name in added.input]
    assert [list(scale.dims) for scale in scales] == [[], []]


def _loaded(path: Path, folder: Path) -> list[str]:
    """Operators that ONNX Runtime really runs."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "loaded.onnx")
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "loaded.onnx").graph.node]


def test_float16_weights_cost_no_operators(convolutions: Made, tmp_path: Path) -> None:
    narrow, wide = (convolutions.convert(ORT, precision) for precision in (Precision.FP16, Precision.FP32))
    assert "Cast" in [node.op_type for node in onnx.load(narrow.files[0]).graph.node]
    assert sorted(_loaded(narrow.files[0], tmp_path)) == sorted(_loaded(wide.files[0], tmp_path))


@pytest.mark.parametrize("factor", [1e6, 1e-8])
def test_weights_that_float16_cannot_hold_stay(convolutions: Made, factor: float) -> None:
    model = onnx.load(convolutions.onnx_form.files[0])
    big = max(model.graph.initializer, key=lambda tensor: int(np.prod(tensor.dims)))
    big.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(big) * np.float32(factor), big.name))
    narrow_weights(model)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert kinds[big.name] == onnx.TensorProto.FLOAT
    assert onnx.TensorProto.FLOAT16 in kinds.values()


def test_a_transformer_keeps_its_attention_scores_in_float(transformer: Made) -> None:
    """Under one int8 scale with a mask of -10,000 they would be one level."""
    graph = onnx.load(transformer.convert(ORT, Precision.INT8).files[0]).graph
    quantised = {node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    sums = [node for node in graph.node if node.op_type == "Add"]
    softmaxes = [node for node in graph.node if node.op_type == "Softmax"]
    assert len(softmaxes) == 2
    for softmax in softmaxes:
        assert softmax.input[0] not in quantised
        assert softmax.input[0] in {node.output[0] for node in sums}


def test_blocks_of_4_bits_are_at_most_half_a_step_off() -> None:
    rows = np.random.default_rng(1).normal(size=(5, 70)).astype(np.float32)
    rows[2] = 0
    levels, scales, zeros = quantize_blocks(rows)
    assert levels.shape == (5, 3, BLOCK)
    widened = (levels.astype(np.float32) - zeros[..., np.newaxis]) * scales[..., np.newaxis]
    errors = np.abs(widened.reshape(5, -1)[:, :70] - rows)
    steps = np.repeat(scales, BLOCK, axis=1)[:, :70]
    # The zero point is a whole level, so the lowest and highest value may lose another half.
    assert (errors <= 1.01 * steps).all()
    assert (errors.mean(axis=1) <= 0.3 * steps.mean(axis=1)).all()
    assert (errors[2] == 0).all()


def test_gemm_and_matmul_both_get_4_bits(transformer: Made) -> None:
    source = onnx.load(transformer.onnx_form.files[0]).graph
    graph = onnx.load(transformer.convert(ORT, Precision.INT4_WEIGHTS).files[0]).graph
    weights = {tensor.name for tensor in source.initializer}
    products = [n for n in source.node if n.op_type in ("MatMul", "Gemm") and weights & set(n.input)]
    assert {n.op_type for n in products} == {"MatMul", "Gemm"}
    assert [n.op_type for n in graph.node].count("MatMulNBits") == len(products)


def test_no_step_hands_an_onnx_model_to_nncf() -> None:
    """Its ONNX backend writes files that ONNX Runtime refuses, and with 4-bit weights invalid ones."""
    folder = Path(__file__).parents[2] / "converters" / "edgefleet_converters" / "steps"
    texts = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.py")}
    with_nncf = {name for name, text in texts.items() if "import nncf" in text}
    assert with_nncf == {"compress_openvino_int4.py", "compress_openvino_int8.py", "quantize_openvino.py"}
    for name, word in itertools.product(with_nncf, ("import onnx", "onnx.load", "nncf.onnx")):
        assert word not in texts[name]
