"""`edgefleet agent`: the agent on a device, what it says of itself, and its place on the machine.

Each command loads what it needs; what is done stands in the modules that it calls.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgefleet_agent.agent import Agent
    from edgefleet_agent.host.upgrade import Host
    from edgefleet_agent.settings import Settings
    from edgefleet_agent.status import StatusFile

LOOK_EVERY_S = 2.0
# The trial's record is written every 10 s.
SILENCE_S = 60.0

_config = click.option(
    "--config",
    "path",
    default=Path("/etc/edgefleet/agent.toml"),
    show_default=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Settings, as in edgefleet-agent.toml.",
)
_environments = click.option(
    "--environments",
    "folder",
    default=Path("/opt/edgefleet"),
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the environments A and B are.",
)
_as_json: Callable[[Callable[..., None]], Callable[..., None]] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON."
)
_version = click.option("--version", metavar="VERSION", help="Of edgefleet.")
_wheels = click.option(
    "--from",
    "wheels",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="A folder of wheels, or a bundle of them (.tar, .tar.gz, .zip), instead of the package index.",
)
_extras = click.option(
    "--extra",
    "extras",
    multiple=True,
    metavar="NAME",
    help="Runtime: litert (tflite on 32 bits), onnx or openvino; or what a source needs: camera, or data for pictures."
    " May be repeated, and replaces what is chosen without it.",
)


@click.group("agent")
def app() -> None:
    """The agent on a device."""


@app.command("run")
@_config
def run(path: Path) -> None:
    """Connect, pull what this device shall run, run it, and report."""
    from edgefleet.cli import stop_on_signals
    from edgefleet_agent import worker_ahead

    # First of all: it loads while what follows does.
    ahead = worker_ahead.begin(path)
    from edgefleet_agent.agent import Agent
    from edgefleet_agent.notify import Notifier, watched
    from edgefleet_agent.settings import load
    from edgefleet_agent.status import StatusFile

    settings = load(path)
    agent = Agent(settings, ahead)
    each_turn = _noting(agent, StatusFile(settings.state_folder))
    agent.run(watched(stop_on_signals(), Notifier(os.environ), each_turn))


def _noting(agent: Agent, file: StatusFile) -> Callable[[float], str]:
    """What is done at each turn of the loop: note how the agent is, and say it in a line."""

    def each_turn(now: float) -> str:
        active = agent.journal.entry.active
        file.note(now, connected=agent.connected, infers=agent.infers, why_not=agent.connection.last_failure)
        doing = "nothing to infer with" if active is None else f"infers with {active.name}"
        return f"{'connected' if agent.connected else 'not connected'}, {doing}"

    return each_turn


@app.command("status")
@_config
@_as_json
def status(path: Path, *, as_json: bool) -> None:
    """Say what runs here, and whether it is connected.

    The exit status is 1 when no agent is running.
    """
    from edgefleet_agent import status as statuses
    from edgefleet_agent.settings import load
    from edgefleet_agent.update_lock import update_locked

    settings = load(path)
    found = statuses.read(settings.state_folder, update_locked(settings))
    click.echo(found.model_dump_json(indent=2) if as_json else "\n".join(statuses.lines(found)))
    if found.running is None:
        sys.exit(1)


@app.command("bench")
@_config
@_as_json
def bench(path: Path, *, as_json: bool) -> None:
    """Measure the variants on this device's disk.

    It takes minutes, and changes nothing: what was decided stays decided.
    """
    from edgefleet_agent import bench as benches
    from edgefleet_agent import status as statuses
    from edgefleet_agent.settings import load

    settings = load(path)
    running = statuses.read(settings.state_folder).running
    record = benches.bench(settings, live=running is not None)
    click.echo(record.model_dump_json(indent=2) if as_json else "\n".join(benches.lines(record)))


@app.command("infer")
@click.argument("inputs", type=click.Path(dir_okay=False, path_type=Path))
@_config
@click.option("--url", help="Of an agent's local API, whatever the settings say.")
def infer(inputs: Path, path: Path, url: str | None) -> None:
    """Run the arrays of INPUTS through the model here.

    INPUTS is a .npy or .npz file; each sample's outputs are a line of JSON. The agent must serve them ([serve] in its
    settings).
    """
    import json

    from edgefleet_agent.serve import client
    from edgefleet_agent.settings import load

    for answer in client.infer(url or client.url_of(load(path).serve), inputs):
        click.echo(json.dumps(answer))


@app.command("doctor")
@_config
@_environments
@_as_json
def doctor(path: Path, folder: Path, *, as_json: bool) -> None:
    """Say what is missing, and the command that mends it.

    The exit status is 1 when the agent cannot run.
    """
    import json

    from edgefleet_agent import doctor as doctors
    from edgefleet_agent.host.environments import Environments

    found = doctors.examine(doctors.Subject(path, Environments(folder)))
    if as_json:
        plain = {name: {"level": each.level, "text": each.text, "mend": each.mend} for name, each in found.items()}
        click.echo(json.dumps(plain, indent=2))
    else:
        click.echo("\n".join(doctors.lines(found)))
    if any(each.level is doctors.Level.FAILED for each in found.values()):
        sys.exit(1)


@app.command("install")
@_config
@_environments
@_version
@_wheels
@_extras
@click.option("--system-packages", is_flag=True, help="Let the environments see the system's own Python packages.")
def install(
    path: Path,
    folder: Path,
    version: str | None,
    wheels: Path | None,
    extras: tuple[str, ...],
    *,
    system_packages: bool,
) -> None:
    """Make the agent a service (as root).

    It gets an environment of its own, a user of its own, and systemd's care. Again on the same machine it repairs what
    is there, and keeps the environment.
    """
    from edgefleet import __version__
    from edgefleet_agent.host import setup
    from edgefleet_agent.host.environments import Environments, Made
    from edgefleet_agent.host.service import AGENT_UNIT, Systemd
    from edgefleet_agent.host.wheels import extras_for, extras_here, folder_of, requirement
    from edgefleet_agent.settings import load

    setup.check_root()
    path = path.resolve()
    settings = load(path)
    wanted = version or (None if wheels is not None else __version__)
    chosen = extras or (*extras_here(), *extras_for(settings.source))
    record = Made(version=wanted or "", extras=chosen, system_site_packages=system_packages)
    environments = Environments(folder)
    with environments.alone(), folder_of(wheels, folder) as found:
        asked = setup.Setup(path, settings, requirement(wanted, record.extras, found), record)
        for step in setup.install(asked, environments, Systemd()):
            click.echo(step)
    click.echo(f"done: systemctl status {AGENT_UNIT}; edgefleet agent doctor --config {path}")


@app.command("upgrade")
@_config
@_environments
@_version
@_wheels
@_extras
@click.option("--force", is_flag=True, help="Even if the new environment lacks a runtime that the current one has.")
def upgrade(
    path: Path, folder: Path, version: str | None, wheels: Path | None, extras: tuple[str, ...], *, force: bool
) -> None:
    """Change to another version, or back again (as root).

    Fills the other environment (without --version: with the newest one), switches to it, and goes back by itself if it
    is not healthy and connected within 5 minutes. The watching goes on when this command is interrupted, and after a
    power cut.
    """
    from edgefleet_agent.host import setup, upgrade
    from edgefleet_agent.host.wheels import extras_for, folder_of, requirement
    from edgefleet_agent.settings import load

    setup.check_root()
    path = path.resolve()
    settings, host = load(path), upgrade.machine(folder)
    before = upgrade.current_record(host.environments)
    chosen = extras or tuple(dict.fromkeys((*before.extras, *extras_for(settings.source))))
    record = before.model_copy(update={"extras": chosen})
    with host.environments.alone():
        click.echo(f"filling {host.environments.path(host.environments.other())} (this may take minutes)")
        with folder_of(wheels, folder) as found:
            asked = requirement(version, record.extras, found)
            name = upgrade.fill_other(host.environments, asked, record, path, force=force)
        _wait_for_lock(settings)
        begun = upgrade.begin(host, name, settings.state_folder)
    click.echo(f"switched from {begun.version_before} to {begun.version}; watching it")
    _follow(host)


def _wait_for_lock(settings: Settings) -> None:
    """Nothing is activated while the update lock is there."""
    from edgefleet_agent.update_lock import update_locked

    said = None
    while (locked := update_locked(settings)) is not None:
        if locked != said:
            click.echo(f"waiting to switch: {locked}")
        said = locked
        time.sleep(LOOK_EVERY_S)


def _follow(host: Host) -> None:
    """Wait for the end of the trial; exit status 1 when it was gone back from, or when nobody seems to watch it."""
    from edgefleet_agent.host import service, upgrade

    heard: tuple[float, float] = (-1.0, host.clock.now())
    while (pending := upgrade.pending(host.environments)) is not None:
        now = host.clock.now()
        if pending.elapsed_s != heard[0]:
            heard = pending.elapsed_s, now
        elif now - heard[1] > SILENCE_S:
            click.echo(f"nothing watches the trial; look at: systemctl status {service.TRIAL_UNIT}", err=True)
            sys.exit(1)
        host.clock.sleep(LOOK_EVERY_S)
    outcome = upgrade.last_outcome(host.environments)
    if outcome is None or not outcome.kept:
        reason = "it left no word" if outcome is None else outcome.reason
        click.echo(f"went back to the environment before: {reason}", err=True)
        sys.exit(1)
    click.echo(f"kept: {outcome.version}, {outcome.reason}")
