"""An installer on real slots and a real journal, whose installations do what a test says, and a clock set by hand.

Nothing here asserts.
"""

from __future__ import annotations

import select
import shutil
from pathlib import Path

from edgefleet import selection
from edgefleet.package.layout import Package
from edgefleet.package.manifest import VariantSpec
from edgefleet.protocol.decisions import Prior
from edgefleet.protocol.messages import ActiveVariant, Progress, Request, State
from edgefleet.protocol.signed import Desired, PackageVersion
from edgefleet_agent.installer import Installer
from edgefleet_agent.journal import Enrolment, Entry, Journal
from edgefleet_agent.lifecycle import INSTALLING
from edgefleet_agent.probation import Outcome, Verdict
from edgefleet_agent.probation_gates import Rules
from edgefleet_agent.refusal import InstallError
from edgefleet_agent.slots import Slots, file_name, layers_to_pull
from edgefleet_agent.state_folder import Installed, record_installed
from edgefleet_agent.succession import Parts
from edgefleet_agent.watch import Watch
from patience import PATIENCE_S
from sdk.packages_made import two_variants, write
from sdk.wire_examples import DESIRED

DEADLINE_S = 600.0
OWN = Enrolment(fleet=DESIRED.fleet, device=DESIRED.device, enrolment_id=DESIRED.enrolment_id)


class ScriptedInstall:
    """An installation that stays in its state until a test moves it; `failure` is raised at the next turn."""

    def __init__(self, desired: Desired, resumed: bool, only: str | None, digest: str, spec: VariantSpec) -> None:
        self.desired, self.resumed, self.only = desired, resumed, only
        self.state = State.RESOLVING
        self.candidate = selection.Candidate(only or digest, spec.name, "onnxruntime", ">=1", "int8", "amd64", 1)
        self.spec = spec
        self.waits_for: str | None = None
        self.failure: str | None = None
        self.progress = Progress(verified_bytes=1, total_bytes=2)
        self.pulled_bytes = self.reused_bytes = self.bad_blocks = 0
        self.prior: Prior | None = None
        self.closed = False

    def tick(self, _now: float) -> None:
        if self.failure is not None:
            raise InstallError(self.failure)

    def hold(self, *, held: bool) -> None: ...

    def descriptors(self) -> list[int]:
        return []

    def close(self) -> None:
        self.closed = True


class ScriptedRunner:
    """Whoever keeps the worker: prepared when a test says so."""

    def __init__(self) -> None:
        self.prepared = True
        self.asked: list[str] = []
        self.abandoned = 0

    def prepare(self, variant: ActiveVariant) -> None:
        self.asked.append(variant.digest)

    def abandon(self) -> None:
        self.abandoned += 1


class ScriptedWatch(Watch):
    """A probation whose verdict a test gives."""

    verdict: Verdict | None = None

    def judge(self, spent_s: float) -> Verdict | None:
        if self.verdict is None and spent_s >= DEADLINE_S:
            return Verdict(Outcome.PASS, "the deadline", "insufficient")
        return self.verdict


PASSED = Verdict(Outcome.PASS, "latency: the same", "sufficient")
FAILED = Verdict(Outcome.FAIL, "latency: twice as long", "sufficient")


class House:
    """One device's installer; `again` is a restart of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "state"
        write(folder / "package", two_variants(folder / "inputs"))
        self.package = Package(folder / "package")
        self.old, self.new = list(dict.fromkeys(entry.digest for entry in self.package.index.manifests))
        self.now = 1000.0
        self.noted: list[tuple[str, str]] = []
        self.installs: list[ScriptedInstall] = []
        self.numbers = 0
        self.busy = False
        """The disk is at work on something else until the next turn."""
        self._open()

    def _open(self) -> None:
        self.slots = Slots(self.folder)
        self.journal = Journal(self.folder, Entry(enrolment=OWN))
        self.runner, self.watch = ScriptedRunner(), ScriptedWatch(self.folder, Rules(deadline_s=DEADLINE_S))
        parts = Parts(self.journal, self.slots, self.runner, self.watch, self)
        self.installer = Installer(parts, self._make)  # type: ignore[arg-type]

    def _make(self, desired: Desired, resumed: bool, only: str | None) -> ScriptedInstall:
        digest = only or self.new
        spec = self.package.spec(self.package.manifest(digest))
        self.installs.append(ScriptedInstall(desired, resumed, only, digest, spec))
        return self.installs[-1]

    # What the installer asks of its host.

    def note(self, kind: str, text: str) -> None:
        self.noted.append((kind, text))

    def request(self, _request: Request) -> bool:
        return True

    def next_req_id(self) -> str:
        self.numbers += 1
        return str(self.numbers)

    def listen(self, sha12: str, *, wanted: bool) -> None: ...

    # What a test does.

    @property
    def state(self) -> State:
        return self.installer.state().state

    def is_in(self, state: State) -> bool:
        return self.state is state

    @property
    def active(self) -> str | None:
        active = self.journal.entry.active
        return None if active is None else active.digest

    @property
    def current(self) -> Path:
        return (self.folder / "current").resolve()

    def put(self, digest: str) -> Path:
        """A variant's slot, whole."""
        slot, manifest = self.slots.path(digest), self.package.manifest(digest)
        slot.mkdir(exist_ok=True)
        for layer in layers_to_pull(manifest):
            shutil.copyfile(self.package.blobs.path(layer.digest), slot / file_name(layer))
        (slot / "manifest.json").write_bytes(self.package.blobs.read(digest, doing="testing"))
        return slot

    def damage(self, digest: str) -> None:
        model = next(path for path in self.slots.path(digest).iterdir() if path.suffix == ".bin")
        model.write_bytes(b"?" + model.read_bytes()[1:])

    def variant(self, digest: str) -> ActiveVariant:
        spec = self.package.spec(self.package.manifest(digest))
        return ActiveVariant(
            digest=digest, index_digest=self.package.digest, name=spec.name, runtime=spec.runtime,
            precision=spec.precision,
        )  # fmt: skip

    def version(self, number: int = 1) -> PackageVersion:
        return PackageVersion(package="made", version=f"{number}.0.0", release=number, index_digest=self.package.digest)

    def desired(self, number: int = 1) -> Desired:
        deployment = DESIRED.deployment.model_copy(update={"target": self.version(number), "serial": number})
        return DESIRED.model_copy(
            update={
                "generation": DESIRED.generation + number,
                "deployment": deployment,
                "install_timeout_s": 300.0,
            }
        )

    def commit_old(self, state: State = State.COMMITTED) -> None:
        """Have the old variant committed, and the last generation ended in `state`."""
        self.put(self.old)
        active, desired = self.variant(self.old), self.desired(1)
        record_installed(self.slots, Installed(enrolment=OWN, desired=desired, active=active, running=self.version(1)))
        self.slots.activate(self.old)
        self.journal.record(
            state=state, desired=desired, deployment=desired.deployment, active=active, running=self.version(1)
        )

    def turn(self, seconds: float = 0.1) -> None:
        """One turn of the loop; what runs beside it is waited for."""
        self._leave_the_disk()
        if waiting := self.installer.descriptors():
            select.select(waiting, [], [], PATIENCE_S)
        self.now += seconds
        self.installer.advance(self.now, hold_downloads=False)

    def _leave_the_disk(self) -> None:
        if self.busy:
            self.busy = False
            self.slots.turn.release()

    def pass_time(self, seconds: float) -> None:
        """As the loop sees it: in turns."""
        until = self.now + seconds
        while self.now < until:
            self.turn(9.0)

    def bring_to(self, state: State) -> None:
        """Go to a state by the way that leads there."""
        if state in (State.COMMITTED, State.ROLLED_BACK, State.FAILED, State.NO_MODEL, State.IDLE):
            changes = {"active": None, "running": None} if state in (State.NO_MODEL, State.IDLE) else {}
            self.journal.record(state=state, reason=None if state is State.IDLE else "said by a test", **changes)
            return
        self.put(self.new)
        self.installer.begin(self.desired(2))
        self.runner.prepared = state not in INSTALLING
        self.installs[-1].state = state if state in INSTALLING else State.ACTIVATING
        self.turn()
        if state is State.ROLLING_BACK:
            self.watch.verdict = FAILED
            self.runner.prepared = False
            self.slots.turn.acquire()
            self.installer.advance(self.now, hold_downloads=False)
            self.busy = True

    def again(self) -> None:
        """Kill it, and start it again."""
        self._leave_the_disk()
        for work in self.installer.descriptors():
            select.select([work], [], [], PATIENCE_S)
        self._open()
        self.installer.restore()
