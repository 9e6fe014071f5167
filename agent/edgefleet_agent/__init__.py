"""The agent: pulls the right variant, runs it, and reports latency and power. Importing it loads nothing heavy."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from edgefleet_agent.in_process import LoadedVariant


def load(path: str | Path) -> LoadedVariant:
    """Open a variant in this process: `load("/var/lib/edgefleet").infer(x)`; see `in_process.load`."""
    from edgefleet_agent import in_process  # noqa: PLC0415 - an agent that only imports this package has no numpy

    return in_process.load(path)
