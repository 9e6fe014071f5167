"""Recipes run on small models for the tests: the files, their outputs, and how far they are from the source's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from edgefleet_converters.artefact import Artefact, Form
from edgefleet_converters.convert import ConvertJob, convert
from edgefleet_converters.intake.onnx_file import read_onnx
from edgefleet_converters.score.infer import infer_sample, open_runner
from edgefleet_converters.step import Settings
from edgefleet_device_profiles.profile import Precision, Runtime

Array = NDArray[np.generic]
Outputs = Mapping[str, Array]


class Made:
    """A source model in a folder of its own, with seeded samples, and the files made from it."""

    def __init__(self, folder: Path, model: onnx.ModelProto, count: int = 40) -> None:
        self.folder = folder
        onnx.save(model, folder / "given.onnx")
        self.source = read_onnx(folder / "given.onnx", folder, shapes={}, dims={})
        generator = np.random.default_rng(7)
        self.samples: dict[str, Array] = {
            spec.name: np.asarray(
                generator.normal(size=(count, *spec.shape)).astype(np.float32)
                if spec.dtype == "float32"
                else generator.integers(0, 2, (count, *spec.shape)).astype(spec.dtype)
            )
            for spec in self.source.inputs
        }
        self._runs = 0
        self._made: dict[str, Artefact] = {}

    @property
    def onnx_form(self) -> Artefact:
        """The source's ONNX form."""
        return self.source.forms[Form.ONNX]

    def convert(
        self,
        runtime: Runtime,
        precision: Precision,
        settings: Settings | None = None,
        *,
        form: Form = Form.ONNX,
        start: Artefact | None = None,
        again: bool = False,
    ) -> Artefact:
        """A variant, made in a child process as packaging does it; the first of its kind unless `again`."""
        kept = f"{runtime} {precision} {settings} {form}"
        if kept in self._made and not again:
            return self._made[kept]
        self._runs += 1
        calibration = self.folder / "calibration.npz"
        np.savez(calibration, allow_pickle=False, **self.samples)
        job = ConvertJob(
            runtime=runtime,
            precision=precision,
            settings=settings or Settings(),
            form=form,
            source=start or self.onnx_form,
            calibration=calibration,
            folder=self.folder / f"{self._runs}-{runtime}-{precision}",
        )
        made = convert(job)
        self._made.setdefault(kept, made)
        return made

    def outputs(self, runtime: Runtime, artefact: Artefact, count: int = 8) -> Outputs:
        """Every output over the first samples, in this process."""
        runner = open_runner(runtime, artefact)
        found = [infer_sample(runner, artefact, self.samples, place) for place in range(count)]
        return {spec.name: np.stack([one[spec.name] for one in found]) for spec in artefact.outputs}

    def expected(self, count: int = 8) -> Outputs:
        """The source's outputs in ONNX Runtime."""
        return self.outputs(Runtime.ONNXRUNTIME, self.onnx_form, count)

    def worst_db(self, runtime: Runtime, artefact: Artefact) -> float:
        """Signal to noise of the worst output against the source."""
        found, expected = self.outputs(runtime, artefact), self.expected()
        assert list(found) == list(expected)
        for name, array in expected.items():
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        return min(noise_db(found[name], expected[name]) for name in expected)


def noise_db(found: Array, expected: Array) -> float:
    """10 log10 of the expected power over that of the difference."""
    difference = np.subtract(found, expected, dtype=np.float64)
    return float(10 * np.log10(np.square(expected, dtype=np.float64).sum() / max(np.square(difference).sum(), 1e-30)))
