"""Real workers that crash, hang or eat the memory, under an agent's installer: started again, or gone back from.

The runtime does what a request's first value says. Whatever happens, a verified variant answers in the end.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.fake_runtime.ai_edge_litert.interpreter import EAT, HANG, SEGFAULT
from agent.installer_lab import OWN, ScriptedWatch
from agent.worker_lab import Lab
from edgefleet.protocol.messages import ActiveVariant, Request, State
from edgefleet.protocol.signed import Desired
from edgefleet_agent.inference_types import InferFailure
from edgefleet_agent.install import Install
from edgefleet_agent.installer import Installer
from edgefleet_agent.journal import Committed, Entry, Journal
from edgefleet_agent.kept_worker import STRIKES
from edgefleet_agent.probation_gates import Rules
from edgefleet_agent.succession import Parts
from faults.matrix import sampled
from sdk.wire_examples import DESIRED

OLD, NEW = 3.0, 5.0
"""What the variants multiply by."""
CGROUP_BYTES = 64 << 20
MEMORY_MB = 160
HANGS_AFTER_S = 61.0
VALUES = {"segfault": SEGFAULT, "hang": HANG, "memory limit": EAT, "out of memory (cgroup)": EAT}


@dataclass(frozen=True, slots=True)
class Case:
    """What the worker does, and where its variant stands."""

    what: str
    state: State

    def __str__(self) -> str:
        return f"{self.what}, {self.state}"


CASES = [Case(what, state) for what in VALUES for state in (State.PROBATION, State.COMMITTED)]


class Device(Lab):
    """Real workers of two variants, the newer one of which runs, and the installer that is told of them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, state: State, **settings: object) -> None:
        super().__init__(folder, monkeypatch, [OLD, NEW], **settings)
        old, new = self.variants
        self.journal = Journal(folder / "state", Entry(enrolment=OWN))
        previous = Committed(active=old, running=DESIRED.deployment.target) if state is State.PROBATION else None
        self.journal.record(state=state, desired=DESIRED, active=new, previous=previous)
        self.slots.activate(new.digest)
        watch = ScriptedWatch(folder / "state", Rules(deadline_s=1e6))
        self.installer = Installer(Parts(self.journal, self.slots, self.inference, watch, self), _makes_none)
        self.installer.restore()

    def variant_failed(self, digest: str, reason: str) -> None:
        super().variant_failed(digest, reason)
        self.installer.struck_out(digest, reason)

    def turn(self, wait_s: float = 0.05) -> None:
        self.active = self.journal.entry.active
        super().turn(wait_s)
        self.installer.advance(self.clock(), hold_downloads=False)

    # What the installer's host is asked for.

    def request(self, _request: Request) -> bool:
        return False

    def next_req_id(self) -> str:
        return "1-1"

    def listen(self, sha12: str, *, wanted: bool) -> None: ...

    @property
    def pid(self) -> int:
        """Of the worker that serves."""
        assert self.inference._serving is not None
        assert self.inference._serving._worker is not None
        return self.inference._serving._worker.pid

    def break_worker(self, what: str, cgroup: Path) -> None:
        """One worker ends in its way, and the request with it."""
        if "cgroup" in what:
            (cgroup / "cgroup.procs").write_text(str(self.pid))
        before = len(self.outcomes)
        assert self.ask(VALUES[what])
        self.turn()
        if what == "hang":
            self.ahead_s += HANGS_AFTER_S
        self.until(lambda: len(self.outcomes) > before)
        assert isinstance(self.outcomes[-1], InferFailure)


def _makes_none(_desired: Desired, _resumed: bool, _only: str | None) -> Install:
    raise AssertionError("nothing is installed here")


@pytest.fixture(name="cgroup")
def _cgroup(case: Case) -> Iterator[Path]:
    """A cgroup whose memory is limited, of version 1."""
    folder = Path(f"/sys/fs/cgroup/memory/edgefleet-faults-{os.getpid()}")
    if "cgroup" not in case.what:
        yield folder
        return
    if not os.access(folder.parent, os.W_OK):
        # A kernel's own way of mounting it, which nothing that is installed changes.
        pytest.skip("this kernel offers no memory cgroup of version 1 that may be written")
    folder.mkdir()
    (folder / "memory.limit_in_bytes").write_text(str(CGROUP_BYTES))
    yield folder
    folder.rmdir()


@pytest.mark.parametrize("case", sampled("workers", CASES))
def test_a_worker_breaks(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cgroup: Path) -> None:
    """As often as is too often: on probation that is gone back from, a committed variant is started again."""
    limit = {"worker": {"memory_mb": MEMORY_MB}} if case.what == "memory limit" else {}
    device = Device(tmp_path, monkeypatch, case.state, telemetry={"window_s": 3600}, **limit)
    try:
        for strike in range(STRIKES):
            device.started() if strike == 0 else device.again()
            device.break_worker(case.what, cgroup)
        ends = State.ROLLED_BACK if case.state is State.PROBATION else State.COMMITTED
        device.until(lambda: device.journal.entry.state is ends)
        device.again()
        serves: ActiveVariant = device.variants[0 if case.state is State.PROBATION else 1]
        device.until(lambda: device.inference._serving and device.inference._serving.variant.digest == serves.digest)
        device.started()
        factor = OLD if case.state is State.PROBATION else NEW
        assert device.answered(1, 2) == (serves.digest, [factor, 2 * factor, 0, 0])
        device.slots.check(serves.digest)
        assert (tmp_path / "state" / "current").resolve() == device.slots.path(serves.digest)
        assert len(device.failed) == 1
        if case.state is State.PROBATION:
            assert f"{STRIKES} times in a row" in str(device.journal.entry.reason)
    finally:
        device.inference.stop()
