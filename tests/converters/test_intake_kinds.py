"""Which reader a model gets, by its name alone, and what is refused before any of them starts."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import helper

from converters.onnx_models import build
from edgefleet.errors import InputError
from edgefleet_converters.intake import SUFFIXES, Asked, kind_of, read_source
from edgefleet_converters.intake.source import SourceKind, digest_of
from edgefleet_converters.progress import Event

MODELS = {
    "a/model.onnx": SourceKind.ONNX,
    "MODEL.TFLITE": SourceKind.TFLITE,
    "net.keras": SourceKind.KERAS,
    "old.h5": SourceKind.KERAS,
    "net.pt2": SourceKind.PYTORCH,
    "package.module:make": SourceKind.PYTORCH,
    "nets/here.py:make": SourceKind.PYTORCH,
    "forest.skops": SourceKind.SKLEARN,
    "forest.joblib": SourceKind.SKLEARN,
}


@pytest.mark.parametrize("model", MODELS)
def test_the_kind_of_a_model(model: str) -> None:
    assert kind_of(model) is MODELS[model]


def test_every_kind_has_a_suffix_and_a_folder_is_a_saved_model(tmp_path: Path) -> None:
    assert set(SUFFIXES.values()) == set(SourceKind)
    assert kind_of(str(tmp_path)) is SourceKind.KERAS


@pytest.mark.parametrize("model", ["model.pb", "model"])
def test_an_unknown_kind(model: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"give a SavedModel folder, module:function, or a file that ends in \.onnx"):
        read_source(model, tmp_path, Asked(), lambda _event: None)


def test_the_reader_is_called(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(build([helper.make_node("Relu", ["x"], ["y"])], ("N", 4)), path)
    source = read_source(str(path), tmp_path, Asked(dims={"N": 2}), lambda _event: None)
    assert source.inputs[0].shape == (2, 4)


def test_a_keras_model_is_looked_for_before_an_environment_is_made(tmp_path: Path) -> None:
    events: list[Event] = []
    with pytest.raises(InputError, match="No such file or directory"):
        read_source(str(tmp_path / "gone.h5"), tmp_path, Asked(), events.append)
    (tmp_path / "here.h5").touch()
    with pytest.raises(InputError, match="axes of Keras models have no names"):
        read_source(str(tmp_path / "here.h5"), tmp_path, Asked(dims={"N": 2}), events.append)
    assert not events


def test_a_digest_knows_files_names_and_meaning(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a").write_bytes(b"1")
    first = digest_of(folder)
    assert digest_of(folder) == first
    assert digest_of(folder, {"x": (1, 2)}) != first
    (folder / "a").rename(folder / "b")
    assert digest_of(folder) != first
