"""Shared fixtures: the digits model and its data, and one package of it that all tests look at."""

from __future__ import annotations

import numpy as np
import pytest

from converters import recipe_models
from converters.packaged import Packaged
from converters.recipe_runs import Made
from edgefleet_converters.packaging import Request, package
from edgefleet_converters.progress import Event
from edgefleet_demo import digits
from edgefleet_device_profiles import catalogue


@pytest.fixture(scope="session")
def digits_data() -> digits.Digits:
    return digits.load()


@pytest.fixture(scope="session")
def packaged(tmp_path_factory: pytest.TempPathFactory, digits_data: digits.Digits) -> Packaged:
    folder = tmp_path_factory.mktemp("packaged")
    np.savez(folder / "cal.npz", x=digits_data.train_x[:300])
    np.savez(folder / "eval.npz", x=digits_data.heldout_x, y=digits_data.heldout_y)
    request = Request(
        model=str(digits.model_path()),
        profiles=(catalogue.load("raspberry-pi-5"), catalogue.load("intel-nuc")),
        calibration=str(folder / "cal.npz"),
        evaluation=str(folder / "eval.npz"),
        name="digits",
        version="1.0.0",
        release=1,
        folder=folder / "package",
    )
    events: list[Event] = []
    return Packaged(request, package(request, events.append), events)


@pytest.fixture(name="transformer", scope="session")
def _transformer(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("transformer"), recipe_models.transformer())


@pytest.fixture(name="convolutions", scope="session")
def _convolutions(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("convolutions"), recipe_models.convolutions())
