"""Upgrades with a fake service manager and a fake clock: what stays, what goes back, and power cuts in between."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agent.host_lab import WELL, CutError, FakePrograms, Machine, ill
from edgefleet import durable
from edgefleet.errors import BusyError, InputError, StorageError
from edgefleet_agent import cli
from edgefleet_agent.host import trial, upgrade
from edgefleet_agent.host.environments import RECORD_FILE, Environments, Made
from edgefleet_agent.host.service import AGENT_UNIT, TRIAL_UNIT
from edgefleet_agent.host.trial import HOLD_S, MAX_BOOTS, TRIAL_S, Health, Outcome, Step, Trial, Verdict
from edgefleet_agent.status import StatusFile

STATE = Path("/var/lib/edgefleet")
WANTED = ["edgefleet[agent,litert]"]


@pytest.fixture(name="machine")
def _machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "opt")


def fill(machine: Machine, *, force: bool = False) -> str:
    record = upgrade.current_record(machine.environments)
    return upgrade.fill_other(machine.environments, WANTED, record, machine.folder / "agent.toml", force=force)


def begun(machine: Machine) -> Trial:
    return upgrade.begin(machine.host(), fill(machine), STATE)


def test_a_healthy_environment_is_kept(machine: Machine) -> None:
    begun(machine)
    assert (machine.current, machine.environments.previous()) == ("B", "A")
    assert [asked for asked in machine.services.asked if asked[0] == "restart"] == [
        ("restart", TRIAL_UNIT), ("restart", AGENT_UNIT),
    ]  # fmt: skip
    outcome = upgrade.watch(machine.host())
    assert outcome == Outcome(kept=True, environment="B", version="2.0", reason="healthy and connected")
    assert (machine.current, upgrade.pending(machine.environments)) == ("B", None)
    assert machine.clock.at == pytest.approx(1000 + HOLD_S, abs=upgrade.LOOK_EVERY_S)
    assert upgrade.watch(machine.host()) is None
    # The next one goes into A.
    assert fill(machine) == "A"


def test_one_that_never_connects_is_gone_back_from_after_five_minutes(machine: Machine) -> None:
    begun(machine)
    machine.healthy = lambda _trial: ill()
    machine.services.asked.clear()
    outcome = upgrade.watch(machine.host())
    assert outcome is not None
    assert (outcome.kept, outcome.environment) == (False, "A")
    assert "no connection to the broker (refused)" in outcome.reason
    assert (machine.current, upgrade.pending(machine.environments)) == ("A", None)
    assert machine.services.asked == [("restart", AGENT_UNIT)]
    assert machine.clock.at == pytest.approx(1000 + TRIAL_S, abs=upgrade.LOOK_EVERY_S)
    assert upgrade.last_outcome(machine.environments) == outcome


def test_one_that_connects_and_dies_again_and_again_is_not_healthy(machine: Machine) -> None:
    begun(machine)
    machine.healthy = lambda _trial: WELL if machine.clock.at % 15 < 10 else ill("the service is not running")
    outcome = upgrade.watch(machine.host())
    assert outcome is not None
    assert not outcome.kept


def test_a_power_cut_in_the_trial_neither_ends_nor_lengthens_it(machine: Machine) -> None:
    begun(machine)
    machine.healthy = lambda _trial: ill()
    machine.clock.cut_at = 1000 + 200
    with pytest.raises(CutError):
        upgrade.watch(machine.host())
    machine.clock.at, machine.clock.cut_at = 5.0, float("inf")
    outcome = upgrade.watch(machine.host("boot-2"))
    assert outcome is not None
    assert not outcome.kept
    # 10 s at most were not on disk when the power went.
    assert machine.clock.at == pytest.approx(5 + TRIAL_S - 200, abs=upgrade.JOURNAL_EVERY_S + upgrade.LOOK_EVERY_S)


def test_a_device_that_reboots_for_ever_goes_back(machine: Machine) -> None:
    begun(machine)
    machine.healthy = lambda _trial: ill()
    for boot in range(1, MAX_BOOTS):
        machine.clock.cut_at = machine.clock.at + 3
        with pytest.raises(CutError):
            upgrade.watch(machine.host(f"boot-{boot + 1}"))
        assert machine.current == "B"
    machine.clock.cut_at = float("inf")
    outcome = upgrade.watch(machine.host(f"boot-{MAX_BOOTS + 1}"))
    assert outcome is not None
    assert outcome.reason == f"{MAX_BOOTS + 1} boots within the trial"
    assert machine.current == "A"


class Cut:
    """Cuts the power at the n-th durable step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, machine: Machine, at: int) -> None:
        self.left = at
        for target, name in (
            (durable, "write_file"), (machine.environments, "switch"), (machine.services, "restart"),
        ):  # fmt: skip
            real = getattr(target, name)
            monkeypatch.setattr(target, name, lambda *args, real=real, **rest: self.step(real, *args, **rest))

    def step(self, real: object, *args: object, **rest: object) -> object:
        if self.left == 0:
            raise CutError
        self.left -= 1
        assert callable(real)
        return real(*args, **rest)


@pytest.mark.parametrize("step", range(8))
@pytest.mark.parametrize("health", [WELL, ill()], ids=["well", "ill"])
def test_at_no_step_a_power_cut_leaves_an_environment_that_nobody_watches(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, step: int, health: Health
) -> None:
    name = fill(machine)
    machine.healthy = lambda _trial: health
    with monkeypatch.context() as patch:
        Cut(patch, machine, step)
        try:
            upgrade.begin(machine.host(), name, STATE)
            upgrade.watch(machine.host())
        except CutError:
            pass
    # What the next boot does: the trial's service starts where there is a trial, from the environment `previous`.
    watched = upgrade.pending(machine.environments) is not None
    assert machine.current == "A" or watched or upgrade.last_outcome(machine.environments) is not None
    if watched:
        assert machine.environments.previous() == "A"
        upgrade.watch(machine.host("boot-2"))
    assert upgrade.pending(machine.environments) is None
    assert machine.current in {"A", "B"}
    if not health.healthy:
        assert machine.current == "A"


def test_a_damaged_record_of_a_trial_goes_back_at_once(machine: Machine) -> None:
    begun(machine)
    (machine.folder / upgrade.TRIAL_FILE).write_bytes(b"{")
    outcome = upgrade.watch(machine.host())
    assert outcome is not None
    assert (outcome.kept, machine.current, machine.clock.at) == (False, "A", 1000.0)


def test_a_second_upgrade_waits_for_the_end_of_the_first(machine: Machine) -> None:
    begun(machine)
    with pytest.raises(BusyError, match="another upgrade is on trial"):
        fill(machine)


def test_two_upgrades_at_a_time_do_not_fill_one_environment(machine: Machine) -> None:
    with (
        machine.environments.alone(),
        pytest.raises(BusyError, match="another installation or upgrade"),
        Environments(machine.folder).alone(),
    ):
        pytest.fail("both are at it")
    with Environments(machine.folder).alone():
        assert fill(machine) == "B"


def test_without_an_environment_there_is_nothing_to_upgrade(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "opt")
    (tmp_path / "opt" / "current").unlink()
    with pytest.raises(InputError, match="sudo edgefleet agent install"):
        fill(machine)


def test_a_runtime_that_would_be_lost_is_named(machine: Machine) -> None:
    machine.programs.runtimes = {"onnxruntime": "1.31.1"}
    with pytest.raises(InputError, match="no litert, which the current one has"):
        fill(machine)
    assert fill(machine, force=True) == "B"


@pytest.mark.parametrize("fails", ["venv", "install", "check", "edgefleet_agent.host.probe"])
def test_one_that_cannot_be_filled_is_never_switched_to(machine: Machine, fails: str) -> None:
    machine.programs.fails = fails
    with pytest.raises(InputError, match="something went wrong"):
        fill(machine)
    assert (machine.current, machine.environments.made("B")) == ("A", None)
    with pytest.raises(InputError, match="not filled"):
        upgrade.begin(machine.host(), "B", STATE)


def test_a_half_filled_environment_does_not_count(machine: Machine) -> None:
    """The power went while B, which was whole once, was filled anew."""
    fill(machine)
    assert machine.environments.made("B") is not None
    machine.programs.fails = "install"
    with pytest.raises(InputError):
        fill(machine)
    assert machine.environments.made("B") is None
    assert not (machine.folder / "B" / RECORD_FILE).exists()


def test_a_full_disk_leaves_the_current_one_as_it_is(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    name = fill(machine)
    monkeypatch.setattr(durable, "write_file", full)
    with pytest.raises(StorageError, match="No space left"):
        upgrade.begin(machine.host(), name, STATE)
    assert machine.current == "A"


def test_an_extra_that_the_version_does_not_have_is_refused(tmp_path: Path) -> None:
    """Pip leaves it out and calls that a success: the device would be without its runtime."""

    class Warns(FakePrograms):
        def __call__(self, arguments: list[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
            done = super().__call__(arguments, timeout_s)
            done.stderr = self.said if "install" in arguments else ""
            return done

    machine = Machine(tmp_path / "opt")
    for whose, refused in (("edgefleet", True), ("keras", False)):
        programs = Warns(said=f"WARNING: {whose} 1.0 does not provide the extra 'lite-rt'\n")
        environments = Environments(machine.folder, programs)
        record = Made(version="", extras=("lite-rt",))
        if refused:
            with pytest.raises(InputError, match=r"edgefleet 1\.0 does not provide the extra 'lite-rt'; name another"):
                environments.fill("B", WANTED, record, tmp_path / "agent.toml")
        else:
            environments.fill("B", WANTED, record, tmp_path / "agent.toml")
        assert (environments.made("B") is None) == refused


def test_the_record_says_how_the_next_one_is_made(tmp_path: Path) -> None:
    programs = FakePrograms()
    machine = Machine(tmp_path / "opt", programs)
    record = Made(version="", extras=("litert",), system_site_packages=True)
    made = machine.environments.fill("B", WANTED, record, tmp_path / "agent.toml")
    assert made == Made(version="2.0", runtimes={"litert": "2.3.0"}, extras=("litert",), system_site_packages=True)
    assert machine.environments.made("B") == made
    assert "--system-site-packages" in programs.ran[0]
    # The system's packages are not ours to check.
    assert [arguments for arguments in programs.ran if "check" in arguments] == []


def test_the_command_waits_for_the_outcome_and_ends_as_it_is(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    begun(machine)

    def end(_now: float) -> None:
        kept = ON_TRIAL.model_copy(update={"version": "2.0"})
        upgrade._end(machine.host(), kept, Verdict(Step.KEEP, "healthy and connected"))

    machine.clock.after = end
    cli._follow(machine.host())
    assert capsys.readouterr().out == "kept: 2.0, healthy and connected\n"
    upgrade._end(machine.host(), ON_TRIAL, Verdict(Step.GO_BACK, "silent"))
    with pytest.raises(SystemExit, match="1"):
        cli._follow(machine.host())
    assert capsys.readouterr().err == "went back to the environment before: silent\n"


def test_the_command_does_not_wait_for_ever_for_a_watcher_that_never_came(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    begun(machine)
    with pytest.raises(SystemExit, match="1"):
        cli._follow(machine.host())
    assert TRIAL_UNIT in capsys.readouterr().err
    assert machine.clock.at == pytest.approx(1000 + cli.SILENCE_S, abs=2 * cli.LOOK_EVERY_S)
    # Whoever starts it then takes the trial up.
    assert upgrade.pending(machine.environments) is not None


ON_TRIAL = Trial.model_validate(
    {
        "before": "A", "tried": "B", "state_folder": "/s", "version_before": "1", "version": "2", "boot_id": "b",
    }
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "current", "health", "healthy_for_s", "step"),
    [
        ({}, "B", WELL, 0.0, Step.WAIT),
        ({}, "B", WELL, HOLD_S, Step.KEEP),
        ({}, "A", WELL, HOLD_S, Step.ENDED),
        ({"elapsed_s": TRIAL_S}, "B", ill(), 0.0, Step.GO_BACK),
        ({"elapsed_s": TRIAL_S - 1}, "B", ill(), 0.0, Step.WAIT),
        ({"elapsed_s": TRIAL_S}, "B", WELL, HOLD_S, Step.KEEP),
        ({"elapsed_s": TRIAL_S}, "B", WELL, 1.0, Step.GO_BACK),
        ({"boots": MAX_BOOTS}, "B", WELL, HOLD_S, Step.KEEP),
        ({"boots": MAX_BOOTS + 1}, "B", WELL, HOLD_S, Step.GO_BACK),
        ({"boots": MAX_BOOTS + 1}, "A", ill(), 0.0, Step.ENDED),
        ({"elapsed_s": TRIAL_S}, None, ill(), 0.0, Step.GO_BACK),
    ],
)
def test_the_rules(
    changes: dict[str, object], current: str | None, health: Health, healthy_for_s: float, step: Step
) -> None:
    assert trial.judge(ON_TRIAL.model_copy(update=changes), current, health, healthy_for_s).step is step


@pytest.mark.parametrize(
    ("active", "environment", "connected", "infers", "reason"),
    [
        (True, "B", True, True, ""),
        (False, "B", True, True, "the service is not running"),
        (True, None, True, True, "the agent has not said how it is"),
        (True, "A", True, True, "it still runs from "),
        (True, "B", False, True, "no connection to the broker (refused)"),
        (True, "B", True, False, "the committed variant does not answer"),
    ],
)
def test_healthy_is_what_the_manager_and_the_agent_itself_say(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, active: bool, environment: str | None,
    connected: bool, infers: bool, reason: str,
) -> None:  # fmt: skip
    on_trial = upgrade.begin(machine.host(), fill(machine), tmp_path)
    machine.services.active = active
    if environment is not None:
        # As it runs: through the link or by its own name.
        prefix = machine.folder / ("current" if environment == "B" else environment)
        monkeypatch.setattr(sys, "prefix", str(prefix))
        StatusFile(tmp_path).note(0.0, connected=connected, infers=infers, why_not="refused")
    health = upgrade.seen_health(on_trial, machine.environments, machine.services)
    assert (health.healthy, health.reason.startswith(reason)) == (not reason, True), health
