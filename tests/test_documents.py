"""Documents that can go stale: generated tables, the README's commands, the shipped settings file."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from docs_tables import DOCS, DOCUMENTS
from edgefleet.cli import SUBCOMMANDS, app
from edgefleet_agent import settings

ROOT = Path(__file__).parent.parent
FOLDERS = ("sdk", "agent", "converters", "device_profiles", "tests", "fleet_demo", "docs", "benchmarks")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_generated_documents_are_current(name: str) -> None:
    assert (DOCS / name).read_text() == DOCUMENTS[name]()


def readme_commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("edgefleet ")]


def test_the_readme_shows_every_subcommand_but_the_demo() -> None:
    assert {words[0] for words in readme_commands()} == set(SUBCOMMANDS) - {"demo"}


@pytest.mark.parametrize("words", readme_commands(), ids=" ".join)
def test_the_readmes_commands_are_what_the_parser_takes(words: list[str]) -> None:
    command: click.Command = app
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), words[0])
        assert found is not None
        command, words = found, words[1:]
    context = command.make_context(str(command.name), list(words), resilient_parsing=False)
    assert context.params


def test_the_shipped_settings_file_is_valid() -> None:
    loaded = settings.load(ROOT / "agent" / "edgefleet-agent.toml")
    assert (loaded.device, loaded.telemetry.window_s) == ("pi-kitchen", 10)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_says_what_lives_there(folder: str) -> None:
    lines = [line for line in (ROOT / folder / "README.md").read_text().splitlines() if line]
    assert lines[0] == f"# {folder}"
    assert len(lines) == 2


def test_constraints_are_plain_pins() -> None:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"[A-Za-z0-9_.\-]+==[A-Za-z0-9_.+!\-]+", line), line
