"""The bytes of a .tflite file: alignment, shared buffers, metadata, names, and what is held in memory meanwhile."""

from __future__ import annotations

import tracemalloc
import weakref
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from edgefleet_converters.tflite.file import Draft, options_of
from edgefleet_converters.tflite.graph import NotLowerableError
from edgefleet_converters.tflite.runtime_versions import METADATA_BYTES, min_runtime_version
from edgefleet_converters.tflite.writer import SIGNATURE, pack, reversioned, write

Floats = NDArray[np.float32]


def chain(*constants: NDArray[Any]) -> bytes:
    """X + constants[0] + constants[1] …, with the signature's own names `in` and `out`."""
    draft = Draft()
    shape = np.broadcast_shapes(*(array.shape for array in constants))
    value = draft.temporary("x", shape, str(constants[0].dtype))
    for position, array in enumerate(constants):
        result = draft.temporary(f"y{position}", shape, str(array.dtype))
        draft.emit("ADD", (value, draft.constant(f"c{position}", array)), (result,), options_of("Add"))
        value = result
    return write(draft, {"in": "x"}, {"out": value})


def run(content: bytes, x: NDArray[Any]) -> NDArray[Any]:
    runner = Interpreter(model_content=content, num_threads=1).get_signature_runner(SIGNATURE)
    found: NDArray[Any] = runner(**{"in": x})["out"]
    return found


def unpacked(content: bytes) -> Any:
    return schema.ModelT.InitFromPackedBuf(content, 0)


def test_every_buffer_starts_on_16_bytes_and_the_file_runs_by_its_onnx_names() -> None:
    arrays = [np.arange(size, dtype=np.float32).reshape(1, -1)[:, :1] + size for size in (1, 3, 5)]
    content = chain(*arrays)
    model = schema.Model.GetRootAs(content)
    for position in range(model.BuffersLength()):
        buffer = model.Buffers(position)
        if buffer.DataLength():
            address = np.frombuffer(content, np.uint8).ctypes.data
            assert (buffer.DataAsNumpy().ctypes.data - address) % 16 == 0
    x = np.full((1, 1), 0.5, np.float32)
    np.testing.assert_array_equal(run(content, x), x + sum(arrays))


def test_equal_contents_share_one_buffer_and_equal_numbers_of_other_bits_do_not() -> None:
    first = np.arange(6, dtype=np.float32).reshape(2, 3)
    turned = np.asfortranarray(first)
    negative = first.copy()
    negative[0, 0] = -0.0
    content = chain(first, turned, first.copy(), negative)
    graph = unpacked(content).subgraphs[0]
    found = {tensor.name.decode(): tensor.buffer for tensor in graph.tensors}
    assert found["c0"] == found["c1"] == found["c2"]
    assert found["c3"] != found["c0"]
    np.testing.assert_array_equal(run(content, first), first * 5)


def test_not_a_number_is_content_like_any_other() -> None:
    broken = np.array([[np.nan, 1]], np.float32)
    graph = unpacked(chain(broken, broken.copy())).subgraphs[0]
    assert len({tensor.buffer for tensor in graph.tensors if tensor.name.startswith(b"c")}) == 1


@pytest.mark.parametrize(
    "array", [np.float32(3).reshape(()), np.ones((2, 0), np.float32), np.ones((3, 2), np.float32).T]
)
def test_scalars_empty_and_strided_arrays_are_written(array: Floats) -> None:
    x = np.ones(array.shape, np.float32)
    content = chain(array)
    buffers = [buffer for buffer in unpacked(content).buffers[1:2] if array.size]
    assert all(np.array_equal(buffer.data.view(np.float32), array.ravel()) for buffer in buffers)
    if array.size:
        np.testing.assert_array_equal(run(content, x), x + array)


def test_the_metadata_names_the_oldest_runtime() -> None:
    content = chain(np.ones((1, 2), np.int64))
    model = unpacked(content)
    entry = next(item for item in model.metadata if item.name == b"min_runtime_version")
    text = bytes(model.buffers[entry.buffer].data)
    assert text == b"2.6.0".ljust(METADATA_BYTES, b"\0")
    assert min_runtime_version(content) == "2.6.0"


def test_versions_can_be_set_again_without_adding_anything() -> None:
    content = chain(np.ones((1, 2), np.float32))
    again = reversioned(content)
    assert len(again) == len(content)
    assert len(unpacked(again).metadata) == 1
    assert len(unpacked(again).buffers) == len(unpacked(content).buffers)
    np.testing.assert_array_equal(run(again, np.zeros((1, 2), np.float32)), [[1, 1]])


def many_weights(count: int, size: int) -> tuple[Draft, list[weakref.ref[Any]]]:
    """A draft of strided weights of `size` bytes each, and weak references to them."""
    draft, alive = Draft(), []
    draft.temporary("x", (1, 8))
    for position in range(count):
        array = np.full((1, 8, size // 32), position, np.float32).transpose(0, 2, 1)
        alive.append(weakref.ref(array))
        draft.constant(f"c{position}", array)
        draft.temporary(f"y{position}", (1, size // 32, 8))
        draft.emit("ADD", ("x", f"c{position}"), (f"y{position}",), options_of("Add"))
    return draft, alive


def test_weights_are_written_without_copies() -> None:
    size = 4 << 20
    tracemalloc.start()
    draft, _ = many_weights(4, size)
    held = tracemalloc.get_traced_memory()[0]
    content = write(draft, {"x": "x"}, {f"y{position}": f"y{position}" for position in range(4)})
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(content) == pytest.approx(4 * size, rel=0.01)
    # tracemalloc counts the whole file as soon as it is asked for; nothing else comes on top of the weights.
    assert peak < held + len(content) + size / 4
    assert after < len(content) + size / 4


def test_each_weight_is_let_go_as_soon_as_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    draft, alive = many_weights(4, 1 << 10)
    seen = []
    copied = np.copyto

    def watched(target: NDArray[Any], array: NDArray[Any]) -> None:
        seen.append(sum(reference() is not None for reference in alive))
        copied(target, array)

    monkeypatch.setattr(np, "copyto", watched)
    write(draft, {"x": "x"}, {f"y{position}": f"y{position}" for position in range(4)})
    # The last one is the metadata, when all weights are gone.
    assert seen == [4, 3, 2, 1, 0]


def test_a_file_of_more_than_2_gib_is_refused() -> None:
    model = schema.ModelT()
    model.operatorCodes, model.subgraphs = [], []
    # A view of one element that claims to be 3 GiB.
    model.buffers = [schema.BufferT(np.broadcast_to(np.uint8(0), 3 << 30))]
    with pytest.raises(NotLowerableError, match="2 GiB"):
        pack(model)
