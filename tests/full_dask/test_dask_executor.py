"""Packaging jobs on Dask: any `concurrent.futures.Executor` will do, and this is one of other processes' own.

Runs in the environment of constraints/dask.txt.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from distributed import Client, LocalCluster
from numpy.typing import NDArray

from converters import executor_jobs
from edgefleet.package.manifest import TensorSpec
from edgefleet_converters.artefact import Artefact
from edgefleet_converters.cache import Cache
from edgefleet_converters.convert import ConvertJob
from edgefleet_converters.jobs import run_conversion, run_inference
from edgefleet_converters.progress import Event, Stage, local_executor, run_jobs
from edgefleet_converters.score.infer import InferJob
from edgefleet_converters.score.metrics import Measured
from edgefleet_demo import digits
from edgefleet_device_profiles.profile import Precision, Runtime

PRECISIONS = (Precision.INT8, Precision.FP32)


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
        client.get_executor() as found,
    ):
        yield found


def test_jobs_run_in_other_processes_and_keep_their_order(executor: Executor) -> None:
    events: list[Event] = []
    jobs = {value: partial(executor_jobs.square, value) for value in (5, 3, 4)}
    assert list(run_jobs(jobs, Stage.CONVERT, events.append, str, executor).items()) == [(5, 25), (3, 9), (4, 16)]
    assert [event.done for event in events] == [0, 1, 2, 3]
    process = run_jobs({0: partial(executor_jobs.process_of, 0)}, Stage.CONVERT, events.append, str, executor)
    assert process[0] != os.getpid()


def test_the_first_exception_comes_back_as_it_is(executor: Executor) -> None:
    jobs = {1: partial(executor_jobs.refuse, 1), 2: partial(executor_jobs.square, 2)}
    with pytest.raises(ValueError, match="no 1"):
        run_jobs(jobs, Stage.CONVERT, lambda _event: None, str, executor)


def test_a_crashed_converter_is_one_answer(executor: Executor) -> None:
    jobs = {1: partial(executor_jobs.crash_in_child, 1), 2: partial(str, 2)}
    found = run_jobs(jobs, Stage.CONVERT, lambda _event: None, str, executor)
    assert found == {1: "it was killed by SIGKILL", 2: "2"}


def _images(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(count).random((count, 1, 1, 8, 8), np.float32)


def _conversions(folder: Path, executor: Executor, cache: Cache | None) -> dict[Precision, Artefact | str]:
    folder.mkdir()
    np.savez(folder / "calibration.npz", image=_images(64))
    source = Artefact(
        files=(digits.model_path(),),
        inputs=(TensorSpec(name="image", dtype="float32", shape=(1, 1, 8, 8)),),
        outputs=(TensorSpec(name="logits", dtype="float32", shape=(1, 10)),),
    )
    jobs = {
        precision: partial(
            run_conversion,
            ConvertJob(
                runtime=Runtime.ONNXRUNTIME,
                precision=precision,
                source=source,
                calibration=folder / "calibration.npz" if precision is Precision.INT8 else None,
                folder=folder / precision,
            ),
            cache,
        )
        for precision in PRECISIONS
    }
    return run_jobs(jobs, Stage.CONVERT, lambda _event: None, str, executor)


def test_conversions_there_and_here_give_the_same_files_and_outputs(executor: Executor, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    there = _conversions(tmp_path / "there", executor, cache)
    with local_executor(2) as threads:
        here = _conversions(tmp_path / "here", threads, None)
    np.savez(tmp_path / "samples.npz", image=_images(20))
    for precision in PRECISIONS:
        made, expected = _made(there[precision]), _made(here[precision])
        assert made.files[0].read_bytes() == expected.files[0].read_bytes()
    jobs = {
        precision: partial(_outputs, _made(there[precision]), tmp_path, precision, cache) for precision in PRECISIONS
    }
    found = run_jobs(jobs, Stage.SCORE, lambda _event: None, str, executor)
    for precision, measured in found.items():
        assert measured.outputs["logits"].shape == (20, 1, 10), precision


def _made(found: Artefact | str) -> Artefact:
    assert isinstance(found, Artefact), found
    return found


def _outputs(artefact: Artefact, folder: Path, precision: Precision, cache: Cache) -> Measured:
    job = InferJob(
        runtime=Runtime.ONNXRUNTIME,
        artefact=artefact,
        samples=folder / "samples.npz",
        repeats=4,
        outputs=folder / f"{precision}.npz",
    )
    measured = run_inference(job, cache)
    assert isinstance(measured, Measured), measured
    return measured
