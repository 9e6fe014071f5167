"""A device that faults are tried on: started bare, or behind strace or faketime, and looked at afterwards.

What must hold whatever happened is `assert_sound`, with `assert_committed` or `assert_refused` for how it ended.
"""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from edgefleet.package.layout import Package
from edgefleet.server.data_folder import STORE_FILE
from edgefleet_agent.slots import Slots
from edgefleet_demo.processes import Process, ProcessGroup
from fleet_lab import PROBATION_S, Lab

HIDDEN_OF_FIVE_BLOCKS = 900
"""Of `write_lab_package`: 266 kB of weights."""
"""A desired state that could not be journalled comes again after half a minute."""
AGAIN_BYTES = 6 * 60 * 1024
"""What a restart may pull once more: what was in flight on a fast line, and all metadata."""
KEPT = {
    "agent.lock", "current", "journal.json", ".journal.json.tmp", "decision.json", "slots", "status.json",
    "staging", "trust",
    "spool.sqlite", "spool.sqlite-shm", "spool.sqlite-wal",
}  # fmt: skip


def meddled(path: Path, call: str, action: str) -> list[str]:
    """What goes in front of an agent: `action` happens to the calls on one file. -D leaves it our own child."""
    head = ["strace", "-D", "-I1", "-f", "-qq", "-o", "/dev/null"]
    return [*head, "-P", str(path), "-e", f"trace={call}", "-e", f"inject={call}:{action}"]


class _Behind:
    """A process group that starts every command behind another one."""

    def __init__(self, group: ProcessGroup, prefix: Sequence[str]) -> None:
        self._group, self._prefix = group, list(prefix)

    def start(self, name: str, command: Sequence[str]) -> Process:
        """Start PREFIX COMMAND."""
        return self._group.start(name, [*self._prefix, *command])


@dataclass
class Patient:
    """One device on a lab."""

    lab: Lab
    name: str
    agent: Process | None = None
    probation_s: float = PROBATION_S

    @property
    def state(self) -> Path:
        """Its state folder."""
        return self.lab.state_folder(self.name)

    def prepare(self) -> None:
        """Make the state folder, so that its paths are known before the first start."""
        self.state.mkdir(parents=True)

    def start(self, *prefix: str) -> Process:
        """Start the agent, behind `prefix` where there is one; go on once the server heard of it, or it ended."""
        behind = cast("ProcessGroup", _Behind(self.lab.group, prefix))
        self.agent = agent = (replace(self.lab, group=behind) if prefix else self.lab).start_agent(
            self.name, probation_s=self.probation_s
        )
        log = agent.log_file
        said = log.read_text().count("connected to the broker")
        self.lab.wait(
            lambda: agent.exit_code is not None or log.read_text().count("connected to the broker") > said,
            f"{self.name} to connect or to end",
        )
        if agent.exit_code is None:
            self.lab.wait(lambda: agent.exit_code is not None or self._is_known(), f"hello of {self.name}")
        return agent

    def _is_known(self) -> bool:
        row = self.lab.store.device(self.name)
        return row is not None and row.online

    @property
    def known(self) -> bool:
        """Whether the server has ever heard of it: only then it can be deployed to."""
        return self.lab.store.device(self.name) is not None

    def stop(self) -> None:
        """End it, whatever it does."""
        if self.agent is not None and self.agent.exit_code is None:
            self.agent.kill()

    def deploy(self, package: Package) -> int:
        """Deploy to this device alone; returns the generation."""
        return self.lab.deploy(package, self.name)[self.name]

    def state_of(self, generation: int) -> str:
        """Where the device says that it is with a generation; nothing while it speaks of another."""
        row = self.lab.device(self.name)
        return str(row.state) if row.generation == generation else ""

    def has_said(self, kind: str) -> bool:
        """Whether an event of a kind has come from it."""
        return kind in [said for said, _ in self.lab.store.events(self.name)]

    def outcome(self, generation: int) -> str:
        """Wait for the outcome of a generation."""
        self.lab.wait(
            lambda: self.lab.store.outcome(self.name, generation) is not None,
            f"the outcome of {generation} on {self.name}",
        )
        return self.lab.wait_for_outcomes({self.name: generation})[self.name]

    def wait_for_end(self, generation: int | None) -> int | None:
        """Wait until the agent has ended or the generation has an outcome; returns the exit code."""
        agent, store = self.agent, self.lab.store
        if agent is None:
            raise AssertionError(f"{self.name} was never started")
        self.lab.wait(
            lambda: (
                agent.exit_code is not None
                or (generation is not None and store.outcome(self.name, generation) is not None)
            ),
            f"the end of {self.name} or of its installation",
        )
        return agent.exit_code

    def mend(self) -> None:
        """End the strace in front of it: from now on every call is made."""
        assert self.agent is not None
        status = Path(f"/proc/{self.agent.pid}/status")

        def tracer() -> int:
            return int(status.read_text().partition("TracerPid:")[2].split()[0])

        os.kill(tracer(), signal.SIGTERM)
        self.lab.wait(lambda: tracer() == 0, "the end of strace")

    # What must hold ------------------------------------------------------------------------------------

    def assert_committed(self, package: Package, *, again_bytes: int = AGAIN_BYTES) -> None:
        """It runs the package's variant, pulled it about once, and keeps nothing else."""
        row = self.lab.device(self.name)
        assert (str(row.state), row.index_digest) == ("committed", package.digest)
        assert row.pulled_bytes <= size_bytes(package) + again_bytes
        self.assert_sound(str(row.digest))

    def assert_refused(self, package: Package, reason: str, generation: int) -> None:
        """The newer installation failed with its reason; the older package's variant runs on."""
        row = self.lab.device(self.name)
        assert (str(row.state), row.generation, row.index_digest) == ("failed", generation, package.digest)
        assert reason in str(row.reason), row.reason
        self.assert_sound(str(row.digest))

    def assert_rolled_back(self, package: Package, generation: int) -> None:
        """The newer variant failed at work; the older package's runs again, and the newer is gone."""
        row = self.lab.device(self.name)
        assert (str(row.state), row.generation, row.index_digest) == ("rolled_back", generation, package.digest)
        self.assert_sound(str(row.digest))

    def assert_sound(self, digest: str) -> None:
        """What runs is verified and alone on the disk; it infers; every number of its telemetry is there once."""
        slots = Slots(self.state)
        slots.check(digest)
        assert (self.state / "current").resolve() == slots.path(digest).resolve()
        self._wait_until_tidy(slots.path(digest).name)
        before = self.lab.store.telemetry(self.name, digest).windows
        self.lab.wait(lambda: self.lab.store.telemetry(self.name, digest).windows > before, "a new window")
        self.assert_telemetry_whole()
        assert self.agent is not None
        assert self.agent.exit_code is None

    def _wait_until_tidy(self, slot: str) -> None:
        def strays() -> list[str]:
            state = self.state
            found = [path for path in state.iterdir() if path.name not in KEPT]
            found += [path for path in (state / "slots").iterdir() if path.name != slot]
            found += (state / "staging").iterdir()
            found += [path for path in (state / "trust").rglob("*") if path.name.startswith(("tmp", "."))]
            return [str(path.relative_to(state)) for path in found]

        self.lab.wait(lambda: not strays(), f"stray files of {self.name} to go: {strays()}")

    def assert_telemetry_whole(self) -> None:
        """Windows and events of each spool are numbered 1, 2, 3 … in the store; its key keeps any from coming twice."""
        with closing(sqlite3.connect(f"file:{self.lab.data / STORE_FILE}?mode=ro", uri=True)) as store:
            rows = store.execute(
                "SELECT spool_id, seq FROM telemetry WHERE device = ?1"
                " UNION ALL SELECT spool_id, seq FROM events WHERE device = ?1",
                (self.name,),
            ).fetchall()
            said = dict(store.execute("SELECT spool_id, contiguous FROM spools WHERE device = ?", (self.name,)))
        for spool, contiguous in said.items():
            numbers = sorted(seq for other, seq in rows if other == spool)
            assert numbers[:contiguous] == list(range(1, contiguous + 1))
            assert len(numbers) == len(set(numbers))


def size_bytes(package: Package) -> int:
    """Bytes of all blobs of a package."""
    return sum(package.blobs.path(digest).stat().st_size for digest in package.digests())
