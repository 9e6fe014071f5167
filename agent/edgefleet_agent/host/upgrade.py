"""Upgrading the agent: fill the other environment, switch to it, and watch it, going back by itself.

`begin` is what a person starts; `watch` runs as a service of its own, from the environment before, and goes on after a
power cut. What makes an environment good enough is in `trial`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError

from edgefleet import durable
from edgefleet.errors import BusyError, EdgefleetError, InputError, StorageError
from edgefleet_agent import facts, status
from edgefleet_agent.host import trial
from edgefleet_agent.host.environments import CURRENT_LINK, NAMES, PREVIOUS_LINK, Environments, Made
from edgefleet_agent.host.service import AGENT_UNIT, TRIAL_UNIT, ServiceManager, Systemd
from edgefleet_agent.host.trial import Health, Outcome, Step, Trial, Verdict

TRIAL_FILE = "trial.json"
OUTCOME_FILE = "last-upgrade.json"
LOOK_EVERY_S = 2.0
JOURNAL_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class Clock:
    """Time, for tests to replace."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True, slots=True)
class Host:
    """The environments of one machine, its service manager, and its boot."""

    environments: Environments
    services: ServiceManager
    clock: Clock
    boot_id: str
    healthy: Callable[[Trial], Health]


def machine(folder: Path) -> Host:
    """This machine."""
    environments, services = Environments(folder), Systemd()
    return Host(
        environments,
        services,
        Clock(),
        facts.boot_id(Path("/")),
        lambda each: seen_health(each, environments, services),
    )


def current_record(environments: Environments) -> Made:
    """What the current environment is; raises InputError when there is no service to upgrade."""
    current = environments.current()
    made = None if current is None else environments.made(current)
    if made is None:
        raise InputError(
            f"upgrading the agent in {environments.folder}", "there is no environment to upgrade",
            "run: sudo edgefleet agent install",
        )  # fmt: skip
    return made


def fill_other(
    environments: Environments, requirement: list[str], record: Made, settings_file: Path, *, force: bool = False
) -> str:
    """Fill the environment that is not current; returns its name.

    Raises BusyError while a trial is under way, InputError when there is no service to upgrade, when the new
    environment is not fit, or lacks a runtime of the current one (unless `force`); StorageError.
    """
    doing = f"upgrading the agent in {environments.folder}"
    before = current_record(environments)
    if pending(environments) is not None:
        raise BusyError(doing, "another upgrade is on trial", "wait for its end: edgefleet agent doctor tells")
    name = environments.other()
    made = environments.fill(name, requirement, record, settings_file)
    lacking = sorted(set(before.runtimes) - set(made.runtimes))
    if lacking and not force:
        raise InputError(
            doing, f"the new environment has no {', '.join(lacking)}, which the current one has",
            "name its extra with --extra, or give --force",
        )  # fmt: skip
    return name


def begin(host: Host, name: str, state_folder: Path) -> Trial:
    """Switch to a filled environment and start it; `watch` decides whether it stays. Raises EdgefleetError."""
    environments = host.environments
    current, made = environments.current(), environments.made(name)
    before = None if current is None else environments.made(current)
    if current is None or before is None or made is None or name == current:
        raise InputError(f"switching to the environment {name}", "it is not filled, or it is current", "fill it first")
    begun = Trial.model_validate(
        {
            "before": current, "tried": name, "state_folder": str(state_folder), "version_before": before.version,
            "version": made.version, "boot_id": host.boot_id,
        }
    )  # fmt: skip
    # In this order no power cut leaves a new environment that nobody watches.
    environments.switch(PREVIOUS_LINK, current)
    _write(environments, TRIAL_FILE, begun)
    environments.switch(CURRENT_LINK, name)
    host.services.restart(TRIAL_UNIT)
    host.services.restart(AGENT_UNIT)
    return begun


def watch(host: Host) -> Outcome | None:
    """Watch the trial that is under way to its end; None when there is none. Raises StorageError.

    Time counts only while this runs, so that a device that was switched off gets its five minutes.
    """
    found = pending(host.environments)
    if found is None:
        return None
    on_trial = trial.at_boot(found, host.boot_id)
    _write(host.environments, TRIAL_FILE, on_trial)
    begun_s, base_s = host.clock.now(), on_trial.elapsed_s
    journalled_s = begun_s
    healthy_since: float | None = None
    while True:
        now = host.clock.now()
        on_trial = on_trial.model_copy(update={"elapsed_s": base_s + now - begun_s})
        health = host.healthy(on_trial)
        healthy_since = None if not health.healthy else healthy_since if healthy_since is not None else now
        healthy_for_s = 0.0 if healthy_since is None else now - healthy_since
        verdict = trial.judge(on_trial, host.environments.current(), health, healthy_for_s)
        if verdict.step is not Step.WAIT:
            return _end(host, on_trial, verdict)
        if now - journalled_s >= JOURNAL_EVERY_S:
            journalled_s = now
            _write(host.environments, TRIAL_FILE, on_trial)
        host.clock.sleep(LOOK_EVERY_S)


def _end(host: Host, ended: Trial, verdict: Verdict) -> Outcome:
    environments = host.environments
    kept = verdict.step is Step.KEEP
    if verdict.step is Step.GO_BACK:
        environments.switch(CURRENT_LINK, ended.before)
    if not kept:
        # After ENDED too: a power cut may have come between the switch and this.
        host.services.restart(AGENT_UNIT)
    environment = ended.tried if kept else ended.before
    outcome = Outcome(kept=kept, environment=environment, version=ended.version, reason=verdict.reason)
    _write(environments, OUTCOME_FILE, outcome)
    try:
        (environments.folder / TRIAL_FILE).unlink(missing_ok=True)
        durable.sync_folder(environments.folder)
    except OSError as error:
        raise StorageError("ending the trial", error.strerror or str(error), "free that disk or mend it") from error
    return outcome


def seen_health(on_trial: Trial, environments: Environments, services: ServiceManager) -> Health:
    """How the agent of the tried environment is now, by the service manager and by what it noted itself."""
    if not services.is_active(AGENT_UNIT):
        return Health(healthy=False, reason="the service is not running")
    running = status.running_agent(Path(on_trial.state_folder))
    if running is None:
        return Health(healthy=False, reason="the agent has not said how it is")
    if Path(running.environment).resolve() != environments.path(on_trial.tried).resolve():
        return Health(healthy=False, reason=f"it still runs from {running.environment}")
    if not running.connected:
        return Health(healthy=False, reason=f"no connection to the broker ({running.why_not or 'not yet'})")
    if not running.infers:
        return Health(healthy=False, reason="the committed variant does not answer")
    return Health(healthy=True, reason="")


def pending(environments: Environments) -> Trial | None:
    """The trial under way; a damaged record of one counts as the most suspicious."""
    try:
        return Trial.model_validate_json((environments.folder / TRIAL_FILE).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        return _suspicious(environments)


def last_outcome(environments: Environments) -> Outcome | None:
    """How the last trial ended; None before the first."""
    try:
        return Outcome.model_validate_json((environments.folder / OUTCOME_FILE).read_bytes())
    except (OSError, ValidationError):
        return None


def _suspicious(environments: Environments) -> Trial:
    """A trial whose record cannot be read: back to the environment that `previous` names, at once."""
    tried = environments.current() or NAMES[0]
    before = environments.previous() or environments.other()
    return Trial.model_validate(
        {
            "before": before, "tried": tried, "state_folder": "/nonexistent", "version_before": "unknown",
            "version": "unknown", "boot_id": "unknown", "boots": trial.MAX_BOOTS + 1,
        }
    )  # fmt: skip


def _write(environments: Environments, name: str, record: BaseModel) -> None:
    try:
        durable.write_file(environments.folder / name, record.model_dump_json().encode())
    except OSError as error:
        raise StorageError(
            f"writing {environments.folder / name}", error.strerror or str(error), "free that disk, or run this as root"
        ) from error


def main(arguments: list[str]) -> int:
    """`python -m edgefleet_agent.host.upgrade FOLDER`: the trial's service. 1 makes the service manager try again."""
    try:
        outcome = watch(machine(Path(arguments[0])))
    except EdgefleetError as error:
        print(error, file=sys.stderr)
        return 1
    if outcome is not None:
        print(f"{'kept' if outcome.kept else 'went back from'} {outcome.version}: {outcome.reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
