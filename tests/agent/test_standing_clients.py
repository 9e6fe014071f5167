"""Clients that a worker answers by itself: what it takes, what it leaves unread, and when they go back."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgefleet_agent import standing_clients, standing_message
from edgefleet_agent.inference_types import Standing
from edgefleet_agent.standing_clients import Inferred, StandingClients
from edgefleet_agent.tensors import Region
from edgefleet_agent.variant import Array, Arrays

STANDING = Standing(
    digest="sha256:" + "a" * 64,
    question=b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 22\r\n\r\n{\"\xc3\xa9\":1}",
    inputs=(("x", "float32", (1, 4), 16),),
    head=b"HTTP/1.1 200 OK\r\n\r\n",
    text=b'{"100%%":%.9f}',
    text_bytes=len(b'{"100%":0.001000000}'),
    outputs=(("y", "float32", (1, 4), 16),),
)  # fmt: skip
GREETING = b'HTTP/1.1 200 OK\r\n\r\n{"100%":0.001000000}'


def values(*numbers: float) -> bytes:
    return np.array([*numbers], np.float32).tobytes()


def question(*numbers: float) -> bytes:
    return STANDING.question + values(*numbers)


class Lab:
    """The clients of a worker that doubles, and both ends of one of them."""

    def __init__(self) -> None:
        self.agent, passed = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.said: list[Mapping[str, Any]] = []
        self.region = Region.make()
        self.waking: list[int] = []
        self.clients = StandingClients(passed, self.region, self)
        self.seen: list[int] = []
        """Whose request it was at each inference, as the agent would find it."""
        self.counted = 0
        self.inference_s = 0.001
        self.refuses = False
        self.meanwhile: Callable[[], None] = lambda: None
        self.width = 4
        self.aligned = True

    # The agent's channel.

    def send(self, message: Mapping[str, Any]) -> None:
        self.said.append(message)

    def wake_by(self, descriptor: int) -> None:
        self.waking.append(descriptor)

    def forget(self, descriptor: int) -> None:
        self.waking.remove(descriptor)

    def infer(self, inputs: Arrays) -> Inferred | None:
        self.seen.append(self.region.lent[0])
        self.meanwhile()
        self.aligned = self.aligned and all(one.ctypes.data % 64 == 0 for one in inputs.values())
        if self.refuses:
            return None
        outputs: dict[str, Array] = {"y": 2 * inputs["x"][:, : self.width]}
        return Inferred(outputs, self.inference_s, self.count)

    def count(self) -> None:
        self.counted += 1

    def lend(self, number: int = 1, standing: Standing = STANDING) -> tuple[socket.socket, socket.socket]:
        """(the client's end, the agent's own descriptor of the other)."""
        # Over TCP what is sent comes a little later.
        client, kept = socket.socketpair()
        for one in (client, kept):
            one.setblocking(False)
        socket.send_fds(self.agent, [standing_message.packed(number, standing)], [kept.fileno()])
        self.turn()
        return client, kept

    def turn(self) -> None:
        self.clients.turn(self.infer)

    @property
    def returned(self) -> list[int]:
        return [each["client"] for each in self.said if each["kind"] == "returned"]


@pytest.fixture(name="lab")
def _lab() -> Iterator[Lab]:
    lab = Lab()
    yield lab
    lab.clients.give_back()
    lab.agent.close()


def test_a_standing_request_survives_its_datagram() -> None:
    assert standing_message.unpacked(standing_message.packed(7, STANDING)) == (7, STANDING)


def test_what_is_asked_again_and_again_is_answered(lab: Lab) -> None:
    client, _ = lab.lend()
    for number in range(5):
        client.sendall(question(number, 1, 2, 3))
        lab.turn()
        assert client.recv(1000) == GREETING + values(2 * number, 2, 4, 6)
    assert (lab.counted, lab.seen, lab.region.lent[0], lab.returned) == (5, [1] * 5, 0, [])
    assert lab.aligned


def test_what_lies_there_already_is_answered_when_it_is_lent(lab: Lab) -> None:
    client, kept = socket.socketpair()
    client.sendall(question(1, 2, 3, 4))
    kept.setblocking(False)
    socket.send_fds(lab.agent, [standing_message.packed(1, STANDING)], [kept.fileno()])
    lab.turn()
    assert client.recv(1000) == GREETING + values(2, 4, 6, 8)


def test_a_request_may_come_in_pieces(lab: Lab) -> None:
    client, _ = lab.lend()
    asked = question(1, 2, 3, 4)
    for place in range(len(asked)):
        assert lab.counted == 0
        client.sendall(asked[place : place + 1])
        lab.turn()
    assert client.recv(1000) == GREETING + values(2, 4, 6, 8)


def test_several_at_once_are_answered_in_their_order(lab: Lab) -> None:
    client, _ = lab.lend()
    client.sendall(question(1, 0, 0, 0) + question(2, 0, 0, 0) + question(3, 0, 0, 0)[:30])
    lab.turn()
    assert client.recv(1000) == GREETING + values(2, 0, 0, 0) + GREETING + values(4, 0, 0, 0)
    client.sendall(question(3, 0, 0, 0)[30:])
    lab.turn()
    assert client.recv(1000) == GREETING + values(6, 0, 0, 0)


def test_of_very_many_at_once_the_rest_goes_back_unread(lab: Lab) -> None:
    client, kept = lab.lend()
    client.sendall(b"".join(question(number, 0, 0, 0) for number in range(20)))
    lab.turn()
    assert (lab.counted, lab.returned) == (standing_clients.REQUESTS_PER_TURN, [1])
    assert kept.recv(10_000) == b"".join(question(number, 0, 0, 0) for number in range(16, 20))


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(b"GET /v2 HTTP/1.1\r\n\r\n", id="another"),
        pytest.param(STANDING.question[:-1] + b"2" + values(1, 2, 3, 4), id="nearly the same"),
        pytest.param(STANDING.question[:20] + b"!", id="begins the same"),
    ],
)
def test_anything_else_goes_back_unread(lab: Lab, other: bytes) -> None:
    client, kept = lab.lend()
    client.sendall(question(1, 2, 3, 4) + other)
    lab.turn()
    assert lab.returned == [1]
    assert client.recv(1000) == GREETING + values(2, 4, 6, 8)
    assert kept.recv(1000) == other
    # Whoever has it now answers it; nothing of it is taken here any more.
    client.sendall(question(1, 2, 3, 4))
    lab.turn()
    assert kept.recv(1000) == question(1, 2, 3, 4)


def test_the_end_of_a_client_goes_back(lab: Lab) -> None:
    client, kept = lab.lend()
    client.close()
    lab.turn()
    assert lab.returned == [1]
    assert kept.recv(1000) == b""


def test_a_last_request_is_answered_and_its_end_goes_back(lab: Lab) -> None:
    client, kept = lab.lend()
    client.sendall(question(1, 2, 3, 4))
    client.shutdown(socket.SHUT_WR)
    lab.turn()
    assert client.recv(1000) == GREETING + values(2, 4, 6, 8)
    assert lab.returned == [1]
    assert kept.recv(1000) == b""


def test_a_client_that_leaves_while_it_is_inferred_for_is_counted_and_leaves_nobody_at_work(lab: Lab) -> None:
    client, _ = lab.lend()
    client.sendall(question(1, 2, 3, 4))
    lab.meanwhile = client.close
    lab.turn()
    assert (lab.seen, lab.region.lent, lab.counted, lab.returned) == ([1], (0, 1), 1, [1])


@pytest.mark.parametrize("why", ["the runtime refuses", "another shape", "ten seconds have a digit more"])
def test_what_has_no_usual_answer_goes_back_unread_and_uncounted(lab: Lab, why: str) -> None:
    client, kept = lab.lend()
    lab.refuses = why == "the runtime refuses"
    lab.width = 3 if why == "another shape" else 4
    lab.inference_s = 10.0 if why == "ten seconds have a digit more" else 0.001
    client.sendall(question(1, 2, 3, 4))
    lab.turn()
    assert (lab.returned, lab.counted, lab.region.lent[0]) == ([1], 0, 0)
    assert kept.recv(1000) == question(1, 2, 3, 4)


def test_a_part_of_a_request_is_waited_for_by_the_agent(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing_clients, "PARTIAL_S", 0.0)
    client, kept = lab.lend()
    client.sendall(question(1, 2, 3, 4)[:40])
    lab.turn()
    lab.turn()
    assert lab.returned == [1]
    assert kept.recv(1000) == question(1, 2, 3, 4)[:40]


def test_who_asks_nothing_goes_back(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lab.clients.wait_s() == float("inf")
    monkeypatch.setattr(standing_clients, "IDLE_S", 0.0)
    lab.lend()
    lab.turn()
    assert lab.returned == [1]
    assert lab.clients.wait_s() == float("inf")


def test_a_client_that_takes_no_answers_holds_nobody_up(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    big = replace(STANDING, head=b"x" * 30_000)
    client, kept = lab.lend(1, big)
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    other, _ = lab.lend(2)
    before = -1
    while lab.counted != before:
        before = lab.counted
        client.send(question(1, 2, 3, 4))
        lab.turn()
    assert before > 0
    other.sendall(question(1, 2, 3, 4))
    lab.turn()
    assert other.recv(1000) == GREETING + values(2, 4, 6, 8)
    monkeypatch.setattr(standing_clients, "UNSENT_S", 0.0)
    monkeypatch.setattr(standing_clients, "PARTIAL_S", 0.0)
    client.send(b"")
    other.sendall(question(1, 2, 3, 4))
    lab.clients._look_at_s = 0.0
    lab.turn()
    assert lab.returned == [1]
    # Half of an answer was sent: nothing may follow it.
    client.setblocking(True)
    received = b"".join(iter(lambda: client.recv(1 << 20), b""))
    assert received.count(b"x" * 30_000) <= before


def test_it_takes_up_where_the_client_takes_answers_again(lab: Lab) -> None:
    big = replace(STANDING, head=b"x" * 30_000)
    client, kept = lab.lend(1, big)
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    sent = 0
    while lab.counted == sent:
        client.send(question(sent, 0, 0, 0))
        sent += 1
        lab.turn()
    answer_bytes, received = 30_000 + STANDING.text_bytes + 16, b""
    while len(received) < sent * answer_bytes:
        try:
            received += client.recv(1 << 20)
        except BlockingIOError:
            lab.turn()
    answers = [received[place * answer_bytes :][:answer_bytes] for place in range(sent)]
    assert [np.frombuffer(one[-16:], np.float32)[0] for one in answers] == [2.0 * place for place in range(sent)]
    assert lab.returned == []


def test_when_the_worker_leaves_all_go_back(lab: Lab) -> None:
    clients = [lab.lend(number) for number in (1, 2, 3)]
    lab.clients.give_back()
    assert sorted(lab.returned) == [1, 2, 3]
    for client, kept in clients:
        client.sendall(b"hello")
        lab.turn()
        assert kept.recv(100) == b"hello"


def test_an_agent_that_is_gone_wakes_nobody_for_ever(lab: Lab) -> None:
    lab.agent.close()
    lab.turn()
    assert lab.clients._epoll.poll(0) == []
    assert lab.waking == []
