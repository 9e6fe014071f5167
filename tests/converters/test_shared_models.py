"""Trained models from other hands, where their folder lies beside the repository and they have been made into ONNX.

Makes no ONNX form itself: `benchmarks/real_models.py` does, with TensorFlow in an environment of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from edgefleet_converters.conversion.flow import Request, convert
from edgefleet_converters.tflite.writer import reversioned

_REPOSITORY = Path(__file__).parents[2]
_REFERENCE = _REPOSITORY.parent / "shared" / "models" / "vww_96_fp32.tflite"
_FORMS = _REPOSITORY / "build" / "real_models"
_TOLERANCE = 1e-4
_SEEDS = range(3)


@pytest.fixture(name="reference")
def _reference() -> bytes:
    if not _REFERENCE.exists():
        pytest.skip(f"the shared models are not beside the repository ({_REFERENCE})")
    return _REFERENCE.read_bytes()


def _form(name: str) -> Path:
    path = _FORMS / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"{path} is not there: benchmarks/real_models.py makes it from the shared models")
    return path


def _run(content: bytes, array: NDArray[np.float32]) -> NDArray[Any]:
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], array)
    interpreter.invoke()
    found: NDArray[Any] = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    return found


def _converted(model: Path, folder: Path) -> bytes:
    result = folder / "model.tflite"
    notes: list[str] = []
    converted = convert(Request(model, result, check=False), notes.append)
    assert not converted.facts.outside
    content = result.read_bytes()
    file = schema.ModelT.InitFromPackedBuf(content, 0)
    assert schema.BuiltinOperator.TRANSPOSE not in [code.builtinCode for code in file.operatorCodes]
    return content


def _without_softmax(path: Path, folder: Path) -> Path:
    """The model up to its last node, where saturation hides nothing."""
    model = onnx.load(path)
    assert model.graph.node[-1].op_type == "Softmax"
    logits = onnx.ValueInfoProto(name=model.graph.node[-1].input[0], type=model.graph.output[0].type)
    del model.graph.node[-1], model.graph.output[:]
    model.graph.output.append(logits)
    onnx.save(model, folder / "logits.onnx")
    return folder / "logits.onnx"


def test_another_writers_file_computes_the_same_after_its_versions_are_assigned(reference: bytes) -> None:
    """Its operators are kept and its weights stay bit by bit; TensorFlow wrote it years ago."""
    ours = reversioned(reference)
    for seed in _SEEDS:
        image = np.random.default_rng(seed).random((1, 96, 96, 3), dtype=np.float32)
        wanted = _run(reference, image)
        assert wanted.sum() == pytest.approx(1, abs=1e-5)
        np.testing.assert_array_equal(_run(ours, image), wanted)


def test_person_detection_agrees_with_the_file_that_its_authors_ship(reference: bytes, tmp_path: Path) -> None:
    """The authors' own converter is the reference here, not ONNX Runtime."""
    ours = _converted(_form("vww_96"), tmp_path)
    assert len(ours) <= len(reference)
    images = [np.random.default_rng(seed).random((1, 96, 96, 3), dtype=np.float32) for seed in _SEEDS]
    wanted = [_run(reference, image) for image in images]
    assert max(float(np.abs(item - wanted[0]).max()) for item in wanted) > 10 * _TOLERANCE
    for image, item in zip(images, wanted, strict=True):
        assert float(np.abs(_run(ours, image) - item).max()) <= _TOLERANCE * float(item.max())


@pytest.mark.parametrize("name", ["kws", "vww_96", "sww"])
def test_the_tensor_before_the_softmax_agrees_with_onnx_runtime(name: str, tmp_path: Path) -> None:
    """No transposes, nothing outside XNNPACK, and a reference that moves between the seeds by far more."""
    source = _without_softmax(_form(name), tmp_path)
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    entry, content = session.get_inputs()[0], _converted(source, tmp_path)
    shape = tuple(size if isinstance(size, int) else 1 for size in entry.shape)
    feeds = [np.random.default_rng(seed).random(shape, dtype=np.float32) for seed in _SEEDS]
    wanted = [session.run(None, {entry.name: feed})[0] for feed in feeds]
    scale = max(float(np.abs(item).max()) for item in wanted)
    assert max(float(np.abs(item - wanted[0]).max()) for item in wanted) > 10 * _TOLERANCE * scale
    for feed, item in zip(feeds, wanted, strict=True):
        assert float(np.abs(_run(content, feed) - item).max()) <= _TOLERANCE * float(np.abs(item).max())
