"""What is said of a state folder that is not this user's, is none, is damaged, or is a copy of one."""

from __future__ import annotations

import getpass
import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.agent_lab import write_settings
from agent.installer_lab import OWN
from edgefleet.errors import StorageError
from edgefleet_agent import status
from edgefleet_agent.cli import app
from edgefleet_agent.doctor import Level, Subject, examine
from edgefleet_agent.host import service
from edgefleet_agent.host.environments import Environments
from edgefleet_agent.journal import Entry, Refusal
from edgefleet_agent.status import STATUS_FILE, StatusFile
from sdk.wire_examples import DESIRED


@pytest.fixture(name="locked_out")
def _locked_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A service's state folder, as a user who is not its own finds it (root, who runs tests too, may read all)."""
    read_bytes = Path.read_bytes

    def refused(path: Path) -> bytes:
        if path.parent == tmp_path / "state":
            raise PermissionError(13, "Permission denied", str(path))
        return read_bytes(path)

    write_settings(tmp_path)
    (tmp_path / "state").mkdir()
    monkeypatch.setattr(Path, "read_bytes", refused)
    return tmp_path


@pytest.mark.parametrize("command", ["status", "bench"])
def test_what_this_user_may_not_read_is_not_taken_for_empty(locked_out: Path, command: str) -> None:
    said = CliRunner().invoke(app, [command, "--config", str(locked_out / "agent.toml")])
    assert isinstance(said.exception, StorageError)
    assert (said.stdout, said.exception.found, said.exception.remedy) == ("", "Permission denied", "run it with sudo")


def test_the_doctor_leaves_another_users_folder_to_that_user(locked_out: Path) -> None:
    """Giving it to whoever asks would end the service."""
    found = examine(Subject(locked_out / "agent.toml", Environments(locked_out / "opt")))
    assert (found["state"].level, found["state"].mend) == (Level.FAILED, "run it with sudo")
    assert [found[name].text for name in ("service", "updates")] == ["not looked at, because of state"] * 2


def test_a_file_is_no_state_folder(tmp_path: Path) -> None:
    write_settings(tmp_path)
    (tmp_path / "state").write_text("not a folder")
    finding = examine(Subject(tmp_path / "agent.toml", Environments(tmp_path / "opt")))["state"]
    assert finding.level is Level.FAILED
    with pytest.raises(StorageError, match="Not a directory; name the agent's state_folder"):
        status.read(tmp_path / "state")


def test_a_damaged_journal_is_said(tmp_path: Path) -> None:
    write_settings(tmp_path)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "journal.json").write_bytes(b"\0" * 512)
    found = examine(Subject(tmp_path / "agent.toml", Environments(tmp_path / "opt")))["state"]
    assert (found.level, "the journal in it is damaged" in found.text) == (Level.WARNING, True)
    said = CliRunner().invoke(app, ["status", "--config", str(tmp_path / "agent.toml"), "--json"])
    assert (said.exit_code, json.loads(said.stdout)["damaged"]) == (1, True)


def test_a_copy_of_a_state_folder_runs_no_agent(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    StatusFile(tmp_path / "state").note(0.0, connected=True, infers=True, why_not=None)
    shutil.copytree(tmp_path / "state", tmp_path / "copy")
    assert status.running_agent(tmp_path / "copy") is None
    (tmp_path / "state").rename(tmp_path / "moved")
    assert status.running_agent(tmp_path / "moved") is not None
    # As an agent before this one noted it: the trial of an upgrade may find that.
    noted = json.loads((tmp_path / "copy" / STATUS_FILE).read_text())
    del noted["folder"]
    (tmp_path / "copy" / STATUS_FILE).write_text(json.dumps(noted))
    assert status.running_agent(tmp_path / "copy") is not None


@pytest.mark.parametrize(("section", "check"), [
    ('[[sinks]]\nkind = "jsonl"\npath = "theirs/all.jsonl"', "sinks"),
    ('[source]\nkind = "folder"\npath = "theirs"\nafter = "delete"', "source"),
])  # fmt: skip
def test_root_sees_with_the_services_eyes(
    tmp_path: Path, section: str, check: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write everywhere, and the agent may not."""
    (tmp_path / "agent.toml").write_text(f'profile = "generic-x86-64"\nstate_folder = "state"\n{section}\n')
    environments = Environments(tmp_path / "opt")
    monkeypatch.setattr(environments, "current", lambda: "A")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path).exists())
    monkeypatch.setattr(service, "USER", getpass.getuser())
    (tmp_path / "theirs").mkdir()
    for mode, level in ((0o700, Level.OK), (0o500, Level.WARNING)):
        (tmp_path / "theirs").chmod(mode)
        assert examine(Subject(tmp_path / "agent.toml", environments))[check].level is level


def test_a_decision_that_is_refused_is_shown_until_another_is_accepted(tmp_path: Path) -> None:
    entry = Entry(enrolment=OWN, refusal=Refusal(generation=DESIRED.generation + 1, reason="no operator signed it"))
    for desired, shown in ((DESIRED, True), (DESIRED.model_copy(update={"generation": DESIRED.generation + 1}), False)):
        content = entry.model_copy(update={"desired": desired}).model_dump_json()
        (tmp_path / "journal.json").write_text(content)
        said = f"refused  generation {DESIRED.generation + 1}: no operator signed it"
        assert (said in status.lines(status.read(tmp_path))) == shown
