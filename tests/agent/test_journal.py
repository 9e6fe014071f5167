"""The journal and the durable write below it: the old file or the new one, never half of one."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from edgefleet import durable
from edgefleet.errors import StorageError
from edgefleet.protocol.messages import ActiveVariant, Progress, State
from edgefleet.protocol.signed import Action, Deployment, Desired, PackageVersion
from edgefleet_agent import reserved_file
from edgefleet_agent.journal import Enrolment, Entry, Journal, Refusal

FRESH = Entry(enrolment=Enrolment(fleet="home", device="pi-kitchen", enrolment_id="e1"))
DIGEST = "sha256:" + "1" * 64
ACTIVE = ActiveVariant(digest=DIGEST, index_digest=DIGEST, name="v", runtime="litert", precision="int8")
PACKAGE = PackageVersion(package="digits", version="1.0.0", release=1, index_digest=DIGEST)
DEPLOYMENT = Deployment(deployment_id="d", fleet="home", serial=1, target=PACKAGE, selector="all", expires=2e9)
DESIRED = Desired(
    fleet="home", device="pi-kitchen", enrolment_id="e1", generation=7, action=Action.INSTALL, valid_until=2e9,
    install_timeout_s=60.0, deployment=DEPLOYMENT,
)  # fmt: skip


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_new_journal_is_on_disk_at_once(tmp_path: Path) -> None:
    entry = Journal(tmp_path, FRESH).entry
    assert (entry.state, entry.connection, entry.desired, entry.active) == (State.IDLE, 0, None, None)
    other = FRESH.model_copy(update={"connection": 9})
    assert Journal(tmp_path, other).entry == entry == FRESH


def test_everything_survives_a_restart(tmp_path: Path) -> None:
    journal = Journal(tmp_path, FRESH)
    journal.record(
        connection=7,
        state=State.DOWNLOADING,
        reason="größer",
        desired=DESIRED,
        deployment=DEPLOYMENT,
        active=ACTIVE,
        running=PACKAGE,
        refusal=Refusal(generation=8, reason="too old"),
        commands=("c1",),
        progress=Progress(verified_bytes=1, total_bytes=2),
        pulled_bytes=3,
        reused_bytes=6,
        bad_blocks=4,
        elapsed_s=5.5,
    )
    again = Journal(tmp_path, FRESH)
    assert again.entry == journal.entry
    assert again.entry.desired == DESIRED
    assert again.damage is None
    again.record(state=State.COMMITTED)
    third = Journal(tmp_path, FRESH).entry
    assert (third.state, third.connection, third.active) == (State.COMMITTED, 7, ACTIVE)


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[]",
        b"{}",
        b'{"enrolment": 1}',
        b'{"enrolment":{"fleet":"home","device":"pi-kitchen","enrolment_id":"e1"},"state":"gone"}',
        b"\0" * 4096,
    ],
)
def test_a_damaged_journal_is_set_aside_and_said(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "journal.json").write_bytes(damage)
    journal = Journal(tmp_path, FRESH)
    assert journal.damage is not None
    assert "journal.damaged" in journal.damage
    assert (tmp_path / "journal.damaged").read_bytes() == damage
    assert journal.entry == FRESH
    again = Journal(tmp_path, FRESH)
    assert (again.entry, again.damage) == (journal.entry, None)


@pytest.mark.parametrize(("said", "flipped"), [(b'"connection":7', b'"connection":3'), (b"1111", b"1110")])
def test_a_flipped_bit_that_makes_sense_is_noticed(tmp_path: Path, said: bytes, flipped: bytes) -> None:
    """A generation that is too high would have the device wait for a thousand years of deployments."""
    Journal(tmp_path, FRESH).record(connection=7, desired=DESIRED, active=ACTIVE)
    path = tmp_path / "journal.json"
    path.write_bytes(path.read_bytes().replace(said, flipped, 1))
    journal = Journal(tmp_path, FRESH)
    assert (journal.entry, journal.damage is None) == (FRESH, False)


def test_what_only_fills_the_file_up_may_be_damaged(tmp_path: Path) -> None:
    journal = Journal(tmp_path, FRESH)
    path = tmp_path / "journal.json"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    again = Journal(tmp_path, FRESH)
    assert (again.entry, again.damage) == (journal.entry, None)


def test_a_half_written_temporary_file_means_nothing(tmp_path: Path) -> None:
    entry = Journal(tmp_path, FRESH).entry
    (tmp_path / ".journal.json.123.tmp").write_bytes(b'{"enrol')
    assert Journal(tmp_path, FRESH).entry == entry


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    journal = Journal(tmp_path, FRESH)
    journal.record(state=State.COMMITTED)
    before = (tmp_path / "journal.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync", full) if where == "fsync" else (Path, "replace", full)))
        with pytest.raises(StorageError, match=r"writing the journal .*No space left"):
            journal.record(state=State.FAILED)
    assert journal.entry.state is State.COMMITTED
    assert (tmp_path / "journal.json").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} <= {"journal.json", ".journal.json.tmp", ".journal.json.old"}
    journal.record(state=State.FAILED)
    assert Journal(tmp_path, FRESH).entry.state is State.FAILED


def test_a_record_that_fails_changes_nothing_and_leaves_nothing_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path, FRESH)
    with monkeypatch.context() as patch:
        patch.setattr(reserved_file, "replace", full)
        with pytest.raises(StorageError):
            journal.record(state=State.FAILED)
    written = count_writes(monkeypatch)
    journal.retry()
    assert written == []
    assert Journal(tmp_path, FRESH).entry.state is State.IDLE


def count_writes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    written: list[Path] = []
    real = reserved_file.replace

    def write(path: Path, content: bytes) -> None:
        written.append(path)
        real(path, content)

    monkeypatch.setattr(reserved_file, "replace", write)
    return written


def test_a_note_holds_in_memory_while_the_disk_refuses_and_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An outcome that cannot be written is still reported: a full disk must not turn it into a crash."""
    journal = Journal(tmp_path, FRESH)
    with monkeypatch.context() as patch:
        patch.setattr(reserved_file, "replace", full)
        journal.note(state=State.FAILED, reason="insufficient_storage")
        journal.retry()
        journal.note(pulled_bytes=7)
        assert (journal.entry.state, journal.entry.pulled_bytes) == (State.FAILED, 7)
        assert len(caplog.messages) == 1
        assert Journal(tmp_path, FRESH).entry.state is State.IDLE
    written = count_writes(monkeypatch)
    journal.retry()
    journal.retry()
    assert len(written) == 1
    assert Journal(tmp_path, FRESH).entry == journal.entry
    assert journal.entry.reason == "insufficient_storage"


def test_a_note_is_on_disk_at_once_when_the_disk_takes_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path, FRESH)
    journal.note(state=State.NO_MODEL)
    assert Journal(tmp_path, FRESH).entry.state is State.NO_MODEL


def test_a_record_after_a_note_that_could_not_be_written_writes_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path, FRESH)
    with monkeypatch.context() as patch:
        patch.setattr(reserved_file, "replace", full)
        journal.note(connection=5)
    journal.record(state=State.FAILED)
    found = Journal(tmp_path, FRESH).entry
    assert (found.connection, found.state) == (5, State.FAILED)


def test_a_file_is_on_disk_before_it_has_its_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, said = tmp_path / "file", []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink()
        said.append((name == tmp_path, target.exists() and target.read_bytes() == b"new"))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    durable.write_file(target, b"new")
    assert said == [(False, False), (True, True)]


def test_a_disk_without_a_free_byte_takes_the_journal_as_often_as_it_changes(
    tmp_path: Path, mount_disk: Callable[[Path, int], Path]
) -> None:
    """What ran out of room can still be told after a power cut: the place of the journal and its last error is kept."""
    tiny_disk = mount_disk(tmp_path / "disk", 1)
    journal = Journal(tiny_disk, FRESH)
    journal.record(state=State.DOWNLOADING)
    with suppress(OSError), (tiny_disk / "filler").open("wb", buffering=0) as filler:
        while filler.write(b"\0" * 4096):
            pass
    with pytest.raises(OSError, match="No space left"):
        (tiny_disk / "another").write_bytes(b"1" * 4096)
    for number in range(5):
        journal.record(state=State.FAILED, reason="insufficient_storage: " + "x" * number * 1000, desired=DESIRED)
        again = Journal(tiny_disk, FRESH)
        assert (again.entry, again.damage) == (journal.entry, None)


def test_what_a_power_cut_leaves_beside_the_journal_is_no_obstacle(tmp_path: Path) -> None:
    journal = Journal(tmp_path, FRESH)
    for left in (".journal.json.tmp", ".journal.json.old"):
        (tmp_path / left).write_bytes(b"half of")
        journal.record(connection=journal.entry.connection + 1)
        assert Journal(tmp_path, FRESH).entry == journal.entry
    assert {path.name for path in tmp_path.iterdir()} == {"journal.json", ".journal.json.tmp"}


def test_a_file_system_without_second_names_takes_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path, FRESH)
    monkeypatch.setattr(os, "link", full)
    for number in (1, 2, 3):
        journal.record(connection=number)
        assert Journal(tmp_path, FRESH).entry.connection == number


def test_what_does_not_fit_into_the_room_grows_beyond_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path, FRESH)
    for reason in ("long " * 10_000, "short", "long " * 9_000):
        journal.record(reason=reason)
        assert Journal(tmp_path, FRESH).entry.reason == reason
