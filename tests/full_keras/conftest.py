"""The keras environment of the product itself, made once, and small models made in it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from edgefleet_converters.environments import CACHE_VARIABLE, ENVIRONMENTS, prepare

_REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session", autouse=True)
def _cache() -> None:
    """Under `build`, and not in the home of whoever runs the tests."""
    os.environ.setdefault(CACHE_VARIABLE, str(_REPOSITORY / "build" / "cache"))


@pytest.fixture(scope="session")
def keras_models(_cache: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what `make_models.py` makes."""
    folder = tmp_path_factory.mktemp("keras")
    python = prepare(ENVIRONMENTS["keras"], lambda _event: None)
    script = Path(__file__).parent / "make_models.py"
    subprocess.run([python, "-s", script, folder], check=True, capture_output=True, text=True)
    return folder
