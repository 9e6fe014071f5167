"""Keras intake in its own environment: every kind of file computes what Keras computes, and no code runs unasked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from ai_edge_litert.interpreter import Interpreter

from edgefleet.errors import InputError
from edgefleet_converters.artefact import Form
from edgefleet_converters.intake import Asked, read_source
from edgefleet_converters.intake.source import Source, SourceKind
from edgefleet_converters.tflite import lower

# The first test waits for the environment to be made.
pytestmark = pytest.mark.timeout(900)
_SHARED = Path(__file__).parents[3] / "shared" / "models"


def read(
    model: Path, work: Path, *, trust: bool = False, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Source:
    return read_source(str(model), work, Asked(shapes=shapes or {}, trust=trust), lambda _event: None)


def refusal(model: Path, work: Path) -> str:
    with pytest.raises(InputError) as refused:
        read(model, work)
    text = str(refused.value)
    assert text.startswith(f"reading the model {model}: ")
    assert "\n" not in text
    return text


# Model → its inputs with their shapes.
MODELS: dict[str, dict[str, tuple[int, ...]]] = {
    "two.keras": {"image": (1, 16, 16, 3), "extra": (1, 4)},
    "two_new.h5": {"image": (1, 16, 16, 3), "extra": (1, 4)},
    "two_saved": {"extra": (1, 4), "image": (1, 16, 16, 3)},
    "mobile.h5": {"image": (1, 16, 16, 3)},
    "mobile_saved": {"image": (1, 16, 16, 3)},
    "recurrent.keras": {"sequence": (1, 12, 6)},
}


@pytest.mark.parametrize("model", MODELS)
def test_the_onnx_form_computes_what_keras_computes(keras_models: Path, tmp_path: Path, model: str) -> None:
    source = read(keras_models / model, tmp_path)
    assert source.kind is SourceKind.KERAS
    assert {spec.name: spec.shape for spec in source.inputs} == MODELS[model]
    assert [spec.name for spec in source.inputs] == list(MODELS[model])
    with np.load((keras_models / model).with_suffix(".npz")) as stored:
        given = {spec.name: stored[f"in:{spec.name}"] for spec in source.inputs}
        wanted = {spec.name: stored[f"out:{spec.name}"] for spec in source.outputs}
        assert len(wanted) == sum(name.startswith("out:") for name in stored.files)
    session = onnxruntime.InferenceSession(source.forms[Form.ONNX].files[0], providers=["CPUExecutionProvider"])
    for place in range(4):
        found = session.run(list(wanted), {name: array[place : place + 1] for name, array in given.items()})
        for name, array in zip(wanted, found, strict=True):
            np.testing.assert_allclose(array[0], wanted[name][place], atol=1e-5)


def test_images_stay_nhwc_without_transposes(keras_models: Path, tmp_path: Path) -> None:
    lowered = lower(onnx.load(read(keras_models / "mobile.h5", tmp_path).forms[Form.ONNX].files[0]))
    assert lowered.inputs[0].permutation is None
    interpreter = Interpreter(model_content=lowered.content)
    assert "TRANSPOSE" not in {operator["op_name"] for operator in interpreter._get_ops_details()}


def test_an_open_size_is_asked_for(keras_models: Path, tmp_path: Path) -> None:
    model = keras_models / "open.keras"
    assert "'image' has the shape [?, ?, ?, 3]; give it with --shape image=1,…" in refusal(model, tmp_path)
    source = read(model, tmp_path, shapes={"image": (1, 20, 24, 3)})
    assert source.inputs[0].shape == (1, 20, 24, 3)
    with pytest.raises(
        InputError, match=r"--shape image=1,20,24,1 does not fit; the model's input is \[\?, \?, \?, 3\]"
    ):
        read(model, tmp_path, shapes={"image": (1, 20, 24, 1)})
    with pytest.raises(InputError, match="--shape x: the model has no such input; its inputs are: image"):
        read(model, tmp_path, shapes={"image": (1, 20, 24, 3), "x": (1,)})


REFUSED = {
    "lambda.h5": "the Lambda layer 'doubled' carries Python code, which is not run; replace it by layers,",
    "nested.keras": "the Lambda layer 'hidden' carries Python code",
    "custom.keras": "Doubling ('mine') is a class of your own, and its code is not in the file",
    "reaching.h5": "which reaches outside the model",
    "python_saved": "its operator EagerPyFunc",
    "only.weights.h5": "it holds weights only, no model",
    "other.h5": "it holds weights only, no model",
    "nan.h5": "NaN values in the weights",
}


@pytest.mark.parametrize("model", REFUSED)
def test_what_is_refused(keras_models: Path, tmp_path: Path, model: str) -> None:
    (keras_models / "ran").unlink(missing_ok=True)
    assert REFUSED[model] in refusal(keras_models / model, tmp_path)
    assert not (keras_models / "ran").exists()


def test_code_runs_only_when_it_is_trusted(keras_models: Path, tmp_path: Path) -> None:
    mark = keras_models / "ran"
    mark.unlink(missing_ok=True)
    source = read(keras_models / "lambda.h5", tmp_path, trust=True)
    assert mark.exists()
    session = onnxruntime.InferenceSession(source.forms[Form.ONNX].files[0], providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.array([[1, 2, 3, 4]], np.float32)})
    assert found.tolist() == [[2, 4, 6, 8]]


NO_MODELS = {b"no model": "neither a .keras nor an HDF5 file", b"\x89HDF\r\n\x1a\n": "not a readable Keras file ("}


@pytest.mark.usefixtures("keras_models")
@pytest.mark.parametrize("content", NO_MODELS)
def test_files_that_are_no_models(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.h5").write_bytes(content)
    assert NO_MODELS[content] in refusal(tmp_path / "model.h5", tmp_path)


@pytest.mark.usefixtures("keras_models")
def test_a_folder_that_is_no_saved_model(tmp_path: Path) -> None:
    assert "no readable saved_model.pb in this folder" in refusal(tmp_path, tmp_path)


@pytest.mark.usefixtures("keras_models")
def test_a_trained_model_of_other_hands_is_what_its_tflite_file_is(tmp_path: Path) -> None:
    if not _SHARED.is_dir():
        pytest.skip(f"the shared models are not beside the repository ({_SHARED})")
    source = read(_SHARED / "vww_96.h5", tmp_path)
    session = onnxruntime.InferenceSession(source.forms[Form.ONNX].files[0], providers=["CPUExecutionProvider"])
    reference = read(_SHARED / "vww_96_fp32.tflite", tmp_path)
    interpreter = Interpreter(model_path=str(reference.forms[Form.TFLITE].files[0]))
    run = interpreter.get_signature_runner()
    image = np.random.default_rng(0).random((1, 96, 96, 3), np.float32)
    (found,) = session.run(None, {source.inputs[0].name: image})
    wanted = run(**{reference.inputs[0].name: image})[reference.outputs[0].name]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
