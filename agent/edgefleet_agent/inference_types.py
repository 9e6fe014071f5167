"""What is asked of a model and what comes back, as raw bytes: the words that its callers and its worker share.

It holds no numpy and checks nothing: whoever takes a request from outside checks it against `ModelInfo` first.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

FREE = -1
"""A dimension that a model leaves open."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One input or output as the source model has it: numpy's name of its type, and its shape (`FREE` where open)."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The variant that is loaded, by its own name; `digest` is its own too, as the journal has it."""

    name: str
    digest: str
    runtime: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A tensor's values: row-major, little-endian; `len(data)` is the item's size times every dimension."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class InferRequest:
    """Every input of the model, by name and in any order; `outputs` None asks for all of them."""

    tensors: tuple[RawTensor, ...]
    outputs: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class InferResult:
    """What one inference gave, and the digest of the variant that gave it; `inference_s` is the inference alone."""

    digest: str
    tensors: tuple[RawTensor, ...]
    inference_s: float


class FailureKind(StrEnum):
    """Whose matter a failure is."""

    REFUSED = "refused"
    """The request does not fit the model: asking the same again is of no use."""
    FAILED = "failed"
    """The runtime refused or broke on it."""
    UNAVAILABLE = "unavailable"
    """No worker is ready, or it ended in the middle: asking again later may help."""


@dataclass(frozen=True, slots=True)
class InferFailure:
    """Why there is no result, in one line."""

    kind: FailureKind
    reason: str


InferDone = Callable[[InferResult | InferFailure], None]

Described = tuple[str, str, tuple[int, ...], int]
"""A tensor without its values: name, numpy's name of the type, shape, size in bytes."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A request that a client makes over and over with other values, and its answer, as bytes.

    A request is `question` and the inputs' values, one after the other; its answer is `head`, `text` with the seconds
    that the inference took for its %.9f, and the outputs' values.
    """

    digest: str
    """Of the variant that gives such answers."""
    question: bytes
    inputs: tuple[Described, ...]
    head: bytes
    text: bytes
    text_bytes: int
    """Of `text` with the seconds in it, as `head` says."""
    outputs: tuple[Described, ...]


Returned = Callable[[str | None], None]
"""A lent connection is the lender's again; a text says why a request of it gets no answer, None: there is none."""


class Backend(Protocol):
    """Who answers requests: one worker, or whoever keeps one running."""

    @property
    def ready(self) -> bool:
        """Whether a request would be run now."""
        ...

    @property
    def metadata(self) -> ModelInfo | None:
        """What is loaded; None while nothing is."""
        ...

    def infer(self, request: InferRequest, done: InferDone) -> bool:
        """Take a request and call `done` once, later or at once; False when too many wait already or none can be run.

        `request`'s memory may be used again as soon as `done` is called; the result's only until `done` returns.
        """
        ...

    def lend(self, client: socket.socket, standing: Standing, returned: Returned) -> bool:
        """Have the worker itself answer a client that makes a standing request, until it asks anything else.

        Nothing may be read from the client before `returned` was called, later and once; what the worker does not
        answer is still unread then. False when that cannot be.
        """
        ...
