"""What is asked of a model and what comes back, as raw bytes: the words that its callers and its worker share.

It holds no numpy and checks nothing: whoever takes a request from outside checks it against `ModelInfo` first.
"""

from __future__ import annotations

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
