"""The one command: lazily loaded, and one line for every error."""

from __future__ import annotations

import importlib
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import click
import pytest

from edgefleet import cli
from edgefleet.cli import keys
from edgefleet.errors import BusyError, EdgefleetError, InputError, MissingExtraError, StorageError

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

KILLED = """
import signal, sys, tempfile, click
# Whoever runs the tests may have it ignored.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from edgefleet import cli
from edgefleet.cli import keys

def work():
    with tempfile.TemporaryDirectory():
        print("ready", flush=True)
        signal.pause()

keys.app = click.Command("keys", callback=work)
sys.argv = ["edgefleet", "keys"]
cli.main()
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


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (PermissionError(13, "Permission denied", "data/pki"), "data/pki: Permission denied"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (sqlite3.OperationalError("database or disk is full"), "database or disk is full"),
    ],
)
def test_what_the_disk_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, found: str
) -> None:
    def fails() -> None:
        raise error

    monkeypatch.setattr(keys, "app", click.Command("keys", callback=fails))
    code, said = run(monkeypatch, capsys, "keys")
    assert code == StorageError.exit_code
    assert said == f"edgefleet: running edgefleet keys: {found}; free the disk, or let this user read and write there\n"


@pytest.mark.parametrize("error", [ValueError("ours"), ConnectionResetError(104, "reset")])
def test_a_fault_of_ours_is_no_message_for_people(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails() -> None:
        raise error

    monkeypatch.setattr(keys, "app", click.Command("keys", callback=fails))
    monkeypatch.setattr(sys, "argv", ["edgefleet", "keys"])
    with pytest.raises(type(error)):
        cli.main()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_plain_kill_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", KILLED], env=environment, stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert list(tmp_path.iterdir()) != []
        process.send_signal(number)
    assert process.returncode == 128 + number
    assert list(tmp_path.iterdir()) == []


def test_every_error_has_three_parts_on_one_line_and_codes_that_tell_them_apart() -> None:
    assert str(BusyError("starting", "it runs", "stop it")) == "starting: it runs; stop it"
    leaves = EdgefleetError.__subclasses__()
    assert all(leaf.exit_code not in (0, EdgefleetError.exit_code) for leaf in leaves)
