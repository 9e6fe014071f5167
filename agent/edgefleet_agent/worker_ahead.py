"""The first worker's process, begun before the agent itself is loaded: both load at the same time.

It gets its plan, and with it a model, from an agent that has verified one; until then it loads its runtime and waits.
What cannot be told here is not guessed: there is none ahead then.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from edgefleet_agent.worker_process import WorkerProcess

JOURNAL_FILE = "journal.json"
"""As `journal` has it, which takes as long to load as is to be saved here."""


class Ahead:
    """At most one process, for whoever starts a worker first."""

    def __init__(self, process: WorkerProcess | None = None) -> None:
        """None: whoever starts a worker starts its process too."""
        self._process = process

    def take(self, runtime: str) -> WorkerProcess | None:
        """The process, once, if it is alive and loads that runtime; otherwise it is ended."""
        process = self._process
        if process is None or process.runtime != runtime or process.exit_code is not None:
            self.dismiss()
            return None
        self._process = None
        return process

    def dismiss(self) -> None:
        """There is nothing for it to do: end it."""
        if self._process is not None:
            self._process.kill()
            self._process.stop()
            self._process = None


def begin(config: Path) -> Ahead:
    """Start the process for the variant that ran last, by the settings file and the journal; raises nothing."""
    try:
        settings = tomllib.loads(config.read_text(encoding="utf-8"))
        journal = json.loads((config.parent / settings["state_folder"] / JOURNAL_FILE).read_bytes())
        return Ahead(WorkerProcess(journal["active"]["runtime"]))
    except (OSError, ValueError, KeyError, TypeError):
        # Whoever reads these files for good says what is wrong with them.
        return Ahead()
