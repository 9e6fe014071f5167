"""One live inference of a source as a message from the worker to the agent: inputs, outputs, and the time it took.

It travels as text and not in shared memory: it is rare, and a request may lie in that.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any, Protocol

from edgefleet_agent.inference_types import InferRequest, InferResult, RawTensor

MOST_BYTES = 2**20
"""Of inputs and outputs together: more would hold the agent's loop up."""


class Values(Protocol):
    """A numpy array, as far as it is used here."""

    @property
    def dtype(self) -> Any: ...  # noqa: D102
    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def nbytes(self) -> int: ...  # noqa: D102
    def tobytes(self) -> bytes: ...  # noqa: D102


def encode(inputs: Mapping[str, Values], outputs: Mapping[str, Values], inference_s: float) -> dict[str, Any]:
    """The message; what is too large is said instead."""
    size_bytes = sum(values.nbytes for side in (inputs, outputs) for values in side.values())
    if size_bytes > MOST_BYTES:
        return {"kind": "sampled", "refusal": f"{size_bytes} bytes of tensors are too many to be compared"}
    return {"kind": "sampled", "inputs": _side(inputs), "outputs": _side(outputs), "inference_s": inference_s}


def _side(tensors: Mapping[str, Values]) -> list[list[Any]]:
    return [
        [name, str(values.dtype), list(values.shape), base64.b64encode(values.tobytes()).decode()]
        for name, values in tensors.items()
    ]


def decode(message: Mapping[str, Any], digest: str) -> tuple[InferRequest, InferResult]:
    """What was asked, and what the variant `digest` answered; raises ValueError with the reason where that is none."""
    if "refusal" in message:
        raise ValueError(message["refusal"])
    try:
        inputs, outputs = (
            tuple(RawTensor(name, dtype, tuple(shape), base64.b64decode(data)) for name, dtype, shape, data in side)
            for side in (message["inputs"], message["outputs"])
        )
        return InferRequest(inputs), InferResult(digest, outputs, float(message["inference_s"]))
    except (KeyError, TypeError, binascii.Error) as error:
        raise ValueError(f"a worker's sample lacks something: {error}") from error
