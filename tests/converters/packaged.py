"""One finished packaging run, as the tests share it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgefleet_converters.packaging import PackageResult, Request
from edgefleet_converters.progress import Event


@dataclass(frozen=True, slots=True)
class Packaged:
    """What was asked for, what came out, and the progress on the way."""

    request: Request
    result: PackageResult
    events: list[Event]

    def again(self, **changes: object) -> Request:
        """The same request with other fields."""
        return replace(self.request, **changes)  # type: ignore[arg-type] # the test knows the fields
