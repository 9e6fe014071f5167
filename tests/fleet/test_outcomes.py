"""What is remembered: failed generations, full disks, names that are taken, telemetry through crashes."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from edgefleet.server import control
from fleet_lab import Lab, LabOpener, write_lab_package
from patience import PATIENCE_S

TMPFS_MIB = 8


def event_kinds(lab: Lab, device: str) -> list[str]:
    return [kind for kind, _ in lab.store.events(device)]


def test_a_failed_generation_is_never_tried_again(lab: Lab, tmp_path: Path) -> None:
    agent = lab.start_agent("pi-1")
    lab.wait_for_devices("pi-1")
    good = lab.deploy(write_lab_package(tmp_path / "good", seed=1))
    assert lab.wait_for_outcomes(good) == {"pi-1": "committed"}
    running = lab.device("pi-1").digest
    bad = lab.deploy(write_lab_package(tmp_path / "bad", seed=2, version="2.0.0", release=2, wrong=True))
    assert lab.wait_for_outcomes(bad) == {"pi-1": "failed"}
    assert "golden output 'logits' differs" in str(lab.device("pi-1").reason)
    sent = lab.settled_sent_bytes("pi-1")

    # Whatever restarts, in whichever order, the desired state comes again and is only reported again.
    agent.kill()
    agent = lab.start_agent("pi-1")
    _next_window(lab, str(running))
    lab.broker_process.kill()
    lab.broker_process = lab.broker.start(lab.group)
    _next_window(lab, str(running))
    lab.server.kill()
    lab.start_server()
    _next_window(lab, str(running))
    row = lab.device("pi-1")
    assert (str(row.state), row.generation, row.digest) == ("failed", bad["pi-1"], running)
    assert lab.settled_sent_bytes("pi-1") == sent
    assert event_kinds(lab, "pi-1").count("install_failed") == 1

    # A newer generation is a new decision.
    again = lab.deploy(write_lab_package(tmp_path / "third", seed=3, version="3.0.0", release=3))
    assert lab.wait_for_outcomes(again) == {"pi-1": "committed"}


def _next_window(lab: Lab, digest: str) -> None:
    """Wait for a telemetry window that is not in the store yet: the agent runs and the line stands."""
    before = lab.store.telemetry("pi-1", digest).windows
    lab.wait(lambda: lab.store.telemetry("pi-1", digest).windows > before, "a new window")


def test_a_first_install_that_fails_leaves_no_model(lab: Lab, tmp_path: Path) -> None:
    agent = lab.start_agent("pi-1")
    lab.wait_for_devices("pi-1")
    generations = lab.deploy(write_lab_package(tmp_path / "bad", wrong=True))
    assert lab.wait_for_outcomes(generations) == {"pi-1": "no_model"}
    sent = lab.settled_sent_bytes("pi-1")
    agent.kill()
    agent = lab.start_agent("pi-1")
    lab.wait(lambda: "connected to the broker" in agent.log_file.read_text().split("install_failed")[-1], "reconnect")
    lab.wait(lambda: lab.device("pi-1").online, "online")
    assert lab.settled_sent_bytes("pi-1") == sent
    assert event_kinds(lab, "pi-1").count("install_failed") == 1


@pytest.fixture
def small_disk(tmp_path: Path, mount_disk: Callable[[Path, int], Path]) -> Path:
    return mount_disk(tmp_path / "disk", TMPFS_MIB)


def test_too_small_a_disk_is_said_before_the_first_byte(lab: Lab, small_disk: Path, tmp_path: Path) -> None:
    lab.start_agent("pi-1", state_folder=small_disk / "state")
    lab.wait_for_devices("pi-1")
    small = lab.deploy(write_lab_package(tmp_path / "small", seed=1))
    assert lab.wait_for_outcomes(small) == {"pi-1": "committed"}
    running, sent = lab.device("pi-1").digest, lab.settled_sent_bytes("pi-1")
    large = lab.deploy(write_lab_package(tmp_path / "large", hidden=32_768, version="2.0.0", release=2))
    assert lab.wait_for_outcomes(large) == {"pi-1": "failed"}
    row = lab.device("pi-1")
    assert str(row.reason).startswith("insufficient_storage: ")
    assert " bytes are needed, " in str(row.reason)
    assert (row.digest, lab.settled_sent_bytes("pi-1")) == (running, sent)
    _next_window(lab, str(running))


def test_a_disk_that_fills_while_pulling_keeps_the_old_variant(
    lab_opener: LabOpener, small_disk: Path, tmp_path: Path
) -> None:
    lab = lab_opener(rate_limit_mb_per_s=2.0)
    lab.start_agent("pi-1", state_folder=small_disk / "state")
    lab.wait_for_devices("pi-1")
    small = lab.deploy(write_lab_package(tmp_path / "small", seed=1))
    assert lab.wait_for_outcomes(small) == {"pi-1": "committed"}
    running = str(lab.device("pi-1").digest)
    large = lab.deploy(write_lab_package(tmp_path / "large", hidden=16_384, version="2.0.0", release=2))
    lab.wait(lambda: lab.device("pi-1").generation == large["pi-1"] and _has_blocks(lab), "the first blocks")
    _fill(small_disk / "filler")
    assert lab.wait_for_outcomes(large) == {"pi-1": "failed"}
    assert "insufficient_storage" in str(lab.device("pi-1").reason)
    assert lab.device("pi-1").digest == running
    (small_disk / "filler").unlink()
    _next_window(lab, running)


def _fill(path: Path) -> None:
    """Write until the disk refuses."""
    with suppress(OSError), path.open("wb", buffering=0) as filler:
        while filler.write(b"\0" * 65536):
            pass


def _has_blocks(lab: Lab) -> bool:
    row = lab.device("pi-1")
    return str(row.state) == "downloading" and (row.verified_bytes or 0) > 0


def test_a_copied_identity_is_said_and_what_runs_runs_on(lab: Lab, tmp_path: Path) -> None:
    first = lab.start_agent("pi-1")
    lab.wait_for_devices("pi-1")
    generations = lab.deploy(write_lab_package(tmp_path / "p"))
    assert lab.wait_for_outcomes(generations) == {"pi-1": "committed"}
    second = lab.start_agent("pi-1", label="copy")
    lab.wait(lambda: "taken_over" in event_kinds(lab, "pi-1"), "the event")
    text = first.log_file.read_text() + second.log_file.read_text()
    assert "another client may be using the same name" in text
    second.stop()
    lab.wait(lambda: lab.device("pi-1").online, "the first agent online again")
    _next_window(lab, str(lab.device("pi-1").digest))


def test_a_second_agent_on_the_same_folder_is_refused(lab: Lab) -> None:
    lab.start_agent("pi-1")
    lab.wait_for_devices("pi-1")
    second = lab.start_agent("pi-1", label="again", state_folder=lab.state_folder("pi-1"))
    # `label` gives it a log of its own; the state folder is the first agent's.
    assert second.wait(PATIENCE_S) == 7
    assert "another agent is running on the state folder" in second.last_line()


def test_telemetry_survives_a_dead_server_once_each(lab: Lab, tmp_path: Path) -> None:
    lab.start_agent("pi-1")
    lab.wait_for_devices("pi-1")
    assert lab.wait_for_outcomes(lab.deploy(write_lab_package(tmp_path / "p"))) == {"pi-1": "committed"}
    digest = str(lab.device("pi-1").digest)
    _next_window(lab, digest)
    lab.server.kill()
    spool = lab.state_folder("pi-1") / "spool.sqlite"
    lab.wait(lambda: _spooled(spool) >= 4, "windows waiting on the device")
    lab.start_server()
    lab.wait(lambda: _spooled(spool) <= 1, "the spool to be acknowledged")
    assert _sequence_has_no_gap(lab)


def _spooled(path: Path) -> int:
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
        return int(db.execute("SELECT count(*) FROM messages").fetchone()[0])


def _sequence_has_no_gap(lab: Lab) -> bool:
    with sqlite3.connect(lab.data / "store.sqlite") as db:
        rows = db.execute("SELECT seq FROM telemetry UNION ALL SELECT seq FROM events ORDER BY seq").fetchall()
    numbers = [seq for (seq,) in rows]
    return numbers == list(range(1, len(numbers) + 1))


def test_a_restored_backup_never_goes_backwards() -> None:
    assert control.next_generation(1_700_000_000, 1_600_000_000.0) == 1_700_000_001
    assert control.next_generation(5, 1_700_000_000.5) == 1_700_000_000
