"""TFLite intake: a float file of any tool becomes a source whose recipes all work; what cannot be one is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from onnx import helper

from converters.onnx_models import build, weights
from edgefleet.errors import EdgefleetError, InputError, UnsupportedError
from edgefleet_converters.artefact import Form
from edgefleet_converters.convert import ConvertJob, run_steps
from edgefleet_converters.intake.source import Source, SourceKind
from edgefleet_converters.intake.tflite_file import read_tflite
from edgefleet_converters.recipes import RECIPES
from edgefleet_converters.score.infer import infer_sample, open_runner
from edgefleet_converters.steps.tflite_precisions import quantize_weights
from edgefleet_converters.tflite import lower
from edgefleet_converters.tflite.writer import SIGNATURE, pack, unpack
from edgefleet_device_profiles.profile import Precision, Runtime


@pytest.fixture(name="content", scope="module")
def _content() -> bytes:
    """Two convolutions and a classifier over NHWC images, with enough weights for the quantiser to bother."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "v"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("MatMul", ["e", "m"], ["y"]),
    ]
    constants = {"w": weights(32, 3, 3, 3), "v": weights(32, 32, 3, 3, seed=1), "m": weights(32, 6, seed=2)}
    return lower(build(nodes, (1, 3, 8, 8), constants)).content


def read(path: Path, content: bytes) -> Source:
    (path / "model.tflite").write_bytes(content)
    return read_tflite(str(path / "model.tflite"), path, shapes={}, dims={})


def changed(content: bytes, change: Callable[[Any], object]) -> bytes:
    model = unpack(content)
    change(model)
    return pack(model)


def rename_signature(model: Any) -> None:
    model.signatureDefs[0].signatureKey = "predict"
    model.signatureDefs[0].inputs[0].name = "images"


def drop_signature(model: Any) -> None:
    model.signatureDefs = None


def open_batch(model: Any) -> None:
    for tensor in model.subgraphs[0].tensors:
        tensor.shapeSignature = [-1, *tensor.shape[1:]]


@pytest.mark.parametrize(
    ("change", "name"),
    [(rename_signature, "images"), (drop_signature, "x"), (open_batch, "x")],
    ids=["renamed", "dropped", "open batch"],
)
def test_every_signature_becomes_ours(
    tmp_path: Path, content: bytes, change: Callable[[Any], object], name: str
) -> None:
    source = read(tmp_path, changed(content, change))
    assert source.kind is SourceKind.TFLITE
    assert [(spec.name, spec.shape, spec.dtype) for spec in source.inputs] == [(name, (1, 8, 8, 3), "float32")]
    assert [(spec.name, spec.shape) for spec in source.outputs] == [("y", (1, 6))]
    model = unpack(source.forms[Form.TFLITE].files[0].read_bytes())
    assert model.signatureDefs[0].signatureKey.decode() == SIGNATURE
    assert all(tensor.shapeSignature is None for tensor in model.subgraphs[0].tensors)
    runner = open_runner(Runtime.LITERT, source.forms[Form.TFLITE])
    assert runner.infer({name: np.zeros((1, 8, 8, 3), np.float32)})["y"].shape == (1, 6)


LITERT = [Precision.FP32, Precision.FP16, Precision.INT8, Precision.INT8_DYNAMIC, Precision.INT4_WEIGHTS]
# Largest difference as a share of the outputs' largest value, and of the float file's size.
LARGEST = {
    Precision.FP32: (0, 1.0),
    Precision.FP16: (0.001, 0.6),
    Precision.INT8: (0.03, 0.4),
    Precision.INT8_DYNAMIC: (0.03, 0.4),
    Precision.INT4_WEIGHTS: (0.3, 0.3),
}


@pytest.mark.parametrize("precision", LITERT)
def test_every_litert_recipe_takes_it(tmp_path: Path, content: bytes, precision: Precision) -> None:
    source = read(tmp_path, changed(content, rename_signature))
    samples = {"images": weights(8, 1, 8, 8, 3, seed=5)}
    np.savez(tmp_path / "samples.npz", allow_pickle=False, **samples)
    reference = source.forms[Form.TFLITE]
    job = ConvertJob(
        runtime=Runtime.LITERT,
        precision=precision,
        form=Form.TFLITE,
        source=reference,
        calibration=tmp_path / "samples.npz",
        folder=tmp_path / "steps",
    )
    made = run_steps(job.model_dump_json())
    assert [spec.name for spec in made.inputs] == ["images"]
    assert made.files[0].name == "model.tflite"
    wanted = infer_sample(open_runner(Runtime.LITERT, reference), reference, samples, 0)["y"]
    found = infer_sample(open_runner(Runtime.LITERT, made), made, samples, 0)["y"]
    difference, size = LARGEST[precision]
    assert np.abs(np.subtract(found, wanted)).max() <= difference * np.abs(wanted).max()
    assert made.size_bytes <= size * reference.size_bytes


def test_recipes_that_start_from_onnx_do_not_list_it() -> None:
    assert all(Form.TFLITE not in recipe.steps for key, recipe in RECIPES.items() if key[0] is Runtime.ONNXRUNTIME)
    assert all(Form.TFLITE in RECIPES[Runtime.LITERT, precision].steps for precision in LITERT)


def test_a_quantised_file_is_refused_with_the_reason(tmp_path: Path, content: bytes) -> None:
    for precision, reason in ((Precision.INT8_DYNAMIC, "it is quantised already: "), (Precision.FP16, "are float16")):
        with pytest.raises(InputError, match=f"{reason}.*give the float model that it was made from"):
            read(tmp_path, quantize_weights(content, precision))


def two_signatures(model: Any) -> None:
    rename_signature(model)
    other = schema.SignatureDefT()
    other.signatureKey, other.subgraphIndex, other.inputs, other.outputs = "train", 0, [], []
    model.signatureDefs = [model.signatureDefs[0], other]


def open_height(model: Any) -> None:
    model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]].shapeSignature = [1, -1, 8, 3]


def spoil(model: Any) -> None:
    largest = max(model.buffers, key=lambda buffer: 0 if buffer.data is None else len(buffer.data))
    largest.data = np.array(largest.data)
    largest.data[:4] = np.frombuffer(np.float32(np.nan).tobytes(), np.uint8)


def name_outputs_alike(model: Any) -> None:
    drop_signature(model)
    for position in (*model.subgraphs[0].inputs, *model.subgraphs[0].outputs):
        model.subgraphs[0].tensors[position].name = ""


REFUSED: dict[str, tuple[Callable[[Any], object], type[EdgefleetError], str]] = {
    "two signatures": (two_signatures, UnsupportedError, "it has the signatures predict, train"),
    "open height": (open_height, UnsupportedError, r"'x' has the shape \[1, -1, 8, 3\]"),
    "nan": (spoil, InputError, "NaN values in the weights"),
    "no names": (name_outputs_alike, UnsupportedError, r"its inputs and outputs are called \[''\]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(tmp_path: Path, content: bytes, case: str) -> None:
    change, kind, reason = REFUSED[case]
    with pytest.raises(kind, match=reason):
        read(tmp_path, changed(content, change))


@pytest.mark.parametrize("kept", [0, 7, 8, 40, 400])
def test_a_cut_file(tmp_path: Path, content: bytes, kept: int) -> None:
    with pytest.raises(InputError, match="TFLite file"):
        read(tmp_path, content[:kept])


def test_sizes_are_in_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.tflite").write_bytes(content)
    with pytest.raises(InputError, match="--shape and --dim"):
        read_tflite(str(tmp_path / "m.tflite"), tmp_path, shapes={"x": (1, 8, 8, 3)}, dims={})
    with pytest.raises(InputError, match="No such file"):
        read_tflite(str(tmp_path / "gone.tflite"), tmp_path, shapes={}, dims={})


def test_damaged_files_are_read_or_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    generator = np.random.default_rng(0)
    outcomes = set()
    for _ in range(150):
        damaged = bytearray(content)
        # The tables are at the front, before the weights.
        for place in generator.integers(8, 3000, 3):
            damaged[place] = generator.integers(0, 256)
        try:
            read(tmp_path, bytes(damaged))
            outcomes.add("read")
        except EdgefleetError as error:
            outcomes.add("refused" if "\n" not in str(error) else "refused in several lines")
    assert outcomes == {"read", "refused"}
