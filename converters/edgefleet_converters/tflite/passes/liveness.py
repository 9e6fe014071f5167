"""Which nodes, or operators of a file, some output needs.

Knows nothing of what they compute.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar


class _Step(Protocol):
    """Anything that makes named values of named values; an empty name is an absent one."""

    @property
    def inputs(self) -> tuple[str, ...]: ...

    @property
    def outputs(self) -> tuple[str, ...]: ...


Step = TypeVar("Step", bound=_Step)


def needed(steps: Iterable[Step], outputs: Iterable[str]) -> list[Step]:
    """The steps that the outputs depend on, in their order."""
    wanted, kept = set(outputs), []
    for step in reversed(list(steps)):
        if wanted.intersection(step.outputs):
            wanted.update(name for name in step.inputs if name)
            kept.append(step)
    return kept[::-1]
