"""`edgefleet profiles`: what a person reads, what a program reads, and one line for every error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgefleet import cli
from edgefleet.errors import InputError
from edgefleet_device_profiles import catalogue
from edgefleet_device_profiles.detect import detect

MINE = 'id = "camera"\nextends = "raspberry-pi-5"\ntitle = "Kitchen camera"\n[memory]\ntotal_mib = 2048\n'


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    (tmp_path / "camera.toml").write_text(MINE)
    return tmp_path


class Terminal:
    """Runs the command as the entry point does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def run(self, *arguments: str) -> str:
        """Standard output of a run that succeeds."""
        self._monkeypatch.setattr(sys, "argv", ["edgefleet", "profiles", *arguments])
        cli.main()
        out, err = self._capsys.readouterr()
        assert err == ""
        return out

    def fail(self, *arguments: str) -> tuple[str, str]:
        """Standard output and the one line of error of a run that fails."""
        self._monkeypatch.setattr(sys, "argv", ["edgefleet", "profiles", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == InputError.exit_code
        out, err = self._capsys.readouterr()
        assert err.startswith("edgefleet: ")
        assert len(err.splitlines()) == 1
        return out, err


@pytest.fixture(name="terminal")
def _terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    monkeypatch.delenv(catalogue.FOLDER_VARIABLE, raising=False)
    return Terminal(monkeypatch, capsys)


def test_list_shows_every_profile(terminal: Terminal) -> None:
    lines = terminal.run("list").splitlines()
    assert lines[0].split() == ["profile", "architecture", "processor", "runtimes", "device"]
    assert [line.split()[0] for line in lines[1:]] == list(catalogue.names())


def test_list_and_show_as_json_are_the_profiles(terminal: Terminal) -> None:
    listed = json.loads(terminal.run("list", "--json"))
    assert [row["id"] for row in listed] == list(catalogue.names())
    shown = json.loads(terminal.run("show", "jetson-nano", "--json"))
    assert catalogue.load("jetson-nano").model_validate(shown) == catalogue.load("jetson-nano")
    assert shown in listed


def test_show_names_every_field_and_what_is_inherited(terminal: Terminal) -> None:
    fields = [line.split(maxsplit=1) for line in terminal.run("show", "raspberry-pi-5-ai-hat").splitlines()]
    shown: dict[str, Any] = dict(fields)
    assert shown["id"] == "raspberry-pi-5-ai-hat"
    assert shown["cpu.isa"] == "neon, fp16, dotprod"
    assert shown["memory.total_mib"] == "8192"
    assert shown["runtimes.litert.precisions"].startswith("int8")
    assert shown["board.device_tree_models"] == "Raspberry Pi 5"
    assert all(len(field) == 2 for field in fields)


def test_a_folder_of_ones_own(terminal: Terminal, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Kitchen camera" in terminal.run("list", "--profiles", str(folder))
    assert "Kitchen camera" not in terminal.run("list")
    monkeypatch.setenv(catalogue.FOLDER_VARIABLE, str(folder))
    assert json.loads(terminal.run("show", "camera", "--json"))["memory"]["total_mib"] == 2048
    assert "camera" in terminal.run("detect")


def test_detect_says_what_this_machine_is(terminal: Terminal) -> None:
    facts, text = detect(), terminal.run("detect")
    assert facts.cpu_model in text
    assert text.index("Fits, the nearest first:") < text.index("Does not fit:")
    found = json.loads(terminal.run("detect", "--json"))
    assert found["machine"]["architecture"] == facts.architecture
    assert {row["profile"] for row in found["profiles"]} == set(catalogue.names())
    assert found["profiles"][0]["evidence"] in {"board", "class", "generic"}
    assert found["profiles"][-1]["evidence"] is None
    assert all(row["reason"] in text for row in found["profiles"])


def test_validate_says_which_files_are_good(terminal: Terminal, folder: Path) -> None:
    path = folder / "camera.toml"
    assert terminal.run("validate", str(path)) == f"{path} is valid\n"
    path.write_text(MINE.replace("total_mib", "totl_mib"))
    out, error = terminal.fail("validate", str(path))
    assert out == ""
    assert f"{path} is not a valid device profile: memory.totl_mib" in error
    out, error = terminal.fail("validate", str(path), str(folder / "gone.toml"))
    assert "gone.toml cannot be read" in out
    assert "memory.totl_mib: Extra inputs are not permitted, and 1 more, named above" in error


def test_a_bad_name_or_folder_is_one_line(terminal: Terminal, folder: Path) -> None:
    assert "there are: amd-ryzen-embedded" in terminal.fail("show", "toaster")[1]
    assert "gone is not a folder" in terminal.fail("list", "--profiles", str(folder / "gone"))[1]
    (folder / "camera.toml").write_text('id = "camera"\nextends = "camera"\n')
    for arguments in (["list"], ["detect", "--json"], ["show", "camera"]):
        out, error = terminal.fail(*arguments, "--profiles", str(folder))
        assert out == ""
        assert "camera.toml is not a valid device profile: extends: a circle, camera → camera" in error


def test_help_loads_neither_profiles_nor_pydantic() -> None:
    code = (
        "import sys; sys.argv = ['edgefleet', 'profiles', '--help']\n"
        "from edgefleet.cli import main; main(); print('LOADED', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text, _, loaded = done.stdout.partition("LOADED")
    assert all(command in text for command in ("list", "show", "validate", "detect"))
    assert {"pydantic", "edgefleet_device_profiles"}.isdisjoint(loaded.split())
