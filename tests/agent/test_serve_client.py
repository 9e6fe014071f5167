"""`edgefleet agent infer`: the arrays of a file, through the local API, sample by sample."""

from __future__ import annotations

import io
import json
import math
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from agent.serve_lab import DIGEST, Echo, answering
from edgefleet.errors import InputError, TransportError
from edgefleet_agent.cli import app
from edgefleet_agent.inference_types import FREE, ModelInfo, TensorInfo
from edgefleet_agent.serve import array_files, client
from edgefleet_agent.serve.datatypes import DATATYPES
from edgefleet_agent.settings import ServeSettings

TWO = ModelInfo(
    "two",
    DIGEST,
    "onnxruntime",
    (TensorInfo("a", "float32", (2,)), TensorInfo("b", "bool", (FREE,))),
    (TensorInfo("c", "float32", (2,)), TensorInfo("d", "bool", (FREE,))),
)
SAMPLES = np.arange(12, dtype=np.float32).reshape(3, 1, 4)


def asked(address: str, path: Path) -> list[dict[str, object]]:
    return list(client.infer(f"http://{address}", path))


def values(answer: dict[str, object], name: str) -> object:
    outputs = answer["outputs"]
    assert isinstance(outputs, dict)
    return list(outputs[name]["data"])


def test_every_sample_of_a_file_is_one_request(tmp_path: Path) -> None:
    np.savez(tmp_path / "inputs.npz", x=SAMPLES, y=np.arange(3))
    np.save(tmp_path / "one.npy", SAMPLES[1])
    with answering() as address:
        answers = asked(address, tmp_path / "inputs.npz")
        (one,) = asked(address, tmp_path / "one.npy")
    assert {answer["digest"] for answer in answers} == {DIGEST}
    assert (one["model"], one["inference_ms"], values(one, "y")) == ("digits", 1.0, [4, 5, 6, 7])


@pytest.mark.parametrize("shape", [(3, 4), (3, 1, 4)])
def test_the_layout_of_replay_and_evaluation_is_taken(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """The dimension of the batch may be there or not."""
    np.savez(tmp_path / "inputs.npz", x=SAMPLES.reshape(shape), y=np.arange(3))
    np.save(tmp_path / "one.npy", SAMPLES[1].reshape(shape[1:]))
    with answering() as address:
        answers = asked(address, tmp_path / "inputs.npz")
        (one,) = asked(address, tmp_path / "one.npy")
    assert [values(answer, "y") for answer in answers] == SAMPLES.reshape(3, 4).tolist()
    assert values(one, "y") == [4, 5, 6, 7]


def test_several_inputs_are_taken_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", b=np.array([[True, False, True]]), a=np.ones((1, 2), np.float32), other=np.zeros(9))
    with answering(Echo(TWO)) as address:
        (answer,) = asked(address, tmp_path / "two.npz")
    assert (values(answer, "c"), values(answer, "d")) == ([1, 1], [True, False, True])


@pytest.mark.parametrize(
    ("given_arrays", "said"),
    [
        ({"z": np.ones(4, np.float32), "w": np.ones(4, np.float32)}, "there is no array 'x'"),
        ({"x": np.ones((1, 4))}, "'x' is FP64, 'x' takes FP32"),
        ({"x": np.ones((4, 1), np.float32)}, r"takes \[1, 4\]"),
        ({"x": np.ones((1, 4), np.float32, order="F").T}, "takes"),
        ({"x": np.asfortranarray(SAMPLES)}, "column by column"),
        ({"x": np.array(["text"])}, "no tensor of numbers"),
        ({"x": np.array([{}])}, "no tensor of numbers"),
    ],
)
def test_arrays_that_do_not_fit_are_said(tmp_path: Path, given_arrays: dict[str, np.ndarray], said: str) -> None:
    np.savez(tmp_path / "inputs.npz", allow_pickle=True, **given_arrays)
    with answering() as address, pytest.raises(InputError, match=said):
        asked(address, tmp_path / "inputs.npz")


def test_arrays_of_different_lengths_are_no_samples(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", b=np.ones((3, 1), np.bool_), a=np.ones((2, 2), np.float32))
    with answering(Echo(TWO)) as address, pytest.raises(InputError, match="different numbers of samples"):
        asked(address, tmp_path / "two.npz")


def test_who_is_not_there_or_not_ready_is_said(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", SAMPLES[0])
    with pytest.raises(TransportError, match="is the agent running"):
        asked("127.0.0.1:1", tmp_path / "one.npy")
    with pytest.raises(InputError, match="no http:// address"):
        asked("", tmp_path / "one.npy")
    model = Echo()
    with answering(model) as address:
        model.has_room = False
        with pytest.raises(TransportError, match="try again"):
            asked(address, tmp_path / "one.npy")
        model.info = None
        with pytest.raises(TransportError, match="no model is loaded"):
            asked(address, tmp_path / "one.npy")


def test_the_command_asks_where_the_settings_say_it_is(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", SAMPLES[1])
    settings = tmp_path / "agent.toml"
    with answering() as address:
        serve = f"[serve]\nenabled = true\nport = {address.partition(':')[2]}\n"
        settings.write_text(f'profile = "generic-x86-64"\nstate_folder = "state"\n{serve}', encoding="utf-8")
        said = CliRunner().invoke(app, ["infer", str(tmp_path / "one.npy"), "--config", str(settings)])
    assert said.exit_code == 0, said.output
    assert values(json.loads(said.stdout), "y") == [4, 5, 6, 7]


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("192.168.0.7", "http://192.168.0.7:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),  # noqa: S104 - nothing is bound here
        ("::1", "http://[::1]:8000"),
        ("::", "http://[::1]:8000"),
    ],
)
def test_an_address_for_everybody_is_reached_over_loopback(host: str, url: str) -> None:
    assert client.url_of(ServeSettings(enabled=True, host=host, allow_network=True)) == url


@pytest.mark.parametrize(
    ("settings", "said"),
    [(ServeSettings(), "enabled is false"), (ServeSettings(enabled=True, port=0), "any that is free")],
)
def test_settings_without_an_address_are_said(settings: ServeSettings, said: str) -> None:
    with pytest.raises(InputError, match=said):
        client.url_of(settings)


@pytest.mark.parametrize("dtype", DATATYPES)
def test_every_type_of_numpys_files_is_read(tmp_path: Path, dtype: str) -> None:
    array = np.array([[1, 0, 1]]).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    read = array_files.read(tmp_path / "a.npy")["a"]
    assert (read.dtype, read.shape, bytes(read.data)) == (dtype, (1, 3), array.tobytes())


@given(arrays.arrays(np.float32, arrays.array_shapes(min_dims=0, min_side=0)))
def test_every_shape_is_read(array: np.ndarray) -> None:
    stream = io.BytesIO()
    np.save(stream, array)
    read = array_files.array("a", stream.getvalue())
    assert (read.shape, bytes(read.data)) == (array.shape, array.tobytes())


@given(st.binary(max_size=200), st.integers(0, 130))
def test_no_bytes_do_anything_but_read_or_be_refused(raw: bytes, cut: int) -> None:
    stream = io.BytesIO()
    np.save(stream, SAMPLES)
    with suppress(ValueError):
        read = array_files.array("a", stream.getvalue()[:cut] + raw)
        assert len(read.data) == math.prod(read.shape) * DATATYPES[read.dtype].size_bytes


@pytest.mark.parametrize("content", [b"", b"text", b"\x93NUMPY\x01\x00\xff\xff", b"PK\x05\x06" + b"\0" * 18])
def test_a_file_without_arrays_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "inputs.npz").write_bytes(content)
    with answering() as address, pytest.raises(InputError, match=r"inputs\.npz"):
        asked(address, tmp_path / "inputs.npz")
    with pytest.raises(InputError, match="No such file"):
        array_files.read(tmp_path / "none.npz")


def test_a_broken_archive_is_said(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "inputs.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + b"x" * 200)
    broken = (tmp_path / "inputs.npz").read_bytes().replace(b"xxxx", b"yyyy", 1)
    (tmp_path / "inputs.npz").write_bytes(broken)
    with pytest.raises(InputError, match="CRC"):
        array_files.read(tmp_path / "inputs.npz")
