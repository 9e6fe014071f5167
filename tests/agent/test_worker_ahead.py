"""The first worker's process, begun before its agent is loaded: taken over once, by a worker that it suits."""

from __future__ import annotations

import json
import os
import select
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.worker_lab import Lab, next_message
from edgefleet.protocol.messages import ActiveVariant
from edgefleet_agent import supervise, worker_ahead
from edgefleet_agent.inference import Inference
from edgefleet_agent.journal import Enrolment, Entry, Journal
from edgefleet_agent.kept_worker import KeptWorker
from edgefleet_agent.worker_ahead import Ahead
from edgefleet_agent.worker_process import WorkerProcess
from patience import PATIENCE_S
from sdk.wire_examples import ACTIVE

ENROLMENT = Enrolment(fleet="f", device="d", enrolment_id="0" * 8)
Begin = Callable[[str], tuple[Lab, WorkerProcess]]


@pytest.fixture(name="begin")
def _begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    """A lab whose inference has a process ahead, and that process."""
    labs: list[Lab] = []

    def begin(runtime: str) -> tuple[Lab, WorkerProcess]:
        lab = Lab(tmp_path, monkeypatch, [3.0])
        process, around = WorkerProcess(runtime), lab.inference._around
        lab.inference = Inference(lab.settings, lab.slots, around.windows, lab, lab.clock, Ahead(process))
        labs.append(lab)
        return lab, process

    yield begin
    for lab in labs:
        lab.inference.stop()


def serving_pid(lab: Lab) -> int:
    serving = lab.inference._serving
    assert isinstance(serving, KeptWorker)
    assert serving._worker is not None
    return serving._worker.pid


def test_the_first_worker_takes_it_over_and_the_next_starts_its_own(begin: Begin) -> None:
    lab, process = begin("litert")
    lab.started()
    assert serving_pid(lab) == process.pid
    assert lab.answered(1, 2) == (lab.variants[0].digest, [3, 6, 0, 0])
    process.kill()
    lab.until(lambda: not lab.inference.ready)
    assert serving_pid(lab.again()) != process.pid


def test_a_slot_that_is_damaged_is_not_opened_in_it(begin: Begin) -> None:
    lab, process = begin("litert")
    slot = lab.slots.path(lab.variants[0].digest)
    (slot / lab.slots.check(lab.variants[0].digest).model_file).write_text("4.0")
    lab.until(lambda: lab.noted)
    assert [kind for kind, _ in lab.noted] == ["slot_damaged"]
    assert process.exit_code is None
    lab.active = None
    lab.turn(0)
    assert process.exit_code == -9


@pytest.mark.parametrize("runtime", ["onnxruntime", "none-such"])
def test_one_with_another_runtime_is_ended(begin: Begin, runtime: str) -> None:
    lab, process = begin(runtime)
    lab.started()
    assert serving_pid(lab) != process.pid
    assert process.exit_code is not None


def test_one_that_ended_meanwhile_is_nobodys_failure(begin: Begin) -> None:
    lab, process = begin("litert")
    process.kill()
    process.wait()
    lab.started()
    assert serving_pid(lab) != process.pid
    assert lab.noted == []


def test_it_loads_its_runtime_before_there_is_a_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = tmp_path / "said"
    os.mkfifo(said)
    (tmp_path / "ai_edge_litert").mkdir()
    (tmp_path / "ai_edge_litert" / "__init__.py").touch()
    (tmp_path / "ai_edge_litert" / "interpreter.py").write_text(
        f"Interpreter = None\nopen({str(said)!r}, 'w').write('loaded')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = WorkerProcess("litert")
    try:
        with os.fdopen(os.open(said, os.O_RDONLY | os.O_NONBLOCK)) as loaded:
            assert select.select([loaded], [], [], PATIENCE_S)[0]
            assert loaded.read() == "loaded"
    finally:
        process.kill()
        process.stop()


def test_a_runtime_that_is_not_here_is_told_when_the_plan_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "openvino.py").write_text("raise ModuleNotFoundError('No module named openvino', name='openvino')")
    lab = Lab(tmp_path, monkeypatch, [3.0])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    digest = lab.variants[0].digest
    spec = lab.slots.check(digest)
    worker = supervise.inference(lab.slots.path(digest), spec, digest, lab.settings, WorkerProcess("openvino"))
    try:
        message = next_message(worker)
        assert message["kind"] == "failed"
        assert "edgefleet[agent,openvino]" in message["reason"]
    finally:
        worker.stop()


# Whether one is begun ---------------------------------------------------------------------------------


@pytest.fixture(name="begun")
def _begun(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The runtimes of the processes that would have been started."""
    runtimes: list[object] = []

    def start(runtime: object) -> None:
        if not isinstance(runtime, str):
            raise TypeError
        runtimes.append(runtime)

    monkeypatch.setattr(worker_ahead, "WorkerProcess", start)
    return runtimes


def state_folder(folder: Path) -> Path:
    (folder / "agent.toml").write_text('profile = "p"\nstate_folder = "state"\n')
    (folder / "state").mkdir()
    return folder / "state"


@pytest.mark.parametrize(("active", "expected"), [(ACTIVE, [ACTIVE.runtime]), (None, [])])
def test_it_is_begun_for_the_variant_of_the_journal(
    tmp_path: Path, begun: list[object], active: ActiveVariant | None, expected: list[str]
) -> None:
    Journal(state_folder(tmp_path), Entry(enrolment=ENROLMENT, active=active))
    worker_ahead.begin(tmp_path / "agent.toml")
    assert begun == expected


@pytest.mark.parametrize("journal", [b"", b"\xff", b"[]", b"7", b"{}", json.dumps({"active": {"runtime": 7}}).encode()])
def test_none_is_begun_for_a_journal_that_cannot_be_read(tmp_path: Path, begun: list[object], journal: bytes) -> None:
    (state_folder(tmp_path) / worker_ahead.JOURNAL_FILE).write_bytes(journal)
    worker_ahead.begin(tmp_path / "agent.toml")
    assert begun == []


@pytest.mark.parametrize("settings", [None, "profile", "profile = 'p'", "state_folder = 1", "state_folder = 'none'"])
def test_none_is_begun_by_settings_that_do_not_lead_to_one(
    tmp_path: Path, begun: list[object], settings: str | None
) -> None:
    if settings is not None:
        (tmp_path / "agent.toml").write_text(settings)
    worker_ahead.begin(tmp_path / "agent.toml")
    assert begun == []
