"""Sources that all tests look at, exported once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgefleet_converters.artefact import Artefact, Form
from edgefleet_converters.convert import ConvertJob, convert
from edgefleet_converters.intake.source import Source
from edgefleet_converters.intake.torch_program import read_torch
from edgefleet_converters.step import Samples, Settings
from edgefleet_device_profiles.profile import Precision, Runtime
from full_torch.torch_models import TOKENS, WORDS

MODELS = Path(__file__).with_name("torch_models.py")


def read(model: str, work: Path, *, trust: bool = False, **shapes: tuple[int, ...]) -> Source:
    """Intake of a model, in a new folder below `work`."""
    folder = work / f"read{len(list(work.iterdir()))}"
    folder.mkdir()
    return read_torch(model, folder, shapes=shapes, dims={}, trust=trust)


def converted(
    source: Source, runtime: Runtime, precision: Precision, samples: Samples, work: Path, **settings: object
) -> Artefact:
    """The torch form through one recipe."""
    folder = work / f"converted{len(list(work.iterdir()))}"
    np.savez(work / "calibration.npz", allow_pickle=False, **samples)
    return convert(
        ConvertJob(
            runtime=runtime,
            precision=precision,
            settings=Settings.model_validate(settings),
            form=Form.TORCH,
            source=source.forms[Form.TORCH],
            calibration=work / "calibration.npz",
            folder=folder,
        )
    )


@pytest.fixture(scope="session")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return read(f"{MODELS}:resnet", tmp_path_factory.mktemp("resnet"))


@pytest.fixture(scope="session")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return read(f"{MODELS}:transformer", tmp_path_factory.mktemp("transformer"))


@pytest.fixture(scope="session")
def images() -> Samples:
    return {"image": np.random.default_rng(0).normal(size=(32, 1, 3, 32, 32)).astype(np.float32)}


@pytest.fixture(scope="session")
def sentences() -> Samples:
    generator = np.random.default_rng(0)
    mask = (np.arange(TOKENS) < generator.integers(4, TOKENS, (32, 1, 1))).astype(np.float32)
    return {"tokens": generator.integers(0, WORDS, (32, 1, TOKENS)), "mask": mask}
