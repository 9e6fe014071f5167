"""The question for a prior: asked again while it is worth it, answered or not, and nothing foreign believed."""

from __future__ import annotations

import pytest

from edgefleet.prior import FRESH_S
from edgefleet.protocol.decisions import Objective, Prior
from edgefleet.protocol.messages import Reply, RequestKind, Status
from edgefleet_agent.prior_question import WAIT_S, PriorQuestion

INDEX, CLASS, NOW = "sha256:" + "1" * 64, "h0123456789abcdef", 1_790_000_000.0
PRIOR = Prior(
    hardware_class=CLASS, index_digest=INDEX, objective=Objective.LATENCY, digest="sha256:" + "a" * 64, threads=2,
    inference_p90_s=0.01, devices=3, at=NOW - 60,
)  # fmt: skip


def asked() -> PriorQuestion:
    question = PriorQuestion(INDEX, CLASS, Objective.LATENCY)
    assert question.due(0.0)
    request = question.request("1-1")
    assert (request.kind, request.digest) == (RequestKind.PRIOR, INDEX)
    assert request.name == f"{CLASS}-latency.json"
    question.asked("1-1", 0.0)
    assert not question.is_over(0.0)
    return question


def answered(body: bytes) -> PriorQuestion:
    question = asked()
    assert not question.take(Reply(req_id="1-0", status=Status.OK, body=body), 1.0)
    assert question.take(Reply(req_id="1-1", status=Status.OK, body=body), 1.0)
    assert question.is_over(1.0)
    return question


def test_a_fresh_answer_is_taken() -> None:
    assert answered(PRIOR.encode()).prior(NOW) == PRIOR
    assert answered(PRIOR.encode()).prior(0.0) == PRIOR


@pytest.mark.parametrize(
    "body",
    [
        PRIOR.model_copy(update={"at": NOW - FRESH_S}).encode(),
        PRIOR.model_copy(update={"index_digest": "sha256:" + "2" * 64}).encode(),
        PRIOR.model_copy(update={"hardware_class": "h" + "0" * 16}).encode(),
        PRIOR.model_copy(update={"objective": Objective.SIZE}).encode(),
        PRIOR.encode()[:-1],
        b"",
    ],
)
def test_what_was_not_asked_for_or_is_old_is_none(body: bytes) -> None:
    assert answered(body).prior(NOW) is None


def test_gone_is_an_answer() -> None:
    question = asked()
    assert question.take(Reply(req_id="1-1", status=Status.GONE), 1.0)
    assert question.is_over(1.0)
    assert question.prior(NOW) is None


def test_silence_is_not_waited_out_for_long() -> None:
    question = asked()
    now = 0.0
    while not question.is_over(now):
        now += 0.5
        if question.due(now):
            question.asked("1-2", now)
    assert WAIT_S < now <= WAIT_S + 0.5
    assert not question.due(now + 100)
    assert question.prior(NOW) is None
