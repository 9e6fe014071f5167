"""Inference requests and their answers: values, shapes and sizes as the protocol has them, all else refused. Pure."""

from __future__ import annotations

import struct
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pydantic_core
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.serve_lab import DIGEST, INFO, RAW, VALUES, Echo, binary, content
from edgefleet_agent.inference_types import (
    FREE,
    FailureKind,
    InferFailure,
    InferResult,
    ModelInfo,
    RawTensor,
    TensorInfo,
)
from edgefleet_agent.serve import inference_request, inference_response
from edgefleet_agent.serve.answers import RefusedError
from edgefleet_agent.serve.datatypes import DATATYPES, packed, unpacked
from edgefleet_agent.serve.inference_request import Asked

TENSOR: dict[str, Any] = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": list(VALUES)}
TWO = ModelInfo(
    "two",
    DIGEST,
    "onnxruntime",
    (TensorInfo("a", "int8", (FREE, 2)), TensorInfo("b", "bool", (2,))),
    (TensorInfo("c", "int8", (FREE, 2)), TensorInfo("d", "bool", (2,))),
)


def parsed(body: bytes, length: str | None = None, model: ModelInfo = INFO) -> Asked:
    return inference_request.parse(memoryview(body), length, model)


def split(body: tuple[bytes, str]) -> Asked:
    return parsed(body[0], body[1].partition(": ")[2])


def refusal(body: bytes, length: str | None = None, model: ModelInfo = INFO) -> tuple[int, str]:
    with pytest.raises(RefusedError) as refused:
        parsed(body, length, model)
    return int(refused.value.status), str(refused.value)


def tensor(**changed: object) -> bytes:
    kept = {name: value for name, value in {**TENSOR, **changed}.items() if value is not None}
    return pydantic_core.to_json({"inputs": [kept]})


def test_flat_and_nested_values_are_the_same_tensor() -> None:
    for data in (VALUES, [VALUES], [0.5, 1, -2, 4]):
        (given_tensor,) = parsed(content(data)).request.tensors
        assert given_tensor == RawTensor("x", "float32", (1, 4), RAW)


def test_raw_values_are_taken_where_they_lie() -> None:
    asked = split(binary(RAW, id="7"))
    assert bytes(asked.request.tensors[0].data) == RAW
    assert (asked.request_id, asked.binary, asked.request.outputs) == ("7", {"y": True}, None)


def test_a_body_that_is_nothing_but_the_values_is_the_one_input() -> None:
    asked = parsed(RAW, "0")
    assert asked.request.tensors[0].shape == (1, 4)
    assert asked.binary == {"y": True}
    status, reason = refusal(RAW[:-1], "0")
    assert (status, "a body of 15 bytes is not" in reason) == (400, True)
    open_model = ModelInfo("m", DIGEST, "litert", (TensorInfo("x", "int16", (FREE, 3)),), ())
    assert parsed(b"\0" * 24, "0", open_model).request.tensors[0].shape == (4, 3)
    assert refusal(b"\0" * 25, "0", open_model)[0] == 400
    assert "a model of one input" in refusal(b"\0\0", "0", TWO)[1]


def test_outputs_are_answered_as_asked_and_in_that_order() -> None:
    text = pydantic_core.to_json({
        "inputs": [
            {"name": "b", "shape": [2], "datatype": "BOOL", "data": [True, False]},
            {"name": "a", "shape": [1, 2], "datatype": "INT8", "parameters": {"binary_data_size": 2}},
        ],
        "outputs": [{"name": "d"}, {"name": "c", "parameters": {"binary_data": True}}],
    })  # fmt: skip
    asked = parsed(text + b"\x01\xff", str(len(text)), TWO)
    assert asked.binary == {"d": False, "c": True}
    answer = inference_response.respond(Echo(TWO).result(asked.request), asked, "two", DIGEST)
    described, raw = pydantic_core.from_json(bytes(answer.parts[0])), answer.parts[1:]
    assert described["outputs"] == [
        {"name": "d", "datatype": "BOOL", "shape": [2], "data": [True, False]},
        {"name": "c", "datatype": "INT8", "shape": [1, 2], "parameters": {"binary_data_size": 2}},
    ]
    assert (described["model_version"], described["parameters"]["digest"]) == (DIGEST, DIGEST)
    assert [bytes(part) for part in raw] == [b"\x01\xff"]
    assert answer.json_bytes == len(answer.parts[0])


@pytest.mark.parametrize("request_id", [None, "", "100%s", '"inference_s":0.0', "ü\n"])
def test_the_json_of_raw_answers_is_the_same_but_for_the_time(request_id: str | None) -> None:
    asked = split(binary(RAW, id=request_id))
    for inference_s in (0.0, 1e-9, 0.25, 1234.5):
        result = replace(Echo().result(asked.request), inference_s=inference_s)
        answer = inference_response.respond(result, asked, "digits", None)
        described = pydantic_core.from_json(bytes(answer.parts[0]))
        assert described["parameters"] == {"digest": DIGEST, "inference_s": inference_s}
        assert described.get("id") == request_id
        assert described["outputs"][0]["parameters"] == {"binary_data_size": 16}
        assert answer.json_bytes == len(answer.parts[0])


REFUSED_JSON = {
    "no JSON": b"{",
    "an array": b"[]",
    "no inputs": b"{}",
    "empty inputs": b'{"inputs": []}',
    "not UTF-8": b'{"inputs": "\xff"}',
    "NaN": b'{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [NaN, 0, 0, 0]}]}',
    "infinity": b'{"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [-Infinity, 0, 0, 0]}]}',
    "too large for a double": content((0, 0, 0, 7)).replace(b"7", b"1e999"),
    "too large for FP32": content((1e39, 0, 0, 0)),
    "an endless integer": content((0, 0, 0)).replace(b"[0,0,0]", b"[0,0,0," + b"9" * 4000 + b"]"),
    "text for a number": content(("1", 0, 0, 0)),
    "null for a number": content((None, 0, 0, 0)),
    "an object for a number": content(({}, 0, 0, 0)),
    "too few values": content((1, 2, 3)),
    "too many values": content((1, 2, 3, 4, 5)),
    "nested otherwise": content([[1, 2], [3, 4]]),
    "nested raggedly": content([[1, 2, 3], 4]),
    "nested too deeply": content([[[1, 2, 3, 4]]]),
    "very deep": b"[" * 100_000,
    "another name": tensor(name="z"),
    "another shape": tensor(shape=[4]),
    "a negative dimension": tensor(shape=[-1, 4]),
    "a fractional dimension": tensor(shape=[1.0, 4]),
    "a dimension of text": tensor(shape=["1", 4]),
    "a huge dimension": tensor(shape=[2**70, 4]),
    "forty dimensions": tensor(shape=[1] * 40),
    "another datatype": tensor(datatype="FP64"),
    "numpy's datatype": tensor(datatype="float32"),
    "no data": tensor(data=None),
    "data of text": tensor(data="AAAA"),
    "data and raw data": tensor(parameters={"binary_data_size": 16}),
    "a size of text": tensor(data=None, parameters={"binary_data_size": "16"}),
    "a size of true": tensor(data=None, parameters={"binary_data_size": True}),
    "a negative size": tensor(data=None, parameters={"binary_data_size": -1}),
    "classes": content(outputs=[{"name": "y", "parameters": {"classification": 2}}]),
    "shared memory": tensor(parameters={"shared_memory_region": "r"}),
    "another output": content(outputs=[{"name": "z"}]),
    "an output twice": content(outputs=[{"name": "y"}, {"name": "y"}]),
    "an input twice": pydantic_core.to_json({"inputs": [TENSOR, TENSOR]}),
    "a numeric id": content(id=7),
}


@pytest.mark.parametrize("name", REFUSED_JSON)
def test_what_does_not_fit_the_model_is_refused_in_one_line(name: str) -> None:
    status, reason = refusal(REFUSED_JSON[name])
    assert (status, "\n" in reason) == (400, False)
    assert len(reason) < 400


@pytest.mark.parametrize(
    ("body", "length", "said"),
    [
        (binary(RAW)[0], "100000", "is 100000, the body has"),
        (binary(RAW)[0], "-1", "is not one number"),
        (binary(RAW)[0], "1, 1", "is not one number"),
        (b"", "0", "EOF"),
        (*binary(RAW[:8]), "binary_data_size is 8, [1, 4] is 16 bytes"),
        (binary(RAW)[0] + b"more", binary(RAW)[1], "20 bytes follow the JSON"),
        (binary(RAW)[0][:-1], binary(RAW)[1], "15 bytes follow the JSON"),
        (content() + RAW, f": {len(content())}", "16 bytes follow the JSON"),
    ],
)  # fmt: skip
def test_sizes_that_lie_are_refused(body: bytes, length: str, said: str) -> None:
    status, reason = refusal(body, length.rpartition(": ")[2])
    assert (status, said in reason) == (400, True), reason


def test_a_boolean_is_nothing_but_0_and_1() -> None:
    def asked(raw: bytes) -> tuple[bytes, str]:
        text = pydantic_core.to_json({
            "inputs": [
                {"name": "a", "shape": [1, 2], "datatype": "INT8", "data": [0, 1]},
                {"name": "b", "shape": [2], "datatype": "BOOL", "parameters": {"binary_data_size": 2}},
            ]
        })  # fmt: skip
        return text + raw, str(len(text))

    assert bytes(parsed(*asked(b"\x01\x00"), TWO).request.tensors[1].data) == b"\x01\x00"
    assert "neither 0 nor 1" in refusal(*asked(b"\x01\x02"), TWO)[1]


def test_an_open_dimension_takes_any_size_but_none() -> None:
    def asked(rows: int) -> bytes:
        first = {"name": "a", "shape": [rows, 2], "datatype": "INT8", "data": [1, 2] * rows}
        return pydantic_core.to_json(
            {"inputs": [first, {"name": "b", "shape": [2], "datatype": "BOOL", "data": [True, True]}]}
        )

    assert parsed(asked(3), model=TWO).request.tensors[0].shape == (3, 2)
    assert "the model takes [-1, 2]" in refusal(asked(0), model=TWO)[1]
    assert (
        "is missing"
        in refusal(pydantic_core.to_json({"inputs": [pydantic_core.from_json(asked(1))["inputs"][0]]}), model=TWO)[1]
    )


def test_json_beyond_its_limit_is_told_to_come_raw() -> None:
    status, reason = refusal(b" " * (inference_request.MAX_JSON_BYTES + 1))
    assert (status, "as binary data" in reason) == (413, True)


@pytest.mark.parametrize("dtype", DATATYPES)
def test_every_datatype_is_numpys_byte_for_byte(dtype: str) -> None:
    values = [True, False] if dtype == "bool" else [0, 1, 100, 3]
    expected = np.array(values, dtype)
    raw = packed(values, DATATYPES[dtype])
    assert raw == expected.astype(expected.dtype.newbyteorder("<")).tobytes()
    assert list(unpacked(raw, DATATYPES[dtype])) == values
    assert DATATYPES[dtype].size_bytes == expected.itemsize


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("bool", 1),
        ("uint8", 256),
        ("uint8", -1),
        ("int8", 1.0),
        ("int64", 2**63),
        ("float16", 70000.0),
        ("float64", "1"),
    ],
)
def test_a_value_that_the_datatype_cannot_hold_is_refused(dtype: str, value: object) -> None:
    with pytest.raises(ValueError, match="a "):
        packed([value], DATATYPES[dtype])


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=4, max_size=4))
def test_finite_values_go_there_and_back_unchanged(values: list[float]) -> None:
    asked = parsed(content(values))
    answer = inference_response.respond(Echo().result(asked.request), asked, "digits", None)
    assert pydantic_core.from_json(bytes(answer.parts[0]))["outputs"][0]["data"] == values


def test_an_output_that_json_cannot_express_is_said_and_goes_raw() -> None:
    raw = struct.pack("<4f", float("nan"), 0, float("inf"), 0)
    result = InferResult(DIGEST, (RawTensor("y", "float32", (1, 4), raw),), 0.0)
    with pytest.raises(RefusedError, match="ask for it as binary data") as refused:
        inference_response.respond(result, parsed(content()), "digits", None)
    assert refused.value.status == 500
    assert inference_response.respond(result, split(binary(RAW)), "digits", None).parts[1] == raw


@pytest.mark.parametrize(
    ("kind", "status"), [(FailureKind.REFUSED, 400), (FailureKind.FAILED, 500), (FailureKind.UNAVAILABLE, 503)]
)
def test_a_failure_keeps_its_kind(kind: FailureKind, status: int) -> None:
    with pytest.raises(RefusedError, match="so it is") as refused:
        inference_response.respond(InferFailure(kind, "so it is"), parsed(content()), "digits", None)
    assert refused.value.status == status


def test_another_version_than_asked_for_answers_nothing() -> None:
    asked = parsed(content())
    with pytest.raises(RefusedError, match="not loaded any more") as refused:
        inference_response.respond(Echo().result(asked.request), asked, "digits", "sha256:" + "b" * 64)
    assert refused.value.status == 404


@given(st.binary(max_size=120), st.one_of(st.none(), st.integers(0, 130)))
def test_no_body_does_anything_but_parse_or_be_refused(body: bytes, length: int | None) -> None:
    with suppress(RefusedError):
        asked = parsed(body, None if length is None else str(length))
        assert len(asked.request.tensors[0].data) == 16
