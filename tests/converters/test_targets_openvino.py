"""OpenVINO's recipes on real files: every precision, from ONNX and from TFLite, mixed precision, and the same bytes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from converters import recipe_models
from converters.recipe_runs import Made
from edgefleet.errors import InputError, UnsupportedError
from edgefleet_converters.artefact import Artefact, Form
from edgefleet_converters.recipes import RECIPES
from edgefleet_converters.score.openvino_runner import open_model
from edgefleet_converters.step import Context, Ranges, Settings
from edgefleet_converters.steps import lower_tflite
from edgefleet_device_profiles.profile import Precision, Runtime

OPENVINO = Runtime.OPENVINO
PRECISIONS = [precision for runtime, precision in RECIPES if runtime is OPENVINO]
# Least signal to noise, and largest .bin as a share of the source's bytes.
TRANSFORMER = {
    Precision.FP32: (100.0, 1.0),
    Precision.FP16: (55.0, 0.52),
    Precision.INT8: (25.0, 0.35),
    Precision.INT8_WEIGHTS: (30.0, 0.3),
    Precision.INT4_WEIGHTS: (14.0, 0.25),
}
CONVOLUTIONS = {Precision.FP32: 100.0, Precision.FP16: 55.0, Precision.INT8: 28.0, Precision.INT8_WEIGHTS: 30.0}


def test_every_precision_of_the_table_is_tested() -> None:
    assert set(TRANSFORMER) == set(PRECISIONS)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_transformer_in_every_precision(transformer: Made, precision: Precision) -> None:
    made = transformer.convert(OPENVINO, precision)
    assert [path.name for path in made.files] == ["model.xml", "model.bin"]
    least_db, share = TRANSFORMER[precision]
    assert transformer.worst_db(OPENVINO, made) >= least_db
    assert made.files[1].stat().st_size <= share * transformer.onnx_form.size_bytes
    assert (made.inputs, made.outputs) == (transformer.source.inputs, transformer.source.outputs)


@pytest.mark.parametrize("precision", CONVOLUTIONS)
def test_convolutions_with_two_inputs_and_outputs(convolutions: Made, precision: Precision) -> None:
    made = convolutions.convert(OPENVINO, precision)
    assert convolutions.worst_db(OPENVINO, made) >= CONVOLUTIONS[precision]


def test_4_bits_are_refused_where_they_would_be_8(convolutions: Made) -> None:
    with pytest.raises(UnsupportedError, match="only 0% of this model's weights can have 4 bits") as refused:
        convolutions.convert(OPENVINO, Precision.INT4_WEIGHTS)
    assert "\n" not in str(refused.value)


def test_ranks_3_and_5(tmp_path: Path) -> None:
    made = Made(tmp_path, recipe_models.volumes())
    assert made.worst_db(OPENVINO, made.convert(OPENVINO, Precision.INT8)) >= 30


def test_the_same_inputs_give_the_same_bytes(
    transformer: Made, convolutions: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two processes whose sets are in another order, and whose threads race otherwise."""
    jobs = [(transformer, Precision.INT4_WEIGHTS), (convolutions, Precision.FP16), (convolutions, Precision.INT8)]
    for made, precision in [(transformer, Precision.INT8), *jobs]:
        first = [path.read_bytes() for path in made.convert(OPENVINO, precision).files]
        monkeypatch.setenv("PYTHONHASHSEED", "4")
        again = [path.read_bytes() for path in made.convert(OPENVINO, precision, again=True).files]
        assert again == first


@pytest.mark.parametrize("ranges", [Ranges.MEAN, Ranges.PERCENTILE, Ranges.MSE])
def test_each_kind_of_range_is_another_file(convolutions: Made, ranges: Ranges) -> None:
    made = convolutions.convert(OPENVINO, Precision.INT8, Settings(ranges=ranges))
    plain = convolutions.convert(OPENVINO, Precision.INT8)
    assert made.files[1].read_bytes() != plain.files[1].read_bytes()
    assert convolutions.worst_db(OPENVINO, made) >= 15


def _fake_quantisers(made: Artefact) -> int:
    return len(re.findall(r'type="FakeQuantize"', made.files[0].read_text(encoding="utf-8")))


def test_layers_stay_in_float_by_their_names_in_the_source(convolutions: Made) -> None:
    nodes = onnx.load(convolutions.onnx_form.files[0]).graph.node
    # The BatchNormalization of each is folded into it, so their own outputs are no more.
    names = tuple(node.output[0] for node in nodes if node.op_type == "Conv")
    plain = convolutions.convert(OPENVINO, Precision.INT8)
    mixed = convolutions.convert(OPENVINO, Precision.INT8, Settings(float_tensors=names))
    assert _fake_quantisers(mixed) < _fake_quantisers(plain)
    # int8 weights are one byte each: those of all three convolutions are float again.
    sizes = [variant.files[1].stat().st_size for variant in (plain, mixed)]
    assert sizes[1] >= sizes[0] + 2 * _weights(convolutions)
    assert convolutions.worst_db(OPENVINO, mixed) > convolutions.worst_db(OPENVINO, plain)


def _weights(made: Made) -> int:
    """How many weights the convolutions have."""
    graph = onnx.load(made.onnx_form.files[0]).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    return sum(int(np.prod(constants[node.input[1]].dims)) for node in graph.node if node.op_type == "Conv")


def test_a_layer_that_is_not_there_cannot_stay_in_float(convolutions: Made) -> None:
    with pytest.raises(InputError, match=r"^keeping 'nothing' in float: "):
        convolutions.convert(OPENVINO, Precision.INT8, Settings(float_tensors=("nothing",)))


def test_a_dense_autoencoder_is_right_and_the_same_on_every_run(tmp_path: Path) -> None:
    """As NNCF leaves it, OpenVINO 2026.4 answers this one wrongly and differently on processors with AVX512-VNNI."""
    made = Made(tmp_path, recipe_models.autoencoder(), count=64)
    variant = made.convert(OPENVINO, Precision.INT8)
    runs = [made.outputs(OPENVINO, variant)[spec.name] for _ in range(3) for spec in variant.outputs]
    assert made.worst_db(OPENVINO, variant) >= 30
    assert all(np.array_equal(run, runs[0]) for run in runs)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.INT8, Precision.INT8_WEIGHTS])
def test_from_tflite(tmp_path: Path, precision: Precision) -> None:
    """Two inputs of one shape, and two outputs: neither may be taken for the other."""
    made = Made(tmp_path, recipe_models.difference())
    (tmp_path / "lowered").mkdir()
    lowered = lower_tflite.run(made.onnx_form, Context({}, tmp_path / "lowered"))
    variant = made.convert(OPENVINO, precision, form=Form.TFLITE, start=lowered)
    assert [spec.name for spec in variant.inputs] == [spec.name for spec in made.source.inputs]
    assert made.worst_db(OPENVINO, variant) >= 30


def test_a_convolutional_network_from_tflite(convolutions: Made, tmp_path: Path) -> None:
    lowered = lower_tflite.run(convolutions.onnx_form, Context({}, tmp_path))
    variant = convolutions.convert(OPENVINO, Precision.INT8, form=Form.TFLITE, start=lowered)
    assert convolutions.worst_db(OPENVINO, variant) >= 28


def test_scores_are_computed_in_float32(convolutions: Made) -> None:
    """Left alone, OpenVINO takes bfloat16 or float16 where the processor has it."""
    runner = open_model(convolutions.convert(OPENVINO, Precision.FP32), 1)
    assert str(runner._model.get_property("INFERENCE_PRECISION_HINT")) == "<Type: 'float32'>"
