"""The one command: lazily loaded, and one line for every error."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import click
import pytest

from edgefleet import cli
from edgefleet.errors import BusyError, EdgefleetError, InputError, MissingExtraError

PROBE = """
import sys
sys.argv = ["edgefleet", *sys.argv[1:]]
from edgefleet.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
ours = ("edgefleet", "pydantic", "paho", "numpy", "rich")
print("LOADED", *sorted(name for name in sys.modules if name.startswith(ours)))
"""


def test_help_loads_no_subcommand() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE, "--help"], capture_output=True, text=True, check=True)
    text, _, loaded = done.stdout.partition("LOADED ")
    assert loaded.split() == ["edgefleet", "edgefleet.cli", "edgefleet.errors", "edgefleet.log_lines"]
    for name, (_, line, _) in cli.SUBCOMMANDS.items():
        assert name in text
        assert line in text


@pytest.mark.parametrize("name", cli.SUBCOMMANDS)
def test_every_row_of_the_table_is_a_command_of_that_name(name: str) -> None:
    path, _, extra = cli.SUBCOMMANDS[name]
    module, _, attribute = path.partition(":")
    command = getattr(importlib.import_module(module), attribute)
    assert isinstance(command, click.Command)
    assert command.name == name
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert f"\n{extra} = [" in text


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["edgefleet", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code, capsys.readouterr().err


def test_an_unknown_command_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = run(monkeypatch, capsys, "explode")
    assert code == 2
    assert "explode" in said


def test_a_bad_settings_file_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, said = run(monkeypatch, capsys, "agent", "run", "--config", str(tmp_path / "none.toml"))
    assert code == InputError.exit_code
    assert said.startswith("edgefleet: reading the agent's settings")
    assert len(said.splitlines()) == 1


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(cli.SUBCOMMANDS, "server", ("module_that_is_not_there:app", "", "server"))
    code, said = run(monkeypatch, capsys, "server")
    assert code == MissingExtraError.exit_code
    assert "module_that_is_not_there is not installed" in said
    assert "pip install 'edgefleet[server]'" in said


def test_commands_on_a_folder_without_a_server_say_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, said = run(monkeypatch, capsys, "fleet", "list", "--data", str(tmp_path))
    assert code == InputError.exit_code
    assert "is not a server's folder" in said
    assert list(tmp_path.iterdir()) == []


def test_every_error_has_three_parts_on_one_line_and_codes_that_tell_them_apart() -> None:
    assert str(BusyError("starting", "it runs", "stop it")) == "starting: it runs; stop it"
    leaves = EdgefleetError.__subclasses__()
    assert all(leaf.exit_code not in (0, EdgefleetError.exit_code) for leaf in leaves)
