"""Models and places that `edgefleet convert` refuses: one line each that says what to do, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from converters.convert_runs import convert, converted, model, refusal
from converters.onnx_models import weights
from edgefleet.errors import EdgefleetError, InputError, StorageError, UnsupportedError
from edgefleet_converters.conversion.source import LARGEST_BYTES
from edgefleet_converters.convert_cli import app
from edgefleet_demo import digits


@pytest.mark.parametrize("content", [b"", b"this is not a model", b"\x08\x07\x12\x00PK\x03\x04", b"\x00" * 64])
def test_not_an_onnx_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert f"reading the model {path}: not an ONNX model" in refusal(tmp_path, path, kind=InputError)


def test_no_such_model_and_a_folder(tmp_path: Path) -> None:
    assert "No such file or directory" in refusal(tmp_path, tmp_path / "gone.onnx", kind=InputError)
    assert "Is a directory" in refusal(tmp_path, tmp_path, kind=InputError)


def test_more_than_protobuf_can_hold(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with path.open("wb") as stream:
        stream.truncate(LARGEST_BYTES + 1)
    assert "neither protobuf nor a .tflite file can hold more than 2 GB" in refusal(
        tmp_path, path, kind=UnsupportedError
    )


def test_everything_that_has_no_form_is_listed_at_once(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("RandomNormalLike", ["x"], ["noise"], name="dice"),
        helper.make_node("Cast", ["x"], ["half"], name="narrow", to=TensorProto.BFLOAT16),
        helper.make_node("Cast", ["half"], ["wide"], name="widen", to=TensorProto.FLOAT),
        helper.make_node("Add", ["noise", "wide"], ["sum"], name="fine"),
        helper.make_node("Mystery", ["sum"], ["y"], name="riddle", domain="elsewhere"),
    ]
    source = model(nodes, {"x": [2, 3]})
    source.opset_import.append(helper.make_opsetid("elsewhere", 1))
    text = refusal(tmp_path, source, kind=UnsupportedError)
    for name in ("RandomNormalLike (node 'dice')", "Cast (node 'narrow': ", "elsewhere.Mystery (node 'riddle')"):
        assert name in text
    assert "fine" not in text


def test_a_subgraph_that_stays(tmp_path: Path) -> None:
    """A Loop whose number of turns, and so the length of its output, is only known at run time."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Neg", ["x"], ["row"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("row", TensorProto.FLOAT, [2]),
        ],
    )
    node = helper.make_node("Loop", ["turns", ""], ["y"], name="round", body=body)
    source = model([node], {"turns": [], "x": [2]}, types={"turns": TensorProto.INT64})
    assert "'round" in refusal(tmp_path, source, kind=UnsupportedError)


def _newer_opset(source: onnx.ModelProto) -> None:
    source.opset_import[0].version = 99


def _newer_format(source: onnx.ModelProto) -> None:
    source.ir_version = 99


def _dangling(source: onnx.ModelProto) -> None:
    source.graph.node[0].input[0] = "nowhere"


def _bad_attribute(source: onnx.ModelProto) -> None:
    source.graph.node[0].attribute.append(helper.make_attribute("colour", 3))


BROKEN: dict[str, tuple[Callable[[onnx.ModelProto], None], type[EdgefleetError], str]] = {
    "opset": (_newer_opset, UnsupportedError, "its opset is 99, and onnx "),
    "format": (_newer_format, UnsupportedError, "its format is IR version 99"),
    "dangling": (_dangling, InputError, "not a valid ONNX file"),
    "attribute": (_bad_attribute, InputError, "Unrecognized attribute: colour"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_model_that_is_not_what_it_should_be(tmp_path: Path, case: str) -> None:
    change, kind, reason = BROKEN[case]
    source = model([helper.make_node("Relu", ["x"], ["y"])], {"x": [2]})
    change(source)
    assert reason in refusal(tmp_path, source, kind=kind)


@pytest.fixture(name="external")
def _external(tmp_path: Path) -> Path:
    """A model whose weights lie in `weights.bin` beside it."""
    source = model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": [1, 40]}, {"w": weights(40, 30)})
    onnx.save(source, tmp_path / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    return tmp_path / "model.onnx"


def test_external_data_beside_the_model(tmp_path: Path, external: Path) -> None:
    result, _ = converted(tmp_path, external)
    assert "check     y: max |d| " in result.stdout


def _moved(path: Path, location: str) -> Path:
    source = onnx.load(path, load_external_data=False)
    for entry in source.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    path.write_bytes(source.SerializeToString())
    return path


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd", "inner/../../weights.bin", ""])
def test_external_data_outside_the_folder(tmp_path: Path, external: Path, location: str) -> None:
    text = refusal(tmp_path, _moved(external, location), kind=InputError)
    assert f"the external data of 'w' lies at {location!r}, outside the model's folder" in text


def test_external_data_through_a_link_out_of_the_folder(tmp_path: Path, external: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    external.rename(inner / "model.onnx")
    (inner / "weights.bin").symlink_to(tmp_path / "weights.bin")
    assert "outside the model's folder" in refusal(inner, inner / "model.onnx", kind=InputError)


def test_external_data_that_is_missing_or_short(tmp_path: Path, external: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"\0" * 100)
    assert "has 100 bytes, and 'w' needs 4800 from byte 0" in refusal(tmp_path, external, kind=InputError)
    (tmp_path / "weights.bin").unlink()
    assert "the external data file 'weights.bin' of 'w' is missing" in refusal(tmp_path, external, kind=InputError)


def _to(model_path: Path, output: Path) -> BaseException | None:
    return CliRunner().invoke(app, [str(model_path), "--to", "litert", "--no-check", "-o", str(output)]).exception


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(digits.model_path().read_bytes())
    before = source.read_bytes()
    for output, kind, reason in (
        (tmp_path / "gone" / "out.tflite", InputError, "there is no folder"),
        (tmp_path, InputError, "it is a folder"),
        (source, InputError, "it is the model itself"),
        (tmp_path / ("x" * 300), StorageError, "File name too long"),
    ):
        found = _to(source, output)
        assert isinstance(found, kind), found
        assert reason in str(found)
    assert source.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_refusal_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    """The whole command, as a person sees it."""
    bad = model([helper.make_node("Relu", ["x"], ["y"])], {"x": ["N", "h"]})
    text = refusal(tmp_path, bad, kind=InputError)
    assert text.startswith("fixing the input shapes: free sizes: h of input 'x' axis 1; give each with")
    assert InputError.exit_code == UnsupportedError.exit_code == 2
    result = convert(tmp_path, bad, "--dim", "h=3")
    assert result.exit_code == 0
    assert np.fromfile(tmp_path / "out.tflite", np.uint8, 4, offset=4).tobytes() == b"TFL3"
