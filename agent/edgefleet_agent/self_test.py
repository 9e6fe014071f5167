"""The self-test of a variant: its golden inputs, run by a child process in the runtime that will serve it.

What the child computes is `worker`'s business; this waits for what it says.
"""

from __future__ import annotations

from pathlib import Path

from edgefleet.package.manifest import VariantSpec
from edgefleet_agent import supervise
from edgefleet_agent.settings import RuntimeSettings, WorkerSettings

TIMEOUT_S = 120.0


class SelfTestError(Exception):
    """The variant does not do here what it did where it was packaged; the text says why."""


class SelfTest:
    """One self-test that was started."""

    def __init__(
        self, slot: Path, spec: VariantSpec, now: float, *,
        runtime: RuntimeSettings = supervise.DEFAULT_RUNTIME, worker: WorkerSettings = supervise.DEFAULT_WORKER,
    ) -> None:  # fmt: skip
        """Start it, with the settings that it will serve with; raises SelfTestError."""
        try:
            self._worker = supervise.self_test(slot, spec, runtime, worker)
        except OSError as error:
            raise SelfTestError(f"no process could be started ({error.strerror or error})") from error
        self._deadline = now + TIMEOUT_S

    def fileno(self) -> int:
        """Becomes readable when there is something to know."""
        return self._worker.fileno()

    def max_difference(self, now: float) -> float | None:
        """The largest difference of a test that passed, None while it runs; raises SelfTestError."""
        said, ended = self._worker.messages()
        for message in said:
            if message["kind"] == "self_test" and message["ok"]:
                return float(message["max_abs_difference"])
            raise SelfTestError(message["reason"])
        if ended:
            raise SelfTestError(self._worker.exit_reason())
        if now > self._deadline:
            raise SelfTestError(f"no result within {TIMEOUT_S:.0f} s")
        return None

    def stop(self) -> None:
        """End the child process."""
        self._worker.stop()
