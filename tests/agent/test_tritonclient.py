"""The protocol's own reference client, `tritonclient`, against the local API: every call that the protocol has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from agent.serve_lab import DIGEST, INFO, Echo, answering
from edgefleet_agent.inference_types import FREE, ModelInfo, TensorInfo
from edgefleet_agent.serve.datatypes import DATATYPES

EVERY = ModelInfo(
    "onnx-fp32",
    DIGEST,
    "onnxruntime",
    tuple(TensorInfo(f"in_{dtype}", dtype, (FREE, 3)) for dtype in DATATYPES),
    tuple(TensorInfo(f"out_{dtype}", dtype, (FREE, 3)) for dtype in DATATYPES),
)
X = np.array([[0.1, -1.5, 3e38, 1e-38]], np.float32)

Array = NDArray[np.generic]


@pytest.fixture(name="client", scope="module")
def _client() -> Iterator[Any]:
    with answering() as address, triton.InferenceServerClient(address) as client:
        yield client


def tensor(array: Array, *, name: str = "x", raw: bool = True) -> Any:
    given = triton.InferInput(name, list(array.shape), DATATYPES[array.dtype.name].name)
    given.set_data_from_numpy(array, binary_data=raw)
    return given


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", DIGEST)
    assert not client.is_model_ready("digits", "1")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    model = client.get_model_metadata("digits", DIGEST)
    assert model["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [1, 4]}]
    assert client.get_model_repository_index() == [{"name": "digits", "version": DIGEST, "state": "READY"}]


@pytest.mark.parametrize("raw_in", [True, False], ids=["raw in", "JSON in"])
@pytest.mark.parametrize("raw_out", [True, False, None], ids=["raw out", "JSON out", "default out"])
def test_values_come_back_bit_for_bit_whatever_way_they_go(client: Any, raw_in: bool, raw_out: bool | None) -> None:
    outputs = None if raw_out is None else [triton.InferRequestedOutput("y", binary_data=raw_out)]
    result = client.infer("digits", [tensor(X, raw=raw_in)], outputs=outputs, request_id="42")
    assert result.as_numpy("y").tobytes() == X.tobytes()
    answer = result.get_response()
    assert (answer["id"], answer["model_version"], answer["parameters"]["digest"]) == ("42", DIGEST, DIGEST)
    assert client.infer("digits", [tensor(X)], model_version=DIGEST).as_numpy("y").tobytes() == X.tobytes()


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "JSON"])
def test_every_datatype_goes_there_and_back(raw: bool) -> None:
    # Half precision has no JSON in this client.
    ways = {dtype: raw or dtype == "float16" for dtype in DATATYPES}
    arrays = {dtype: np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype) for dtype in DATATYPES}
    inputs = [tensor(arrays[dtype], name=f"in_{dtype}", raw=way) for dtype, way in ways.items()]
    outputs = [triton.InferRequestedOutput(f"out_{dtype}", binary_data=way) for dtype, way in ways.items()]
    with answering(Echo(EVERY)) as address, triton.InferenceServerClient(address) as client:
        result = client.infer("digits", inputs, outputs=outputs)
    for dtype, array in arrays.items():
        np.testing.assert_array_equal(result.as_numpy(f"out_{dtype}"), array)


def test_a_refusal_reaches_the_caller_with_its_reason(client: Any) -> None:
    calls: list[tuple[Callable[[], object], str, str]] = [
        (lambda: client.infer("other", [tensor(X)]), "404", "only 'digits'"),
        (lambda: client.infer("digits", [tensor(X)], model_version="1"), "404", DIGEST),
        (lambda: client.infer("digits", [tensor(X[:, :3])]), "400", "the model takes [1, 4]"),
        (lambda: client.infer("digits", [tensor(X.astype(np.float64))]), "400", "the model takes FP32"),
        (lambda: client.infer("digits", [tensor(X)], request_compression_algorithm="gzip"), "415", "Content-Encoding"),
        (lambda: client.get_model_metadata("other"), "404", "only 'digits'"),
    ]
    for asked, status, said in calls:
        with pytest.raises(InferenceServerException) as refused:
            asked()
        assert (refused.value.status(), said in refused.value.message()) == (status, True)
    assert client.infer("digits", [tensor(X)]).as_numpy("y").tobytes() == X.tobytes()


def test_a_model_that_is_not_there_is_no_error_of_the_client() -> None:
    model = Echo()
    with answering(model) as address, triton.InferenceServerClient(address) as client:
        model.info, model.ready = None, False
        assert (client.is_server_live(), client.is_server_ready(), client.is_model_ready("digits")) == (
            True,
            False,
            False,
        )
        with pytest.raises(InferenceServerException, match="no model is loaded"):
            client.infer("digits", [tensor(X)])
        model.info, model.ready = INFO, True
        assert client.infer("digits", [tensor(X)]).as_numpy("y").tobytes() == X.tobytes()


def test_many_requests_at_a_time_each_get_their_own_answer() -> None:
    with answering() as address, triton.InferenceServerClient(address, concurrency=8) as client:
        asked = [client.async_infer("digits", [tensor(X * 0 + index)]) for index in range(64)]
        for index, one in enumerate(asked):
            assert one.get_result().as_numpy("y").tolist() == [[index] * 4]


def test_the_asyncio_client_too() -> None:
    async def ask(address: str) -> Array:
        async with triton_aio.InferenceServerClient(address) as client:
            assert await client.is_model_ready("digits")
            result: Array = (await client.infer("digits", [tensor(X)])).as_numpy("y")
            return result

    with answering() as address:
        assert asyncio.run(ask(address)).tobytes() == X.tobytes()
