"""Several candidates of one package: pulled in turn, dropped where they do not work, measured together, or spared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.test_install import Host
from edgefleet.prior import prior_name
from edgefleet.protocol.decisions import DECISION_EVENT, DecisionRecord, Objective, Prior
from edgefleet.protocol.messages import Reply, Request, RequestKind, State, Status
from edgefleet_agent import benchmark, supervise
from edgefleet_agent.acquisition import Means
from edgefleet_agent.benchmark import Sensors
from edgefleet_agent.choosing import Choosing
from edgefleet_agent.choosing import Means as ChoosingMeans
from edgefleet_agent.install import Install, InstallError
from edgefleet_agent.power import open_meter
from edgefleet_agent.settings import RuntimeSettings, SelectionSettings, WorkerSettings
from edgefleet_agent.slot_options import FILE, applied
from edgefleet_agent.thermal import Thermal
from edgefleet_device_profiles import catalogue
from edgefleet_device_profiles.profile import Runtime
from sdk.wire_examples import DESIRED

HARDWARE = "h" + "0" * 16
RUNTIMES = {Runtime.ONNXRUNTIME: "1.20.1", Runtime.LITERT: "2.3.0"}
PROFILE = catalogue.load("generic-x86-64")
Say = Callable[[Path], dict[str, Any]]


class FakeTester:
    """A self-test that says what the test wants of that slot."""

    def __init__(self, slot: Path, say: Say) -> None:
        self._said = say(slot)

    def messages(self) -> tuple[list[dict[str, Any]], bool]:
        return [self._said], False

    def fileno(self) -> int:
        return 0

    def stop(self) -> None: ...


class FakeChild:
    """A benchmark's worker: each inference takes as long as its variant does."""

    FILENO = 0
    pid = 1

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._said: list[dict[str, Any]] = [{"kind": "ready"}]

    def fileno(self) -> int:
        return self.FILENO

    def send(self, message: dict[str, Any]) -> None:
        runs = [self._seconds * (1 + number % 7 / 1000) for number in range(message["runs"])]
        self._said.append({"kind": "ran", "runs": len(runs), "seconds": runs, "end_to_end_s": runs})

    def messages(self) -> tuple[list[dict[str, Any]], bool]:
        said, self._said = self._said, []
        return said, False

    def exit_reason(self) -> str:
        raise AssertionError("it did not end")

    def kill(self) -> None: ...


class Chooser(Host):
    """A device with two candidates, and hubs that may know what others chose."""

    def __init__(self, folder: Path, **selection: Any) -> None:
        super().__init__(folder)
        self.said: list[tuple[str, str]] = []
        self.prior: Prior | None = None
        self.asked_priors = 0
        settings = SelectionSettings.model_validate({"threads": (1, 2), "final_s": 1.0, **selection})
        self.means = ChoosingMeans(
            settings, RuntimeSettings(), WorkerSettings(), PROFILE, 2, HARDWARE, folder / "state", self._sensors
        )

    def _sensors(self) -> Sensors:
        root = Path("/nonexistent")
        return Sensors(open_meter(root, PROFILE, simulated=True), Thermal(root, PROFILE, simulated=True), lambda: None)

    def note(self, kind: str, text: str) -> None:
        super().note(kind, text)
        self.said.append((kind, text))

    def wall_clock(self) -> float:
        return 1_800_000_000.0

    @property
    def digests(self) -> dict[str, str]:
        """Name of each variant that this machine can run, and its digest."""
        package = self.package
        found = {e.digest: package.spec(package.manifest(e.digest)).name for e in package.index.manifests}
        return {name: digest for digest, name in found.items()}

    def choose(self, active: str | None = None) -> Install:
        target = DESIRED.deployment.target.model_copy(update={"index_digest": self.package.digest})
        deployment = DESIRED.deployment.model_copy(update={"target": target})
        desired = DESIRED.model_copy(update={"deployment": deployment})
        choosing = Choosing(self.means, self.slots, self, desired.wanted, active)
        return Install(desired, PROFILE, RUNTIMES, Means(self.slots, self), resumed=False, choosing=choosing)

    def answer(self, install: Install) -> None:
        others: list[Request] = []
        for request in self.asked:
            if request.kind is not RequestKind.PRIOR:
                others.append(request)
                continue
            self.asked_priors += 1
            assert request.name == prior_name(HARDWARE, Objective.LATENCY)
            status, body = (Status.GONE, b"") if self.prior is None else (Status.OK, self.prior.encode())
            install.on_reply(Reply(req_id=request.req_id, status=status, body=body), self.now)
        self.asked = others
        super().answer(install)

    def known(self, name: str) -> Prior:
        return Prior(
            hardware_class=HARDWARE, index_digest=self.package.digest, objective=Objective.LATENCY,
            digest=self.digests[name], threads=2, inference_p90_s=0.01, devices=3, at=self.wall_clock() - 60,
        )  # fmt: skip


PASSED = {"kind": "self_test", "ok": True, "reason": None, "max_abs_difference": 0.0}
FAILED = {"kind": "self_test", "ok": False, "reason": "golden output 'y' differs", "max_abs_difference": 9.0}


@pytest.fixture(name="fails")
def _fails(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Model files whose self-test fails."""
    fails: set[str] = set()

    def say(slot: Path) -> dict[str, Any]:
        return FAILED if any((slot / name).exists() for name in fails) else PASSED

    monkeypatch.setattr(supervise, "self_test", lambda slot, *_: FakeTester(slot, say))
    return fails


@pytest.fixture(name="speed")
def _speed(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, int], float]:
    """(variant, threads) → seconds an inference takes."""
    speed: dict[tuple[str, int], float] = {}

    def start(one: benchmark.Entrant) -> FakeChild:
        return FakeChild(speed[one.spec.name, one.candidate.threads])

    monkeypatch.setattr(benchmark, "starter", lambda *_: start)
    return speed


def test_the_fastest_way_on_this_device_is_taken_and_the_record_says_why(
    tmp_path: Path, fails: set[str], speed: dict[tuple[str, int], float]
) -> None:
    host = Chooser(tmp_path)
    speed.update({("small", 1): 0.02, ("small", 2): 0.03, ("wide", 1): 0.012, ("wide", 2): 0.004})
    install = host.choose()
    host.drive(install, State.BENCHMARKING)
    host.drive(install, State.ACTIVATING, limit=2000)
    assert not fails
    assert install.candidate is not None
    assert install.spec is not None
    assert (install.candidate.digest, install.spec.name) == (host.digests["wide"], "wide")
    assert applied(host.slots.path(install.candidate.digest), RuntimeSettings()).threads == 2
    (text,) = [text for kind, text in host.said if kind == DECISION_EVENT]
    record = DecisionRecord.decode(text.encode())
    assert (record.chosen, record.threads, len(record.candidates)) == (host.digests["wide"], 2, 4)
    assert DecisionRecord.decode((tmp_path / "state" / "decision.json").read_bytes()) == record
    assert host.noted.count("self_test") == host.noted.count("variant_selected") == 2
    install.close()
    assert not host.slots.reserved


@pytest.mark.parametrize("bad", ["small.bin", "wide.bin"])
def test_a_candidate_that_does_not_work_here_is_dropped_and_the_other_is_taken(
    tmp_path: Path, fails: set[str], bad: str
) -> None:
    host = Chooser(tmp_path, threads=(1,))
    fails.add(bad)
    install = host.choose()
    host.drive(install, State.ACTIVATING)
    assert install.spec is not None
    assert install.spec.model_file != bad
    (dropped,) = [text for kind, text in host.said if kind == "candidate_dropped"]
    assert dropped.endswith("self-test: golden output 'y' differs")
    assert install.candidate is not None
    host.slots.check(install.candidate.digest)


def test_when_none_works_the_last_ones_reason_is_the_installations(tmp_path: Path, fails: set[str]) -> None:
    host = Chooser(tmp_path)
    fails.update({"small.bin", "wide.bin"})
    with pytest.raises(InstallError, match="self-test: golden output 'y' differs"):
        host.drive(host.choose(), State.ACTIVATING)


def test_what_the_same_hardware_chose_is_pulled_alone_and_not_measured(tmp_path: Path, fails: set[str]) -> None:
    host = Chooser(tmp_path)
    host.prior = host.known("wide")
    install = host.choose()
    host.drive(install, State.ACTIVATING)
    assert install.prior == host.prior
    assert install.candidate is not None
    assert install.candidate.digest == host.digests["wide"]
    assert applied(host.slots.path(install.candidate.digest), RuntimeSettings()).threads == 2
    assert host.noted.count("download_planned") == 1
    assert not host.slots.path(host.digests["small"]).exists()
    assert not fails


def test_a_prior_whose_choice_does_not_work_here_leaves_the_others(tmp_path: Path, fails: set[str]) -> None:
    host = Chooser(tmp_path, threads=(1,))
    host.prior = host.known("wide")
    fails.add("wide.bin")
    install = host.choose()
    host.drive(install, State.ACTIVATING)
    assert install.candidate is not None
    assert (install.candidate.digest, install.prior) == (host.digests["small"], None)


def test_a_prior_for_what_cannot_run_here_is_nothing(
    tmp_path: Path, fails: set[str], speed: dict[tuple[str, int], float]
) -> None:
    host = Chooser(tmp_path, threads=(1,))
    speed.update({("small", 1): 0.02, ("wide", 1): 0.01})
    host.prior = host.known("wide").model_copy(update={"digest": "sha256:" + "9" * 64})
    install = host.choose()
    host.drive(install, State.ACTIVATING, limit=2000)
    assert (install.prior, host.noted.count("download_planned"), bool(fails)) == (None, 2, False)


def test_where_nothing_is_to_be_compared_nobody_is_asked(tmp_path: Path, fails: set[str]) -> None:
    host = Chooser(tmp_path, threads=(3,), candidates=1)
    install = host.choose()
    host.drive(install, State.ACTIVATING)
    assert install.candidate is not None
    assert (host.asked_priors, bool(fails)) == (0, False)
    assert applied(host.slots.path(install.candidate.digest), RuntimeSettings()).threads == 3


def test_hubs_that_say_nothing_of_priors_are_not_waited_for_long(
    tmp_path: Path, fails: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Chooser(tmp_path, threads=(1,), candidates=2)
    monkeypatch.setattr(Chooser, "answer", Host.answer)
    install = host.choose()
    host.drive(install, State.SELECTING, limit=1000)
    assert 5 < host.now < 20
    assert not fails


def test_what_runs_already_is_not_measured_again(tmp_path: Path, fails: set[str]) -> None:
    host = Chooser(tmp_path, candidates=1)
    install = host.choose(active=host.digests["small"])
    host.drive(install, State.ACTIVATING)
    assert install.spec is not None
    assert (install.spec.name, bool(fails)) == ("small", False)
    assert not (host.slots.path(host.digests["small"]) / FILE).exists()
