"""The journal and the durable write below it: the old file or the new one, never half of one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from edgefleet import durable
from edgefleet.errors import StorageError
from edgefleet.protocol.messages import Progress, State
from edgefleet_agent.journal import Journal
from sdk.wire_examples import ACTIVE, DESIRED


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_new_journal_is_on_disk_at_once(tmp_path: Path) -> None:
    entry = Journal(tmp_path).entry
    assert (entry.state, entry.connection, entry.desired, entry.active) == (State.IDLE, 0, None, None)
    assert Journal(tmp_path).entry == entry
    assert entry.enrolment_id


def test_two_devices_have_different_enrolments(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert Journal(tmp_path / "a").entry.enrolment_id != Journal(tmp_path / "b").entry.enrolment_id


def test_everything_survives_a_restart(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.record(
        connection=7,
        state=State.DOWNLOADING,
        reason="größer",
        desired=DESIRED,
        active=ACTIVE,
        progress=Progress(verified_bytes=1, total_bytes=2),
        pulled_bytes=3,
        bad_blocks=4,
        elapsed_s=5.5,
    )
    again = Journal(tmp_path)
    assert again.entry == journal.entry
    assert again.entry.desired == DESIRED
    assert again.damage is None
    again.record(state=State.COMMITTED)
    third = Journal(tmp_path).entry
    assert (third.state, third.connection, third.active) == (State.COMMITTED, 7, ACTIVE)


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[]",
        b"{}",
        b'{"enrolment_id": 1}',
        b'{"enrolment_id":"e","state":"gone"}',
        b"\0" * 4096,
    ],
)
def test_a_damaged_journal_is_set_aside_and_said_and_the_enrolment_stays(tmp_path: Path, damage: bytes) -> None:
    before = Journal(tmp_path).entry
    (tmp_path / "journal.json").write_bytes(damage)
    journal = Journal(tmp_path)
    assert journal.damage is not None
    assert "journal.damaged" in journal.damage
    assert (tmp_path / "journal.damaged").read_bytes() == damage
    assert journal.entry.state is State.IDLE
    # Who it is stands in a file of its own: the server need not be told that a device was replaced.
    assert journal.entry.enrolment_id == before.enrolment_id
    again = Journal(tmp_path)
    assert (again.entry, again.damage) == (journal.entry, None)


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe"])
def test_an_enrolment_that_cannot_be_read_is_made_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "enrolment-id").write_bytes(content)
    made = Journal(tmp_path).entry.enrolment_id
    assert len(made) == 16
    assert Journal(tmp_path).entry.enrolment_id == made


def test_the_enrolment_is_made_once_and_never_written_again(tmp_path: Path) -> None:
    Journal(tmp_path).record(state=State.COMMITTED)
    path = tmp_path / "enrolment-id"
    inode, text = path.stat().st_ino, path.read_text()
    Journal(tmp_path).record(state=State.FAILED)
    assert (path.stat().st_ino, path.read_text()) == (inode, text)


def test_a_half_written_temporary_file_means_nothing(tmp_path: Path) -> None:
    entry = Journal(tmp_path).entry
    (tmp_path / ".journal.json.123.tmp").write_bytes(b'{"enrol')
    assert Journal(tmp_path).entry == entry


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    journal = Journal(tmp_path)
    journal.record(state=State.COMMITTED)
    before = (tmp_path / "journal.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync", full) if where == "fsync" else (Path, "replace", full)))
        with pytest.raises(StorageError, match=r"writing the journal .*No space left"):
            journal.record(state=State.FAILED)
    assert journal.entry.state is State.COMMITTED
    assert (tmp_path / "journal.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["enrolment-id", "journal.json"]
    journal.record(state=State.FAILED)
    assert Journal(tmp_path).entry.state is State.FAILED


def test_a_record_that_fails_changes_nothing_and_leaves_nothing_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(durable, "write_file", full)
        with pytest.raises(StorageError):
            journal.record(state=State.FAILED)
    written = count_writes(monkeypatch)
    journal.retry()
    assert written == []
    assert Journal(tmp_path).entry.state is State.IDLE


def count_writes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    written: list[Path] = []
    real = durable.write_file

    def write(path: Path, content: bytes) -> None:
        written.append(path)
        real(path, content)

    monkeypatch.setattr(durable, "write_file", write)
    return written


def test_a_note_holds_in_memory_while_the_disk_refuses_and_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outcome that cannot be written is still reported: a full disk must not turn it into a crash."""
    journal = Journal(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(durable, "write_file", full)
        journal.note(state=State.FAILED, reason="insufficient_storage")
        journal.retry()
        journal.note(pulled_bytes=7)
        assert (journal.entry.state, journal.entry.pulled_bytes) == (State.FAILED, 7)
        assert Journal(tmp_path).entry.state is State.IDLE
    written = count_writes(monkeypatch)
    journal.retry()
    journal.retry()
    assert len(written) == 1
    assert Journal(tmp_path).entry == journal.entry
    assert journal.entry.reason == "insufficient_storage"


def test_a_note_is_on_disk_at_once_when_the_disk_takes_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.note(state=State.NO_MODEL)
    assert Journal(tmp_path).entry.state is State.NO_MODEL


def test_a_record_after_a_note_that_could_not_be_written_writes_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(durable, "write_file", full)
        journal.note(connection=5)
    journal.record(state=State.FAILED)
    found = Journal(tmp_path).entry
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
