"""A client that makes one request over and over: what a worker is lent, when, and what becomes of the connection."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from agent.serve_lab import DIGEST, INFER, INFO, RAW, Client, Echo, Lab, binary, content, http, serving
from edgefleet_agent.inference_types import ModelInfo, TensorInfo
from edgefleet_agent.serve.habit import LEND_AFTER, MAX_BYTES
from edgefleet_agent.serve.phase import Phase

LONG = {"binary_data_output": True, "other": "a" * 3000}
HEALTH = http("GET", "/v2/health/ready")


def asking(raw: bytes = RAW, *fields: str, **more: object) -> bytes:
    body, length = binary(raw, **more)
    return http("POST", INFER, body, length, *fields)


def chunked() -> bytes:
    body, length = binary(RAW)
    return http("POST", INFER, b"", length, "Transfer-Encoding: chunked") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


def ask_often(client: Client, request: bytes, times: int = LEND_AFTER) -> None:
    for _ in range(times):
        assert client.ask(request).status == 200


def phase(lab: Lab) -> Phase:
    (connection,) = lab.server._connections.values()
    return connection.phase


def lender() -> Echo:
    model = Echo()
    model.takes_clients = True
    return model


def test_what_a_client_asks_over_and_over_is_lent_as_bytes() -> None:
    with serving(lender()) as lab:
        client = lab.client()
        ask_often(client, asking(), LEND_AFTER - 1)
        assert lab.model.lent == []
        last = client.ask(asking())
        ((_, standing, _),) = lab.model.lent
        assert standing.digest == DIGEST
        assert standing.question + RAW == asking()
        assert standing.inputs == (("x", "float32", (1, 4), 16),)
        assert standing.outputs == (("y", "float32", (1, 4), 16),)
        assert standing.text % 0.001 + RAW == last.body
        assert standing.text_bytes == len(last.body) - len(RAW)
        assert standing.head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert f"Content-Length: {len(last.body)}\r\n".encode() in standing.head
        assert standing.head.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(http("POST", INFER, content()), id="values in JSON"),
        pytest.param(asking(RAW, "Expect: 100-continue"), id="waits to be told to go on"),
        pytest.param(asking(parameters={"binary_data_output": False}), id="the answer in JSON"),
        pytest.param(asking(RAW, "Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0"), id="HTTP/1.0"),
        pytest.param(chunked(), id="in chunks"),
        pytest.param(HEALTH, id="no inference"),
        pytest.param(
            asking(parameters={"binary_data_output": True, "other": "a" * 3000}), id="JSON of a size that is not kept"
        ),
    ],
)
def test_what_is_not_the_same_but_for_its_values_is_answered_here(request_: bytes) -> None:
    with serving(lender()) as lab:
        ask_often(lab.client(), request_, 2 * LEND_AFTER)
        assert lab.model.lent == []


def test_another_request_in_between_begins_the_count_anew() -> None:
    with serving(lender()) as lab:
        client = lab.client()
        for between in (HEALTH, asking(id="7"), asking(RAW, "X-Other: 1")):
            ask_often(client, asking(), LEND_AFTER - 1)
            ask_often(client, between, 1)
        ask_often(client, asking(), LEND_AFTER - 1)
        assert lab.model.lent == []
        ask_often(client, asking(), 1)
        assert len(lab.model.lent) == 1


def test_large_requests_and_bools_are_answered_here() -> None:
    wide = (MAX_BYTES // 4,)
    for model in (
        replace(INFO, inputs=(TensorInfo("x", "float32", wide),), outputs=(TensorInfo("y", "float32", wide),)),
        ModelInfo("b", DIGEST, "litert", (TensorInfo("x", "bool", (1, 16)),), (TensorInfo("y", "bool", (1, 16)),)),
    ):
        (tensor,) = model.inputs
        raw = b"\x01" * 16 if tensor.dtype == "bool" else bytes(MAX_BYTES)
        given = {"name": "x", "shape": tensor.shape, "datatype": "BOOL" if tensor.dtype == "bool" else "FP32"}
        body, length = binary(raw, inputs=[{**given, "parameters": {"binary_data_size": len(raw)}}])
        echo = Echo(model)
        echo.takes_clients = True
        with serving(echo) as lab:
            ask_often(lab.client(), http("POST", INFER, body, length), LEND_AFTER)
            assert echo.lent == []


def test_nothing_is_read_of_a_client_that_is_lent_and_time_does_not_end_it() -> None:
    with serving(lender()) as lab:
        client = lab.client()
        ask_often(client, asking())
        assert phase(lab) is Phase.LENT
        client.send(asking())
        lab.settle()
        lab.pass_time(1e6)
        ((kept, _, returned),) = lab.model.lent
        assert kept.recv(10_000) == asking()
        client.send(HEALTH)
        returned(None)
        assert client.response().status == 200
        assert phase(lab) is Phase.IDLE


def test_after_a_return_it_takes_as_many_again() -> None:
    with serving(lender()) as lab:
        client = lab.client()
        ask_often(client, asking())
        lab.model.lent[0][2](None)
        ask_often(client, asking(), LEND_AFTER - 1)
        assert len(lab.model.lent) == 1
        ask_often(client, asking(), 1)
        assert len(lab.model.lent) == 2


def test_who_lends_nothing_is_asked_now_and_then() -> None:
    with serving() as lab:
        ask_often(lab.client(), asking(), 3 * LEND_AFTER)
        assert phase(lab) is Phase.IDLE


def test_a_request_that_the_worker_did_not_live_to_answer_is_said() -> None:
    with serving(lender()) as lab:
        client = lab.client()
        ask_often(client, asking())
        lab.model.lent[0][2]("it was ended by signal 11")
        response = client.response()
        assert (response.status, response.error) == (503, "it was ended by signal 11")
        assert response.fields["connection"] == "close"
        client.socket.shutdown(1)
        client.has_ended()


def test_requests_that_wait_behind_one_another_are_answered_here() -> None:
    with serving(lender()) as lab:
        client = lab.client()
        client.send(asking() * (LEND_AFTER + 1))
        for _ in range(LEND_AFTER + 1):
            assert client.response().status == 200
        assert lab.model.lent == []


def test_a_server_that_closes_has_nothing_returned() -> None:
    with serving(lender()) as lab:
        ask_often(lab.client(), asking())
        lab.server.close()
        lab.model.lent[0][2](None)
        lab.model.lent[0][2]("the worker was stopped")


def test_every_value_is_as_it_was_asked_for() -> None:
    with serving(lender()) as lab:
        ask_often(lab.client(), asking(struct.pack("<4f", *range(4)), outputs=[{"name": "y"}]))
        ((_, standing, _),) = lab.model.lent
        assert standing.question.endswith(b'"outputs":[{"name":"y"}]}')
