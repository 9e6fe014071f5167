"""Shared fixtures: the digits model and its data, and one package of it that all tests look at."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from converters import recipe_models
from converters.packaged import Packaged
from converters.recipe_runs import Made
from edgefleet_converters.cache import user_cache
from edgefleet_converters.packaging import Request, package
from edgefleet_converters.progress import Event
from edgefleet_demo import digits, scene
from edgefleet_device_profiles import catalogue


@pytest.fixture(scope="session")
def digits_data() -> digits.Digits:
    return digits.load()


@pytest.fixture(scope="session")
def packaged(tmp_path_factory: pytest.TempPathFactory, run_folder: Path) -> Packaged:
    """Of the demo's model and data, in the cache of this run: the first worker makes it, and the others find it."""
    folder = tmp_path_factory.mktemp("packaged")
    files = scene.write_data(folder / "data")
    request = Request(
        model=str(digits.model_path()),
        profiles=(catalogue.load("raspberry-pi-5"), catalogue.load("intel-nuc")),
        calibration=str(files.calibration),
        evaluation=str(files.heldout),
        name="digits",
        version="1.0.0",
        release=1,
        folder=folder / "package",
    )
    events: list[Event] = []
    with (run_folder / "packaged.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return Packaged(request, package(request, events.append, cache=user_cache()), events)


@pytest.fixture(name="transformer", scope="session")
def _transformer(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("transformer"), recipe_models.transformer())


@pytest.fixture(name="convolutions", scope="session")
def _convolutions(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("convolutions"), recipe_models.convolutions())
