"""The question whether the same hardware chose among a package's variants before: asked once, not waited for long.

Nothing is chosen here; without an answer the device measures for itself.
"""

from __future__ import annotations

from pydantic import ValidationError

from edgefleet.prior import FRESH_S, prior_name
from edgefleet.protocol.decisions import Objective, Prior
from edgefleet.protocol.messages import Reply, Request, RequestKind
from edgefleet_agent.asking import Question

MAX_BYTES = 4096
WAIT_S = 10.0
"""An older server does not know the question, and says nothing."""


class PriorQuestion:
    """One question about one package version."""

    def __init__(self, index_digest: str, hardware_class: str, objective: Objective) -> None:
        """Nothing is sent from here."""
        self._wanted = (index_digest, hardware_class, objective)
        name = prior_name(hardware_class, objective)
        self._question = Question(RequestKind.PRIOR, MAX_BYTES, name=name, digest=index_digest)
        self._first_asked_at: float | None = None

    def due(self, now: float) -> bool:
        """Whether to ask (again) now."""
        return not self.is_over(now) and self._question.due(now)

    def request(self, req_id: str) -> Request:
        """The request to send; call `asked` when it was."""
        return self._question.request(req_id)

    def asked(self, req_id: str, now: float) -> None:
        """It was sent."""
        self._first_asked_at = now if self._first_asked_at is None else self._first_asked_at
        self._question.asked(req_id, now)

    def reconnected(self) -> None:
        """What was asked is lost with the old connection."""
        self._question.reconnected()

    def take(self, reply: Reply, now: float) -> bool:
        """Take a reply; False when it answers something else."""
        return self._question.take(reply, now)

    def is_over(self, now: float) -> bool:
        """Whether there is nothing to wait for any more."""
        waited_s = 0.0 if self._first_asked_at is None else now - self._first_asked_at
        return self._question.answer is not None or waited_s > WAIT_S

    def prior(self, wall_clock: float) -> Prior | None:
        """A fresh answer to what was asked, or None; `wall_clock` is seconds since 1970, and may be behind."""
        answer = self._question.answer
        if answer is None or not answer.body:
            return None
        try:
            prior = Prior.model_validate_json(answer.body)
        except ValidationError:
            return None
        is_asked_for = (prior.index_digest, prior.hardware_class, prior.objective) == self._wanted
        return prior if is_asked_for and wall_clock - prior.at < FRESH_S else None
