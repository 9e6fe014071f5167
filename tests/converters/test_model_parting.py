"""Reading a model in two parts: nothing is lost, and what protobuf refuses stays refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, helper, numpy_helper

from edgefleet.errors import InputError
from edgefleet_converters.conversion.parting import joined, read_parted
from edgefleet_converters.conversion.source import read_model
from edgefleet_converters.tflite import lower

_WIDE = 256


def _tensors() -> list[TensorProto]:
    random = np.random.default_rng(0)
    large = random.normal(size=(_WIDE, _WIDE)).astype(np.float32)
    return [
        numpy_helper.from_array(large, "raw"),
        numpy_helper.from_array(large[0], "small"),
        helper.make_tensor("listed", TensorProto.FLOAT, large.shape, large.ravel().tolist()),
    ]


def _model(*tensors: TensorProto) -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "raw"], ["a"]),
        helper.make_node("Add", ["a", "small"], ["b"]),
        helper.make_node("MatMul", ["b", "listed"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, _WIDE]) for name in "xy")
    graph = helper.make_graph(nodes, "parting", [x], [y], list(tensors or _tensors()))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def _saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def test_only_large_raw_data_leave_the_message(tmp_path: Path) -> None:
    """The rest of the message stays, the names, types and shapes of the large ones included."""
    source = read_parted(_saved(_model(), tmp_path))
    raw, small, listed = source.model.graph.initializer
    assert list(source.weights) == ["raw"]
    np.testing.assert_array_equal(source.weights["raw"], numpy_helper.to_array(_tensors()[0]))
    assert (raw.name, raw.data_type, list(raw.dims), raw.raw_data) == ("raw", TensorProto.FLOAT, [_WIDE, _WIDE], b"")
    assert (small, listed) == (_tensors()[1], _tensors()[2])


def test_the_parts_joined_are_the_model(tmp_path: Path) -> None:
    """Field by field."""
    assert joined(read_parted(_saved(_model(), tmp_path))) == _model()


def test_lowering_the_parts_is_lowering_the_model(tmp_path: Path) -> None:
    """Byte by byte."""
    assert lower(read_parted(_saved(_model(), tmp_path))).content == lower(_model()).content


def test_data_of_another_size_than_declared_are_refused(tmp_path: Path) -> None:
    """They are left to the checker, which names the tensor."""
    raw, *others = _tensors()
    raw.dims[0] += 1
    path = _saved(_model(raw, *others), tmp_path)
    assert not read_parted(path).weights


@pytest.mark.parametrize("kept", [1, 1000, 100_000, 300_000])
def test_a_file_cut_short_is_refused(tmp_path: Path, kept: int) -> None:
    """Within a head, a tensor's data, and a graph."""
    path = _saved(_model(), tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match="not an ONNX model"):
        read_model(path)


def test_damaged_files_read_as_protobuf_reads_them(tmp_path: Path) -> None:
    """A byte changed at a time, where the messages' heads are: the same model, or refused by both."""
    random, path = np.random.default_rng(1), _saved(_model(), tmp_path)
    whole = path.read_bytes()
    heads = [*range(200), *(whole.index(name) + at for name in (b"raw", b"small", b"listed") for at in range(-30, 30))]
    outcomes = set()
    for position in heads:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        try:
            wanted = onnx.ModelProto.FromString(bytes(damaged))
        except DecodeError:
            with pytest.raises(DecodeError):
                read_parted(path)
            outcomes.add("refused")
            continue
        assert joined(read_parted(path)).SerializeToString(deterministic=True) == wanted.SerializeToString(
            deterministic=True
        )
        outcomes.add("read")
    assert outcomes == {"read", "refused"}
