"""Whether a client makes one request over and over with other values, and what that request is as bytes. Pure.

Who answers it then is none of its business.
"""

from __future__ import annotations

from edgefleet_agent.inference_types import Described, Standing
from edgefleet_agent.serve.answers import Form
from edgefleet_agent.serve.head import END, Head

LEND_AFTER = 32
"""So many of the same in a row: to lend a connection, and have it back, costs what two requests save by it."""
MAX_BYTES = 32 * 1024
"""Of a request or an answer: what a socket's buffers hold whatever else is in them."""
ALIGNMENT_BYTES = 64
"""Of each input's values, from where the first one's begin: a runtime reads them in place."""


class Habit:
    """One client's."""

    def __init__(self) -> None:
        """It has asked nothing yet."""
        self._head = b""
        self._form: Form | None = None
        self._times = 0

    def took(self, head: bytes, form: Form) -> bool:
        """Note a request that was answered; True when there were enough of it in a row. Both are kept objects."""
        last, self._form = self._form, form
        same = last is not None and form.asked is last.asked and form.answered is last.answered and head is self._head
        self._head = head
        self._times = self._times + 1 if same else 1
        return self._times % LEND_AFTER == 0


def standing(raw: bytes, head: Head, form: Form, answer_head: bytes) -> Standing | None:
    """The request with the head `raw`, as bytes; None where it is larger, or sent otherwise, than a worker takes."""
    inputs = tuple([(one.name, one.dtype, one.shape, len(one.data)) for one in form.request.tensors])
    question, text_bytes = raw + END + form.asked, len(form.answered % 0.0)
    values_bytes = _size(inputs)
    if head.length != len(form.asked) + values_bytes or head.expects_continue or head.version != "1.1":
        return None
    if max(len(question) + values_bytes, len(answer_head) + text_bytes + _size(form.outputs)) > MAX_BYTES:
        return None
    # Whether the bytes of a bool are 0 or 1 is looked at in a request that is read here.
    if any(size % ALIGNMENT_BYTES for *_, size in inputs[:-1]) or any(dtype == "bool" for _, dtype, *_ in inputs):
        return None
    return Standing(form.digest, question, inputs, answer_head, form.answered, text_bytes, form.outputs)


def _size(tensors: tuple[Described, ...]) -> int:
    return sum(size for *_, size in tensors)
