"""The local API as clients meet it over a socket: the endpoints, and clients that are broken, slow or hostile."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from http import HTTPStatus
from typing import NoReturn

import pytest

from agent.serve_lab import DIGEST, INFER, INFO, RAW, VALUES, Client, Echo, Lab, binary, content, http, serving
from edgefleet_agent.inference_types import (
    FailureKind,
    InferFailure,
    InferResult,
    ModelInfo,
    RawTensor,
    TensorInfo,
)
from edgefleet_agent.serve import connection, server
from edgefleet_agent.settings import ServeSettings


@pytest.fixture(name="lab")
def _lab() -> Iterator[Lab]:
    with serving() as lab:
        yield lab


@pytest.fixture(name="slow")
def _slow() -> Iterator[Lab]:
    """A model that answers when told to."""
    with serving(Echo(at_once=False)) as lab:
        yield lab


def infer() -> bytes:
    return http("POST", INFER, content())


def get(path: str) -> bytes:
    return http("GET", path)


# What there is to ask ------------------------------------------------------------------------------------


def test_health_metadata_and_the_index_say_what_is_loaded(lab: Lab) -> None:
    client = lab.client()
    assert client.ask(get("/v2/health/live")).json == {"live": True}
    assert client.ask(get("/v2/health/ready")).json == {"live": True, "ready": True}
    assert client.ask(get("/v2")).json["extensions"] == ["binary_tensor_data"]
    model = client.ask(get("/v2/models/digits")).json
    assert (model["name"], model["versions"], model["platform"]) == ("digits", [DIGEST], "litert")
    assert model["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [1, 4]}]
    assert client.ask(get(f"/v2/models/digits/versions/{DIGEST}")).json == model
    assert client.ask(get("/v2/models/digits/ready")).json == {"name": "digits", "ready": True}
    index = client.ask(http("POST", "/v2/repository/index", b"{}")).json
    assert index == [{"name": "digits", "version": DIGEST, "state": "READY"}]


def test_an_inference_is_answered_in_json_with_its_digest_and_id(lab: Lab) -> None:
    answer = lab.client().ask(http("POST", INFER, content(id="seven"))).json
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("seven", "digits", DIGEST)
    assert answer["parameters"]["digest"] == DIGEST
    assert answer["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [1, 4], "data": list(VALUES)}]


def test_an_inference_is_answered_raw(lab: Lab) -> None:
    body, field = binary(RAW)
    answer = lab.client().ask(http("POST", INFER, body, field))
    assert answer.fields["content-type"] == "application/octet-stream"
    assert answer.body[int(answer.fields["inference-header-content-length"]) :] == RAW
    assert lab.client().ask(http("POST", INFER, RAW, "Inference-Header-Content-Length: 0")).body.endswith(RAW)


def test_no_page_is_allowed_to_read_an_answer(lab: Lab) -> None:
    fields = lab.client().ask(infer()).fields
    assert not [name for name in fields if name.startswith("access-control")]
    asked = http("OPTIONS", INFER, b"", "Origin: https://evil.example", "Access-Control-Request-Method: POST")
    assert lab.client().ask(asked).status == HTTPStatus.FORBIDDEN
    assert lab.client().ask(http("POST", INFER, content(), "Origin: null")).status == HTTPStatus.FORBIDDEN
    assert lab.client().ask(http("GET", "/v2", host="evil.example")).status == HTTPStatus.MISDIRECTED_REQUEST


def test_names_that_the_owner_gave_are_served() -> None:
    with serving(names=("Pi.Home",)) as lab:
        assert lab.client().ask(http("GET", "/v2", host="pi.home:8000")).status == HTTPStatus.OK


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (get("/"), 404),
        (get("/v2/"), 404),
        (get("/v3"), 404),
        (get("/v2/models"), 404),
        (get("/v2/models/other"), 404),
        (get("/v2/models/digits/config"), 404),
        (get("/v2/models/digits/versions"), 404),
        (get("/v2/models/digits/versions/1"), 404),
        (get("/v2/models/digits%2Finfer"), 404),
        (get("/v2/models/..%2f..%2fetc%2fpasswd"), 404),
        (get("/v2/models/%ff%00"), 404),
        (http("POST", "/v2/models/digits/versions/1/infer", content()), 404),
        (get(INFER), 405),
        (http("DELETE", "/v2/models/digits"), 405),
        (http("POST", INFER, b"{}", "Content-Encoding: gzip"), 415),
        (http("POST", INFER), 400),
        (http("POST", INFER, content((1, 2))), 400),
    ],
    ids=lambda value: repr(value[:60]) if isinstance(value, bytes) else None,
)
def test_a_refusal_is_the_protocols_error_and_the_connection_goes_on(lab: Lab, request_: bytes, status: int) -> None:
    client = lab.client()
    refused = client.ask(request_)
    assert (refused.status, bool(refused.error)) == (status, True)
    assert refused.fields["content-type"] == "application/json"
    assert ("allow" in refused.fields) == (status == 405)
    assert client.ask(infer()).status == HTTPStatus.OK


def test_a_name_in_the_path_is_read_as_it_was_written(lab: Lab) -> None:
    assert lab.client().ask(get("/v2/models/d%69gits/versions/" + DIGEST.replace(":", "%3A"))).status == HTTPStatus.OK


def test_head_is_get_without_the_body(lab: Lab) -> None:
    client = lab.client()
    client.send(http("HEAD", "/v2"))
    head = client.response(without_body=True)
    lab.settle()
    client.receive()
    assert (head.status, client.received) == (HTTPStatus.OK, b"")
    assert int(head.fields["content-length"]) == len(client.ask(get("/v2")).body)
    # Of a request that never came nobody knows the method.
    client.send(http("HEAD", "/v2") + b"G")
    assert client.response(without_body=True).status == HTTPStatus.OK
    lab.settle()
    lab.pass_time(connection.HEAD_S + 1)
    assert client.response().error


# What becomes of the model ---------------------------------------------------------------------------------


def test_without_a_model_it_is_live_and_not_ready(lab: Lab) -> None:
    client, lab.model.info, lab.model.ready = lab.client(), None, False
    assert client.ask(get("/v2/health/live")).status == HTTPStatus.OK
    assert client.ask(get("/v2/health/ready")).json == {"live": True, "ready": False}
    assert client.ask(get("/v2/models/digits/ready")).json == {"name": "digits", "ready": False}
    for request in (get("/v2/models/digits"), infer()):
        refused = client.ask(request)
        assert (refused.status, refused.error) == (503, "no model is loaded")
        assert refused.fields["retry-after"] == "1"
    assert client.ask(http("POST", "/v2/repository/index")).json == []


def test_while_a_worker_is_started_again_the_backend_says_who_waits(slow: Lab) -> None:
    client, slow.model.ready = slow.client(), False
    assert client.ask(get("/v2/models/digits/ready")).json == {"name": "digits", "ready": False}
    client.send(infer())
    slow.until(lambda: bool(slow.model.asked))
    slow.model.finish()
    assert client.response().status == HTTPStatus.OK
    slow.model.has_room = False
    refused = client.ask(infer())
    assert (refused.status, refused.error) == (503, "the model is not ready")


def test_a_second_answer_to_the_same_request_is_none_to_the_next(slow: Lab) -> None:
    client = slow.client()
    client.send(infer())
    slow.until(lambda: bool(slow.model.asked))
    request, done = slow.model.asked[0]
    slow.model.finish()
    assert client.response().status == HTTPStatus.OK
    client.send(http("POST", INFER, content((9, 9, 9, 9))))
    slow.until(lambda: bool(slow.model.asked))
    done(slow.model.result(request))
    slow.model.finish()
    assert client.response().json["outputs"][0]["data"] == [9] * 4


def test_an_answer_of_a_model_with_other_outputs_is_none(slow: Lab) -> None:
    client = slow.client()
    client.send(infer())
    slow.until(lambda: bool(slow.model.asked))
    slow.model.info = ModelInfo("other", DIGEST, "litert", INFO.inputs, (TensorInfo("z", "float32", (1, 4)),))
    slow.model.finish()
    assert client.response().status == HTTPStatus.SERVICE_UNAVAILABLE


def test_a_result_that_breaks_its_own_promise_is_the_agents_fault(slow: Lab) -> None:
    client = slow.client()
    client.send(infer())
    slow.until(lambda: bool(slow.model.asked))
    _, done = slow.model.asked.pop()
    done(InferResult(DIGEST, (RawTensor("y", "float32", (1, 4), b"odd"),), 0.0))
    assert client.response().status == HTTPStatus.INTERNAL_SERVER_ERROR


def test_a_worker_that_dies_in_the_middle_is_the_protocols_error(slow: Lab) -> None:
    client = slow.client()
    client.send(infer())
    slow.until(lambda: bool(slow.model.asked))
    slow.model.finish(InferFailure(FailureKind.UNAVAILABLE, "the worker was ended by signal 11"))
    refused = client.response()
    assert (refused.status, refused.error) == (503, "the worker was ended by signal 11")
    client.send(infer())
    slow.until(lambda: bool(slow.model.asked))
    slow.model.finish()
    assert client.response().status == HTTPStatus.OK


def test_a_backend_that_takes_no_more_is_busy(lab: Lab) -> None:
    client, lab.model.has_room = lab.client(), False
    refused = client.ask(infer())
    assert (refused.status, "wait" in refused.error) == (503, True)


def test_a_model_that_never_answers_is_given_up(slow: Lab) -> None:
    client = slow.client()
    client.send(infer())
    slow.until(lambda: bool(slow.model.asked))
    slow.pass_time(connection.ANSWER_S + 1)
    assert client.response().status == HTTPStatus.SERVICE_UNAVAILABLE
    # What comes too late belongs to nobody.
    slow.model.finish()
    client.socket.shutdown(socket.SHUT_WR)
    client.has_ended()


def test_a_fault_in_the_backend_does_not_end_the_agent(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> NoReturn:
        raise ZeroDivisionError

    client = lab.client()
    with monkeypatch.context() as patch:
        patch.setattr(lab.model, "infer", broken)
        refused = client.ask(infer())
    assert (refused.status, "its log" in refused.error) == (500, True)
    assert client.ask(infer()).status == HTTPStatus.OK


def test_answers_of_two_clients_are_not_mixed_up(slow: Lab) -> None:
    first, second = slow.client(), slow.client()
    first.send(http("POST", INFER, content((1, 1, 1, 1))))
    slow.until(lambda: len(slow.model.asked) == 1)
    second.send(http("POST", INFER, content((2, 2, 2, 2))))
    slow.until(lambda: len(slow.model.asked) == 2)
    slow.model.asked.reverse()
    slow.model.finish()
    slow.model.finish()
    assert first.response().json["outputs"][0]["data"] == [1, 1, 1, 1]
    assert second.response().json["outputs"][0]["data"] == [2, 2, 2, 2]


# How requests come -----------------------------------------------------------------------------------------


def test_a_request_may_come_byte_by_byte(lab: Lab) -> None:
    body, field = binary(RAW)
    client = lab.client()
    for byte in http("POST", INFER, body, field):
        client.send(bytes([byte]))
        lab.turn()
    assert client.response().body.endswith(RAW)


def test_requests_in_one_piece_are_answered_in_order(slow: Lab) -> None:
    client = slow.client()
    client.send(b"".join(http("POST", INFER, content((i, i, i, i))) for i in range(5)) + get("/v2/health/live"))
    for i in range(5):
        slow.until(lambda: bool(slow.model.asked))
        # One at a time: the order is the client's.
        assert len(slow.model.asked) == 1
        slow.model.finish()
        assert client.response().json["outputs"][0]["data"] == [i] * 4
    assert client.response().json == {"live": True}


def test_more_requests_than_one_turn_takes_are_all_answered(lab: Lab) -> None:
    client, count = lab.client(), 50 * connection.REQUESTS_PER_TURN + 3
    client.send(get("/v2/health/live") * count)
    for _ in range(count):
        assert client.response().status == HTTPStatus.OK
    lab.settle()


def test_waiting_for_a_model_keeps_nobody_awake(slow: Lab) -> None:
    """Not even with a full turn of requests before, more of them behind, and a client that says no more."""
    client = slow.client()
    client.send(get("/v2") * connection.REQUESTS_PER_TURN + infer() + get("/v2"))
    slow.until(lambda: bool(slow.model.asked))
    client.send(get("/v2"))
    client.socket.shutdown(socket.SHUT_WR)
    slow.settle()
    slow.model.finish()
    for _ in range(connection.REQUESTS_PER_TURN + 3):
        assert client.response().status == HTTPStatus.OK
    client.has_ended()


def test_chunks_are_put_together(lab: Lab) -> None:
    body = content()
    head = http("POST", INFER, b"", "Transfer-Encoding: chunked")
    coded = b"5\r\n%s\r\n%x;a=b\r\n%s\r\n0\r\nX: y\r\n\r\n" % (body[:5], len(body) - 5, body[5:])
    client = lab.client()
    client.send(head + coded + get("/v2/health/live"))
    assert client.response().json["outputs"][0]["data"] == list(VALUES)
    assert client.response().json == {"live": True}


def test_a_client_that_waits_for_leave_gets_it(lab: Lab) -> None:
    body = content()
    request = http("POST", INFER, body, "Expect: 100-continue")
    head, body = request[: -len(body)], request[-len(body) :]
    client = lab.client()
    client.send(head)
    assert client.response(without_body=True).status == HTTPStatus.CONTINUE
    client.send(body)
    assert client.response().status == HTTPStatus.OK
    # Who sends its body at once is not told to go on.
    assert client.ask(request).status == HTTPStatus.OK


def test_a_client_that_asks_for_leave_for_too_much_does_not_get_it(lab: Lab) -> None:
    client = lab.client()
    client.send(b"POST / HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 900000000\r\n\r\n")
    assert client.response().status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE


def test_a_client_that_has_said_all_still_hears(slow: Lab) -> None:
    client = slow.client()
    client.send(infer())
    client.socket.shutdown(socket.SHUT_WR)
    slow.until(lambda: bool(slow.model.asked))
    slow.settle()
    slow.model.finish()
    assert client.response().status == HTTPStatus.OK
    client.has_ended()


def test_a_client_that_is_gone_disturbs_nobody(slow: Lab) -> None:
    gone, other = slow.client(), slow.client()
    gone.send(infer())
    slow.until(lambda: bool(slow.model.asked))
    gone.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    gone.socket.close()
    slow.settle()
    slow.model.finish()
    assert other.ask(get("/v2")).status == HTTPStatus.OK


def test_old_clients_are_served_as_they_expect(lab: Lab) -> None:
    closing = lab.client()
    assert closing.ask(b"GET /v2 HTTP/1.0\r\n\r\n").fields["connection"] == "close"
    closing.has_ended()
    keeping = lab.client()
    for _ in range(2):
        answer = keeping.ask(b"GET /v2 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert answer.fields["connection"] == "keep-alive"


# Broken and hostile ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET /" + b"a" * 1_000_000, 414),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200_000, 431),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n\r\n" + b"x" * 900_000, 413),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nffffff\r\n", 413),
        (b"GET /v2 HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
    ],
    ids=lambda value: repr(value[:40]) if isinstance(value, bytes) else None,
)
def test_what_is_no_request_is_answered_once_and_the_connection_closed(lab: Lab, raw: bytes, status: int) -> None:
    client = lab.client()
    client.send(raw)
    # What follows could be anybody's request, smuggled behind the broken one.
    client.send(get("/v2"))
    refused = client.response()
    assert (refused.status, bool(refused.error), refused.fields["connection"]) == (status, True, "close")
    client.has_ended()
    assert lab.client().ask(infer()).status == HTTPStatus.OK


def test_a_body_longer_than_it_says_is_no_second_request(lab: Lab) -> None:
    client = lab.client()
    body = content()
    client.send(http("POST", INFER, body) + b"and more\r\n\r\n")
    assert client.response().status == HTTPStatus.OK
    assert client.response().status == HTTPStatus.BAD_REQUEST
    client.has_ended()


def test_a_body_shorter_than_it_says_is_refused_at_its_end(lab: Lab) -> None:
    client = lab.client()
    client.send(infer()[:-5])
    client.socket.shutdown(socket.SHUT_WR)
    assert client.response().status == HTTPStatus.BAD_REQUEST
    client.has_ended()
    silent = lab.client()
    silent.send(b"GET /v2 HTT")
    silent.socket.shutdown(socket.SHUT_WR)
    assert silent.response().status == HTTPStatus.BAD_REQUEST


@pytest.mark.parametrize("raw", [b"G", b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n", infer()[:-5]])
def test_a_slow_request_has_until_its_deadline(lab: Lab, raw: bytes) -> None:
    client = lab.client()
    client.send(raw)
    lab.settle()
    lab.pass_time(connection.HEAD_S - 1)
    # A byte more does not buy more time.
    client.send(b"X" if raw.endswith(b"\n") else b"")
    lab.settle()
    lab.pass_time(2)
    assert client.response().status == HTTPStatus.REQUEST_TIMEOUT
    client.has_ended()


def test_an_idle_connection_is_closed_without_a_word(lab: Lab) -> None:
    client = lab.client()
    assert client.ask(get("/v2")).status == HTTPStatus.OK
    lab.pass_time(connection.IDLE_S - 1)
    assert client.ask(get("/v2")).status == HTTPStatus.OK
    lab.pass_time(connection.IDLE_S + 1)
    client.has_ended()


def test_an_answer_that_is_not_taken_is_given_up() -> None:
    size = 7_900_000
    info = ModelInfo(
        "raw", DIGEST, "litert", (TensorInfo("x", "uint8", (size,)),), (TensorInfo("y", "uint8", (size,)),)
    )
    request = http("POST", INFER, b"\x07" * size, "Inference-Header-Content-Length: 0")
    with serving(Echo(info, at_once=False)) as lab:
        client = lab.client()
        # Less than the answer fits into the kernel.
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.send(request)
        lab.until(lambda: bool(lab.model.asked))
        lab.model.finish()
        # In the backend's memory there is something else by now.
        assert client.response().body.endswith(b"\x07" * size)
        client.send(request)
        lab.until(lambda: bool(lab.model.asked))
        lab.model.finish()
        lab.settle()
        lab.pass_time(connection.TRANSFER_S + size / connection.SLOWEST_BYTES_PER_S + 1)
        lab.until(client.is_closed)
        assert len(client.received) < size


def test_bodies_together_have_a_limit() -> None:
    with serving(Echo(at_once=False), max_body_mb=1) as lab:
        head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
        holding = [lab.client() for _ in range(server.BODIES_AT_ONCE)]
        for client in holding:
            client.send(head)
        lab.settle()
        refused = lab.client().ask(head)
        assert (refused.status, "large" in refused.error) == (503, True)
        holding[0].socket.close()
        lab.settle()
        client = lab.client()
        client.send(head + b"x" * 1_000_000)
        assert client.response().status == HTTPStatus.NOT_FOUND


def test_idle_and_dawdling_clients_make_room_for_a_new_one(slow: Lab) -> None:
    busy = slow.client()
    busy.send(infer())
    slow.until(lambda: bool(slow.model.asked))
    oldest = slow.client()
    oldest.send(b"GET")
    slow.settle()
    for i in range(2 * server.MAX_CONNECTIONS):
        slow.clock.at += 0.001
        crowd = slow.client()
        crowd.send(b"GET" if i % 2 else b"")
        slow.settle()
    assert oldest.is_closed()
    assert slow.client().ask(get("/v2")).status == HTTPStatus.OK
    slow.model.finish()
    assert busy.response().status == HTTPStatus.OK


def test_with_every_connection_busy_a_new_one_is_told_so(slow: Lab) -> None:
    for _ in range(server.MAX_CONNECTIONS):
        slow.client().send(infer())
        slow.settle()
    assert len(slow.model.asked) == server.MAX_CONNECTIONS
    refused = slow.client()
    assert (refused.response().status, slow.server.address is not None) == (503, True)


# Where it listens, and what it may be told --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "allowed"), [("127.0.0.1", False), ("127.0.0.9", False), ("::1", False), ("10.0.0.7", True), ("::", True)]
)
def test_an_address_that_others_reach_has_to_be_meant(host: str, allowed: bool) -> None:
    assert ServeSettings(host=host, allow_network=True).host == host
    if not allowed:
        assert ServeSettings(host=host).host == host
        return
    with pytest.raises(ValueError, match="allow_network = true"):
        ServeSettings(host=host)


@pytest.mark.parametrize(
    ("name", "value"), [("host", "localhost"), ("host", ""), ("port", 65536), ("model", "a/b"), ("max_body_mb", 0)]
)
def test_settings_that_make_no_sense_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        ServeSettings.model_validate({name: value})


def test_it_listens_on_ipv6_too() -> None:
    with serving(host="::1") as lab:
        assert lab.client().ask(http("GET", "/v2", host="[::1]:8000")).status == HTTPStatus.OK


# The listening socket --------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_said_once_and_tried_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serving(port=port) as lab:
            lab.pass_time(server.LISTEN_AGAIN_S + 1)
            assert lab.server.address is None
            assert [kind for kind, _ in lab.events] == ["local_api"]
            assert f"127.0.0.1:{port}" in lab.events[0][1]
            taken.close()
            lab.pass_time(server.LISTEN_AGAIN_S + 1)
            assert lab.client().ask(get("/v2")).status == HTTPStatus.OK


def test_too_few_descriptors_are_waited_for(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_: socket.socket) -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "accept", none_left)
        client = lab.client()
        lab.settle()
    client.send(get("/v2"))
    lab.settle()
    assert not client.received
    lab.pass_time(server.ACCEPT_AGAIN_S + 1)
    assert client.response().status == HTTPStatus.OK


def test_switched_off_it_listens_nowhere() -> None:
    with serving(enabled=False) as lab:
        assert (lab.server.address, lab.server.descriptors()) == (None, {})


def test_closing_ends_every_connection_and_late_answers_go_nowhere() -> None:
    with serving(Echo(at_once=False)) as lab:
        client: Client = lab.client()
        client.send(infer())
        lab.until(lambda: bool(lab.model.asked))
        lab.server.close()
        assert client.is_closed()
        lab.model.finish()
        assert not client.received
