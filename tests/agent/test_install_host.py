"""Making the agent a service, on a machine whose folders, programs and service manager are ours."""

from __future__ import annotations

import getpass
import os
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.agent_lab import Fleet, write_settings
from agent.host_lab import FakePrograms, FakeServices
from edgefleet.errors import InputError
from edgefleet_agent.cli import app
from edgefleet_agent.host import setup
from edgefleet_agent.host.environments import Environments, Made
from edgefleet_agent.host.service import AGENT_UNIT, TRIAL_UNIT, Place, unit_files
from edgefleet_agent.host.setup import Setup, SystemFolders
from edgefleet_agent.host.wheels import extras_here
from edgefleet_agent.settings import Settings
from edgefleet_demo.processes import free_port


class Host:
    """One machine, and what an installation leaves on it."""

    def __init__(self, folder: Path) -> None:
        self.system = SystemFolders(folder / "units", folder / "users", folder / "rules", folder / "bin", hidden=())
        (folder / "bin").mkdir()
        self.programs = FakePrograms()
        self.services = FakeServices()
        self.environments = Environments(folder / "opt", self.programs)
        settings = write_settings(folder)
        self.asked = Setup(
            folder / "agent.toml", settings, ["edgefleet[agent,litert]"], Made(version="", extras=("litert",)),
            getpass.getuser(),
        )  # fmt: skip

    def install(self) -> list[str]:
        return list(setup.install(self.asked, self.environments, self.services, self.system, self.programs))


@pytest.fixture(name="host")
def _host(home: Fleet, tmp_path: Path) -> Host:
    home.enroll(tmp_path / "identity", port=free_port())
    return Host(tmp_path)


def test_it_leaves_a_service_that_starts_from_the_first_environment(host: Host, tmp_path: Path) -> None:
    steps = host.install()
    assert steps[0] == f"filling {tmp_path}/opt/A (this may take minutes)"
    assert (host.environments.current(), host.environments.previous()) == ("A", "A")
    unit = (tmp_path / "units" / AGENT_UNIT).read_text()
    assert f"ExecStart={tmp_path}/opt/current/bin/edgefleet agent run --config {tmp_path}/agent.toml\n" in unit
    assert f"ReadWritePaths={tmp_path}/state {tmp_path}/identity\n" in unit
    assert f"User={getpass.getuser()}\n" in unit
    assert "@" not in "".join(line for line in unit.splitlines() if "=" in line and "SystemCall" not in line)
    assert host.services.asked == [
        ("reload", ""), ("enable", AGENT_UNIT), ("enable", TRIAL_UNIT), ("restart", AGENT_UNIT),
    ]  # fmt: skip
    assert [arguments[0] for arguments in host.programs.ran if arguments[0].startswith(("systemd", "udev"))] == [
        "systemd-sysusers", "udevadm", "udevadm",
    ]  # fmt: skip


def test_the_identity_is_its_users_alone_and_the_settings_are_readable(host: Host, tmp_path: Path) -> None:
    (tmp_path / "agent.toml").chmod(0o600)
    host.install()
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("state", "identity")} == {0o700}
    assert (tmp_path / "agent.toml").stat().st_mode & 0o777 == 0o640


def test_the_command_leads_to_whatever_environment_is_current(host: Host, tmp_path: Path) -> None:
    host.install()
    assert (tmp_path / "bin" / "edgefleet").readlink() == tmp_path / "opt" / "current" / "bin" / "edgefleet"


def test_a_command_of_somebody_else_stays(host: Host, tmp_path: Path) -> None:
    (tmp_path / "bin" / "edgefleet").write_text("somebody's own")
    host.install()
    assert (tmp_path / "bin" / "edgefleet").read_text() == "somebody's own"


def test_again_it_repairs_and_keeps_the_environment(host: Host, tmp_path: Path) -> None:
    host.install()
    (tmp_path / "units" / AGENT_UNIT).write_text("damaged")
    host.programs.ran.clear()
    host.install()
    assert "Type=notify" in (tmp_path / "units" / AGENT_UNIT).read_text()
    assert [arguments for arguments in host.programs.ran if "venv" in arguments] == []


def test_what_a_service_would_not_see_is_refused_before_anything_is_done(host: Host, tmp_path: Path) -> None:
    host.system = replace(host.system, hidden=(tmp_path / "identity",))
    with pytest.raises(InputError, match="a service must not depend on that folder"):
        host.install()
    assert host.programs.ran == []
    assert [str(folder) for folder in SystemFolders().hidden[:2]] == ["/home", "/root"]


def test_what_its_settings_have_it_read_must_be_seen_by_the_service(host: Host, tmp_path: Path) -> None:
    """A source in somebody's home, or an update lock in /tmp, works by hand and is not there for the service."""
    host.system = replace(host.system, hidden=(tmp_path / "home",), fleeting=(tmp_path / "run",))
    common = {"profile": "generic-x86-64", "state_folder": tmp_path / "state", "identity": tmp_path / "identity"}
    hidden = str(tmp_path / "home" / "file")
    broker = {"password_file": hidden}
    for section in (
        {"source": {"kind": "replay", "path": hidden}},
        {"source": {"kind": "folder", "path": hidden}},
        {"source": {"kind": "camera", "device": hidden}},
        {"source": {"kind": "mqtt", "topic": "a", "broker": broker}},
        {"sinks": ({"kind": "mqtt", "topic": "a", "broker": broker},)},
        {"update": {"lock_file": hidden}},
    ):
        host.asked = replace(host.asked, settings=Settings.model_validate({**common, **section}))
        with pytest.raises(InputError, match="home/file: a service must not depend on that folder"):
            host.install()
    assert host.programs.ran == []
    # A lock that ends with the boot is a good one.
    lock = {"lock_file": str(tmp_path / "run" / "harvest.lock")}
    host.asked = replace(host.asked, settings=Settings.model_validate({**common, "update": lock}))
    assert host.install()[-1] == "starting it"


def test_the_folder_of_a_sink_is_made_where_there_is_none(host: Host, tmp_path: Path) -> None:
    """The service, to which the rest of the disk is read-only, could not make it."""
    sinks = [{"kind": "jsonl", "path": str(tmp_path / name / "all.jsonl")} for name in ("new", "old")]
    (tmp_path / "old").mkdir(mode=0o500)
    values = host.asked.settings.model_dump() | {"sinks": sinks}
    host.asked = replace(host.asked, settings=Settings.model_validate(values))
    host.install()
    assert (tmp_path / "new").stat().st_uid == os.getuid()
    assert (tmp_path / "old").stat().st_mode & 0o777 == 0o500


def test_a_python_that_a_service_would_not_see_is_refused_before_anything_is_done(host: Host, tmp_path: Path) -> None:
    """As pyenv and uv have it; an environment would work for whoever installs, and not for the service."""
    home = tmp_path / "somebody"
    (home / "versions").mkdir(parents=True)
    (tmp_path / "python").symlink_to(home / "versions")
    host.system = replace(host.system, hidden=(home,))
    host.asked = replace(host.asked, python=tmp_path / "python")
    with pytest.raises(
        InputError, match=r"the Python in .*/python: a service must not depend .* /usr/bin/python3 -m venv"
    ):
        host.install()
    assert (host.programs.ran, host.environments.current()) == ([], None)


def test_environments_in_somebodys_home_are_refused(host: Host, tmp_path: Path) -> None:
    host.system = replace(host.system, hidden=(tmp_path / "opt",))
    with pytest.raises(InputError, match="/opt: a service must not depend on that folder"):
        host.install()
    assert host.programs.ran == []


def test_what_its_settings_have_it_write_to_may_be_written(tmp_path: Path) -> None:
    sinks = ({"kind": "jsonl", "path": "/srv/results/all.jsonl"},)
    source = {"kind": "folder", "path": "/srv/inbox", "after": "delete"}
    common = {"profile": "generic-x86-64", "state_folder": tmp_path}
    settings = Settings.model_validate({**common, "sinks": sinks, "source": source})
    assert setup.written_by(settings) == (Path("/srv/results"), Path("/srv/inbox"))
    kept = Settings.model_validate({**common, "source": {**source, "after": "keep"}})
    assert setup.written_by(kept) == ()
    place = Place(tmp_path, tmp_path, tmp_path / "state", tmp_path / "identity", written=setup.written_by(settings))
    unit = unit_files(place, ())[AGENT_UNIT]
    assert f"ReadWritePaths={tmp_path}/state {tmp_path}/identity -/srv/results -/srv/inbox\n" in unit


@pytest.mark.parametrize(
    ("source", "extras"),
    [
        ({"kind": "camera"}, ("camera",)),
        ({"kind": "camera", "driver": "picamera2"}, ("data",)),
        ({"kind": "folder", "path": "in"}, ("data",)),
        ({"kind": "mqtt", "topic": "a"}, ("data",)),
        ({"kind": "mqtt", "topic": "a", "payload": "json"}, ()),
        ({"kind": "replay", "path": "x.npz"}, ()),
        (None, ()),
    ],
)
def test_what_the_source_needs_is_installed_too_unless_extras_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: dict[str, str] | None, extras: tuple[str, ...]
) -> None:
    """Without it the service, in an environment of its own, would find no camera where `agent run` found one."""
    asked: list[Setup] = []

    def install(one: Setup, *_: object) -> list[str]:
        asked.append(one)
        return []

    settings = Settings.model_validate({"profile": "generic-x86-64", "state_folder": "state", "source": source})
    monkeypatch.setattr("edgefleet_agent.settings.load", lambda _path: settings)
    monkeypatch.setattr(setup, "check_root", lambda: None)
    monkeypatch.setattr(setup, "install", install)
    for named in ([], ["--extra", "onnx"]):
        CliRunner().invoke(app, ["install", "--environments", str(tmp_path), *named], catch_exceptions=False)
    assert [one.record.extras for one in asked] == [(*extras_here(), *extras), ("onnx",)]


def test_without_an_identity_nothing_is_installed(tmp_path: Path) -> None:
    host = Host(tmp_path)
    with pytest.raises(InputError, match="edgefleet enroll"):
        host.install()
    assert host.programs.ran == []


def test_a_program_that_fails_says_so(host: Host) -> None:
    host.programs.fails = "--reload"
    with pytest.raises(InputError, match="running udevadm control --reload: ERROR: something went wrong"):
        host.install()


def test_only_root_changes_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(InputError, match="run it with sudo"):
        setup.check_root()
