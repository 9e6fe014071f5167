"""What the doctor finds on a device that lacks something, and what is read of one that runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.agent_lab import DEVICE, Device, Fleet, write_settings
from agent.host_lab import Machine, ill
from agent.sensor_trees import PMIC_W, Board, Mailbox
from agent.test_agent_process import start_broker, tool
from edgefleet import __version__
from edgefleet_agent import status
from edgefleet_agent.cli import app
from edgefleet_agent.doctor import Level, Subject, examine
from edgefleet_agent.host import upgrade
from edgefleet_agent.host.environments import Environments
from edgefleet_agent.status import STATUS_FILE, StatusFile
from edgefleet_demo.processes import ProcessGroup, free_port
from edgefleet_device_profiles import detect
from patience import PATIENCE_S
from sdk.wire_examples import DESIRED

DAY_S = 86400.0


@pytest.fixture(name="group")
def _group(tmp_path: Path) -> Iterator[ProcessGroup]:
    (tmp_path / "logs").mkdir()
    with ProcessGroup(tmp_path / "logs") as group:
        yield group


def subject(folder: Path, now: float | None = None) -> Subject:
    return Subject(folder / "agent.toml", Environments(folder / "opt"), now)


def test_every_finding_that_is_not_good_names_what_mends_it(home: Fleet, tmp_path: Path) -> None:
    home.enroll(tmp_path / "identity", port=free_port())
    write_settings(tmp_path)
    found = examine(subject(tmp_path))
    assert [name for name, each in found.items() if each.level is Level.FAILED] == ["broker", "source"]
    assert "Connection refused" in found["broker"].text
    assert all(each.mend for each in found.values() if each.level in {Level.WARNING, Level.FAILED})
    assert found["identity"].text.startswith(f"{DEVICE} of the fleet home, certificate good for")


def test_a_failure_that_another_explains_is_said_once(tmp_path: Path) -> None:
    write_settings(tmp_path)
    found = examine(subject(tmp_path))
    assert (found["identity"].level, found["identity"].mend) == (
        Level.FAILED, "make one with edgefleet enroll, and name its folder as `identity`",
    )  # fmt: skip
    assert (found["broker"].level, found["broker"].text) == (Level.NOTE, "not looked at, because of identity")


def test_without_settings_it_still_looks_at_the_machine(tmp_path: Path) -> None:
    found = examine(subject(tmp_path))
    assert {name: each.level for name, each in found.items() if name in {"python", "packages", "settings"}} == {
        "python": Level.OK, "packages": Level.OK, "settings": Level.FAILED,
    }  # fmt: skip
    assert found["power"].text == "not looked at, because of settings"


@pytest.mark.parametrize(
    ("before_the_end_s", "level"), [(61 * DAY_S, Level.OK), (30 * DAY_S, Level.WARNING), (-DAY_S, Level.FAILED)]
)
def test_the_end_of_the_certificate(home: Fleet, tmp_path: Path, before_the_end_s: float, level: Level) -> None:
    home.enroll(tmp_path / "identity", port=free_port())
    write_settings(tmp_path)
    end = subject(tmp_path).identity.not_after
    assert examine(subject(tmp_path, end - before_the_end_s))["identity"].level is level


def test_a_runtime_that_the_profile_does_not_take_is_named_with_its_extra(
    home: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.enroll(tmp_path / "identity", port=free_port())
    write_settings(tmp_path)
    looked_at = subject(tmp_path)
    bare = looked_at.machine.model_copy(update={"runtimes": {}})
    monkeypatch.setattr(detect, "detect", lambda _root: bare)
    finding = examine(subject(tmp_path))["runtime"]
    assert finding.level is Level.FAILED
    assert finding.mend is not None
    assert finding.mend.startswith("run: pip install 'edgefleet[")


def test_a_python_that_the_profiles_runtime_has_no_wheel_for_is_named(
    home: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.enroll(tmp_path / "identity", port=free_port())
    write_settings(tmp_path)
    path = tmp_path / "agent.toml"
    path.write_text(re.sub(r'^profile = ".*"$', 'profile = "raspberry-pi-os-32"', path.read_text(), flags=re.MULTILINE))
    bare = subject(tmp_path).machine.model_copy(update={"runtimes": {}, "python": "3.13.5"})
    monkeypatch.setattr(detect, "detect", lambda _root: bare)
    finding = examine(subject(tmp_path))["runtime"]
    assert finding.level is Level.FAILED
    assert finding.mend == "make the agent's environment with Python <3.12: it has no wheel for 3.13.5"


def test_a_broker_that_takes_this_device(
    home: Fleet, tmp_path: Path, group: ProcessGroup, need: Callable[[bool, str], None]
) -> None:
    port = start_broker(home, tmp_path / "broker", group, tool(need, "mosquitto"))
    home.enroll(tmp_path / "identity", port=port)
    write_settings(tmp_path)
    deadline = time.monotonic() + PATIENCE_S
    while (found := examine(subject(tmp_path))["broker"]).level is not Level.OK:
        assert time.monotonic() < deadline, found
    assert found.text == f"127.0.0.1:{port} answers, TLSv1.3"


def test_a_broker_of_another_fleet_is_told_apart(
    home: Fleet, tmp_path: Path, group: ProcessGroup, need: Callable[[bool, str], None]
) -> None:
    other = Fleet.found(tmp_path / "other")
    port = start_broker(other, tmp_path / "broker", group, tool(need, "mosquitto"))
    home.enroll(tmp_path / "identity", port=port)
    write_settings(tmp_path)
    deadline = time.monotonic() + PATIENCE_S
    while "refused" in (found := examine(subject(tmp_path))["broker"]).text:
        assert time.monotonic() < deadline, found
    assert (found.level, "CERTIFICATE_VERIFY_FAILED" in found.text) == (Level.FAILED, True)


def test_an_update_lock_is_a_note(home: Fleet, tmp_path: Path) -> None:
    home.enroll(tmp_path / "identity", port=free_port())
    settings = write_settings(tmp_path)
    settings.state_folder.mkdir()
    lock = settings.state_folder / "update.lock"
    lock.write_text("the harvest is on\nuntil Friday\n")
    finding = examine(subject(tmp_path))["updates"]
    assert (finding.level, finding.text) == (Level.NOTE, "updates wait: the harvest is on")
    lock.write_text("")
    assert examine(subject(tmp_path))["updates"].text == f"updates wait: {lock} is there"


def test_an_upgrade_that_was_taken_back_is_remembered(home: Fleet, tmp_path: Path) -> None:
    home.enroll(tmp_path / "identity", port=free_port())
    write_settings(tmp_path)
    machine = Machine(tmp_path / "opt", healthy=lambda _trial: ill("the service is not running"))
    record = upgrade.current_record(machine.environments)
    name = upgrade.fill_other(machine.environments, ["edgefleet"], record, tmp_path / "agent.toml")
    upgrade.begin(machine.host(), name, tmp_path / "state")
    assert "2.0 is on trial in B" in examine(subject(tmp_path))["service"].text
    upgrade.watch(machine.host())
    assert examine(subject(tmp_path))["service"].text == "no agent is running"
    (tmp_path / "state").mkdir(exist_ok=True)
    StatusFile(tmp_path / "state").note(0.0, connected=True, infers=True, why_not=None)
    finding = examine(subject(tmp_path))["service"]
    assert (finding.level, "connected; the upgrade to 2.0 was taken back" in finding.text) == (Level.NOTE, True)


@pytest.mark.parametrize(
    ("section", "level", "text"),
    [
        ("", Level.WARNING, "none, and no local API"),
        ("[serve]\nenabled = true", Level.OK, "the local API alone"),
        ('[source]\nkind = "folder"\npath = "."', Level.OK, "folder: "),
        ('[source]\nkind = "folder"\npath = "none"', Level.FAILED, "cannot be read"),
        ('[source]\nkind = "camera"\ndriver = "picamera2"', Level.FAILED, "picamera2 is not installed"),
        ('[source]\nkind = "mqtt"\ntopic = "yard/camera"', Level.OK, "mqtt: yard/camera"),
    ],
)
def test_where_inputs_come_from(tmp_path: Path, section: str, level: Level, text: str) -> None:
    (tmp_path / "agent.toml").write_text(f'profile = "generic-x86-64"\nstate_folder = "state"\n{section}\n')
    finding = examine(subject(tmp_path))["source"]
    assert (finding.level, text in finding.text) == (level, True)


@pytest.mark.parametrize(
    ("throttled", "level", "text"),
    [
        (0x0, Level.NOTE, "unknown"),
        (0x1, Level.WARNING, "the supply's voltage is too low, now"),
        (0x50000, Level.WARNING, "the supply's voltage is too low, since its start"),
        (0x40000, Level.WARNING, "the processor was slowed down, since its start"),
    ],
)
def test_a_raspberry_pi_that_says_it_is_hot_or_hungry(tmp_path: Path, throttled: int, level: Level, text: str) -> None:
    file = tmp_path / "root" / "sys/devices/platform/soc/soc:firmware/get_throttled"
    file.parent.mkdir(parents=True)
    file.write_text(f"{throttled:x}\n")
    (tmp_path / "agent.toml").write_text('profile = "raspberry-pi-5"\nstate_folder = "state"\nroot = "root"\n')
    looked_at = subject(tmp_path)
    looked_at.machine = looked_at.machine.model_copy(
        update={"architecture": "arm64", "board": "Raspberry Pi 5 Model B"}
    )
    finding = examine(looked_at)["heat"]
    assert (finding.level, text in finding.text) == (level, True), finding


def test_of_a_raspberry_pi_5_the_rails_are_measured_and_the_board_is_estimated_from_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Mailbox(monkeypatch)
    board = Board(tmp_path / "root", "pi-5")
    (tmp_path / "agent.toml").write_text('profile = "raspberry-pi-5"\nstate_folder = "state"\nroot = "root"\n')
    looked_at = subject(tmp_path)
    looked_at.machine = looked_at.machine.model_copy(
        update={"architecture": "arm64", "board": "Raspberry Pi 5 Model B"}
    )
    finding = examine(looked_at)["power"]
    assert board.profile == "raspberry-pi-5"
    said = (
        f"measured by rpi-pmic: rails {PMIC_W:.1f} W; the bare board about {1.1451 * PMIC_W + 0.5879:.1f} W, estimated"
    )
    assert (finding.level, finding.text) == (Level.OK, f"{said} from that")


def test_another_sensors_board_is_measured_and_not_estimated_too(tmp_path: Path) -> None:
    Board(tmp_path / "root", "pi-4-ina219")
    (tmp_path / "agent.toml").write_text('profile = "raspberry-pi-5"\nstate_folder = "state"\nroot = "root"\n')
    looked_at = subject(tmp_path)
    looked_at.machine = looked_at.machine.model_copy(
        update={"architecture": "arm64", "board": "Raspberry Pi 5 Model B"}
    )
    assert examine(looked_at)["power"].text == "measured by ina2xx: board_input 4.6 W"


def test_a_counter_says_nothing_of_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Board(tmp_path / "root", "nuc")
    (tmp_path / "agent.toml").write_text('profile = "generic-x86-64"\nstate_folder = "state"\nroot = "root"\n')
    monkeypatch.setattr(detect, "mismatch", lambda _profile, _machine: None)
    assert examine(subject(tmp_path))["power"].text == "measured by rapl"


def test_what_mends_a_state_folder_touches_nothing_above_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_settings(tmp_path)
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    absent = examine(subject(tmp_path))["state"]
    (tmp_path / "state").mkdir()
    present = examine(subject(tmp_path))["state"]
    assert (absent.level, absent.mend) == (Level.FAILED, f"run: sudo install -d -o $USER {tmp_path}/state")
    assert (present.level, present.mend) == (Level.FAILED, f"run: sudo chown -R $USER {tmp_path}/state")


@pytest.mark.parametrize(
    ("section", "level", "text"),
    [
        ("", Level.OK, "none"),
        ('[[sinks]]\nkind = "jsonl"\npath = "results.jsonl"', Level.OK, "/results.jsonl"),
        ('[[sinks]]\nkind = "jsonl"\npath = "none/results.jsonl"', Level.WARNING, "/none cannot be written"),
        ('[[sinks]]\nkind = "mqtt"\ntopic = "home/results"', Level.OK, "mqtt: home/results"),
        (
            '[[sinks]]\nkind = "mqtt"\ntopic = "a"\nbroker = { password_file = "secret" }',
            Level.FAILED, "/secret cannot be read",
        ),
    ],
)  # fmt: skip
def test_where_results_go(tmp_path: Path, section: str, level: Level, text: str) -> None:
    (tmp_path / "agent.toml").write_text(f'profile = "generic-x86-64"\nstate_folder = "state"\n{section}\n')
    finding = examine(subject(tmp_path))["sinks"]
    assert (finding.level, text in finding.text) == (level, True), finding


def test_an_agent_whose_model_does_not_answer_is_a_warning(tmp_path: Path) -> None:
    write_settings(tmp_path)
    (tmp_path / "state").mkdir()
    StatusFile(tmp_path / "state").note(0.0, connected=True, infers=False, why_not=None)
    finding = examine(subject(tmp_path))["service"]
    assert (finding.level, "connected; its model does not answer" in finding.text) == (Level.WARNING, True)


def test_what_makes_a_service_of_it_needs_neither_a_path_nor_a_default(tmp_path: Path) -> None:
    write_settings(tmp_path)
    mend = examine(subject(tmp_path))["service"].mend
    program = Path(sys.prefix) / "bin" / "edgefleet"
    assert mend == f"run: sudo {program} agent install --config {tmp_path}/agent.toml"
    assert program.exists()


# Status -----------------------------------------------------------------------------------------------


def test_the_status_of_a_device_that_runs(device: Device, tmp_path: Path) -> None:
    """As another process sees it: by what the running one noted."""
    assert status.read(tmp_path / "state").running is None
    file = StatusFile(tmp_path / "state")
    file.note(10.0, connected=False, infers=True, why_not="Connection refused")
    found = status.read(tmp_path / "state", "the harvest is on")
    assert found.running is not None
    assert (found.running.pid, found.running.version, found.device) == (os.getpid(), __version__, DEVICE)
    assert (
        status.lines(found)[0] == f"agent    {__version__}, process {os.getpid()}, not connected (Connection refused)"
    )
    assert status.lines(found)[-2:] == ["infers   with nothing", "locked   the harvest is on"]
    assert device.agent.journal.entry.state is found.state


def test_what_does_not_change_is_written_once_and_what_does_not_too_often(tmp_path: Path) -> None:
    file = StatusFile(tmp_path)
    file.note(0.0, connected=False, infers=True, why_not="refused")
    first = (tmp_path / STATUS_FILE).stat().st_ino
    file.note(1.0, connected=True, infers=True, why_not=None)
    assert (tmp_path / STATUS_FILE).stat().st_ino == first
    file.note(2.0, connected=True, infers=True, why_not="of the time before")
    running = status.running_agent(tmp_path)
    assert running is not None
    assert (running.connected, running.why_not) == (True, None)
    second = (tmp_path / STATUS_FILE).read_bytes()
    (tmp_path / STATUS_FILE).unlink()
    file.note(10.0, connected=True, infers=True, why_not=None)
    assert not (tmp_path / STATUS_FILE).exists()
    assert b'"connected":true' in second


def test_a_process_that_is_gone_does_not_run_even_where_its_number_was_given_again(tmp_path: Path) -> None:
    StatusFile(tmp_path).note(0.0, connected=True, infers=True, why_not=None)
    noted = json.loads((tmp_path / STATUS_FILE).read_text())
    (tmp_path / STATUS_FILE).write_text(json.dumps({**noted, "started": noted["started"] - 1}))
    assert status.running_agent(tmp_path) is None
    (tmp_path / STATUS_FILE).write_text(json.dumps({**noted, "pid": 2**22 + 1}))
    assert status.running_agent(tmp_path) is None


def test_a_process_that_has_ended_and_that_nobody_asked_for_does_not_run() -> None:
    """A container whose first process asks for none keeps them for ever."""
    with subprocess.Popen(["true"]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        assert Path(f"/proc/{ended.pid}/stat").read_text().split()[2] == "Z"
        assert status.started(ended.pid) is None


def test_a_full_disk_is_tried_again(tmp_path: Path) -> None:
    file = StatusFile(tmp_path / "state")
    file.note(0.0, connected=True, infers=True, why_not=None)
    (tmp_path / "state").mkdir()
    file.note(5.0, connected=True, infers=True, why_not=None)
    assert status.running_agent(tmp_path / "state") is not None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": "x"}'])
def test_a_damaged_folder_is_an_unknown_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / STATUS_FILE).write_bytes(content)
    (tmp_path / "journal.json").write_bytes(content)
    found = status.read(tmp_path)
    assert (found.running, found.state) == (None, None)
    damaged = "state    unknown: journal.json is damaged; a start of the agent recovers what it can"
    assert status.lines(found) == ["agent    not running", damaged]
    (tmp_path / "journal.json").unlink()
    assert status.lines(status.read(tmp_path))[1] == "state    nothing was asked of this state folder yet"


def test_the_commands_print_what_is_found_and_say_it_by_their_exit_status(tmp_path: Path) -> None:
    write_settings(tmp_path)
    runner, config = CliRunner(), ["--config", str(tmp_path / "agent.toml")]
    said = runner.invoke(app, ["status", *config, "--json"])
    assert (said.exit_code, json.loads(said.stdout)["running"]) == (1, None)
    said = runner.invoke(app, ["doctor", *config, "--environments", str(tmp_path / "opt"), "--json"])
    assert (said.exit_code, json.loads(said.stdout)["identity"]["level"]) == (1, "failed")
    said = runner.invoke(app, ["doctor", *config, "--environments", str(tmp_path / "opt")])
    assert "→ make one with edgefleet enroll" in said.stdout


def test_a_disk_with_little_room_is_a_warning(home: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.enroll(tmp_path / "identity", port=free_port())
    write_settings(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=5 * 2**20))
    finding = examine(subject(tmp_path))["state"]
    assert (finding.level, finding.mend) == (Level.WARNING, "free some space there")


def test_what_is_said_to_stay_free_is_what_an_installation_leaves(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    for total, left_mib in ((2**40, device.agent.profile.storage.free_floor_mib), (2**30, 32)):
        monkeypatch.setattr(
            shutil, "disk_usage", lambda _path, total=total: usage._replace(free=5 * 2**20, total=total)
        )
        assert f"; installs leave {left_mib:.0f} MiB free" in examine(subject(tmp_path))["state"].text
    install = device.agent._installer._make(DESIRED, False, None)
    assert install._means.floor_mib == device.agent.profile.storage.free_floor_mib == 1024
    install.close()
