"""`edgefleet agent`: the agent on a device."""

from __future__ import annotations

from pathlib import Path

import click


@click.group("agent")
def app() -> None:
    """The agent on a device."""


@app.command("run")
@click.option(
    "--config",
    "path",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="Settings, as in edgefleet-agent.toml.",
)
def run(path: Path) -> None:
    """Connect, pull what this device shall run, run it, and report."""
    from edgefleet.cli import stop_on_signals
    from edgefleet_agent.agent import Agent
    from edgefleet_agent.settings import load

    Agent(load(path)).run(stop_on_signals())
