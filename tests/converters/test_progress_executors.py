"""Jobs on threads and on other processes: order, the first exception, crashes, and what an interrupt leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import pytest

from converters import executor_jobs, interrupted_run
from edgefleet_converters.progress import Event, Stage, local_executor, run_jobs
from patience import PATIENCE_S

Value = TypeVar("Value")


@pytest.fixture(scope="module", params=["threads", "processes"])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    if request.param == "threads":
        pool: Executor = ThreadPoolExecutor(2)
    else:
        pool = ProcessPoolExecutor(2, mp_context=get_context("spawn"))
    with pool:
        yield pool


def _ignore(_event: Event) -> None:
    pass


def test_results_come_in_the_order_of_the_jobs(executor: Executor) -> None:
    events: list[Event] = []
    jobs = {f"job {value}": partial(executor_jobs.square, value) for value in (5, 3, 4)}
    found = run_jobs(jobs, Stage.CONVERT, events.append, str, executor)
    assert list(found.items()) == [("job 5", 25), ("job 3", 9), ("job 4", 16)]
    assert [event.done for event in events] == [0, 1, 2, 3]
    assert {event.total for event in events} == {3}


def test_the_executor_stays_open(executor: Executor) -> None:
    for _ in range(2):
        assert run_jobs({0: partial(executor_jobs.square, 2)}, Stage.SCORE, _ignore, str, executor) == {0: 4}


def test_an_exception_is_raised_as_it_is(executor: Executor) -> None:
    jobs = {1: partial(executor_jobs.refuse, 1), 2: partial(executor_jobs.square, 2)}
    with pytest.raises(ValueError, match="no 1"):
        run_jobs(jobs, Stage.CONVERT, _ignore, str, executor)


def test_a_crashed_child_is_the_answer_of_one_job(executor: Executor) -> None:
    jobs = {1: partial(executor_jobs.crash_in_child, 1), 2: partial(str, 2)}
    found = run_jobs(jobs, Stage.CONVERT, _ignore, str, executor)
    assert found == {1: "it was killed by SIGKILL", 2: "2"}


def test_no_jobs_are_no_results(executor: Executor) -> None:
    assert run_jobs({}, Stage.CONVERT, _ignore, str, executor) == {}


def test_processes_are_really_used() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        found = run_jobs({0: partial(executor_jobs.process_of, 0)}, Stage.CONVERT, _ignore, str, pool)
    assert found[0] != os.getpid()


class _Watched(ThreadPoolExecutor):
    """Two threads, and every future in the order of its submission."""

    def __init__(self) -> None:
        super().__init__(2)
        self.futures: list[Future[Any]] = []

    def submit(self, job: Callable[..., Value], /, *args: Any, **options: Any) -> Future[Value]:
        future = super().submit(job, *args, **options)
        self.futures.append(future)
        return future


def test_after_an_exception_running_jobs_end_and_waiting_ones_never_start() -> None:
    release, started = threading.Event(), threading.Event()
    ended: list[int] = []

    def slow(number: int) -> None:
        started.set()
        release.wait(PATIENCE_S)
        ended.append(number)

    def fail(_number: int) -> None:
        started.wait(PATIENCE_S)
        raise ValueError("first")

    with _Watched() as executor:
        jobs = {number: partial(fail if number == 1 else slow, number) for number in range(8)}
        releaser = threading.Thread(target=_release_when_cancelled, args=(executor, len(jobs), release))
        releaser.start()
        with pytest.raises(ValueError, match="first"):
            run_jobs(jobs, Stage.CONVERT, _ignore, str, executor)
        assert 0 in ended
    assert set(ended) <= {0, 2}


def _release_when_cancelled(executor: _Watched, count: int, release: threading.Event) -> None:
    """The failed job's thread may have taken job 2 before anybody looked; the others wait behind it."""
    _until(lambda: len(executor.futures) == count and all(future.cancelled() for future in executor.futures[3:]))
    release.set()


def test_as_many_jobs_run_at_once_as_were_asked_for() -> None:
    lock = threading.Lock()
    running, most = 0, 0
    barrier = threading.Barrier(3)

    def job() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        barrier.wait(PATIENCE_S)
        with lock:
            running -= 1

    with local_executor(3) as executor:
        run_jobs(dict.fromkeys(range(6), job), Stage.CONVERT, _ignore, str, executor)
    assert most == 3


def test_ctrl_c_kills_children_and_all_that_they_started(tmp_path: Path) -> None:
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", interrupted_run.__name__, str(tmp_path)]
    with subprocess.Popen(command, env=variables, start_new_session=True) as run:
        try:
            _until(lambda: len(_numbers(tmp_path)) == 4)
            run.send_signal(signal.SIGINT)
            assert run.wait(PATIENCE_S) == 130
        finally:
            run.kill()
    _until(lambda: not any(_is_alive(pid) for pid in _numbers(tmp_path)))
    # Two jobs ran, two never began.
    assert len(_numbers(tmp_path)) == 4


def _numbers(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if path.suffix == ""]


def _is_alive(pid: int) -> bool:
    try:
        # A killed grandchild may wait for whoever adopted it to take note.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
