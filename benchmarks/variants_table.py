"""Every variant that packaging makes of a few models, with its size, latency, accuracy and the gate's verdict.

`python benchmarks/variants_table.py [MODEL ...]`: a Markdown table on stdout, the whole reports in
build/variants_table.json. The models are the digits, an output that joins boxes of 0 to 640 with scores of 0 to 1,
networks that the onnx package carries with seeded weights, and trained ones where `real_models.py` has left their ONNX
forms. All but the digits and `sww` are scored on noise and without labels: agreement or signal to noise, no accuracy.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgefleet_converters.intake import Asked
from edgefleet_converters.packaging import Request, package
from edgefleet_converters.report import figures
from edgefleet_converters.report.model import Report, VariantFacts
from edgefleet_demo import digits
from edgefleet_demo.scene import write_data
from edgefleet_device_profiles import catalogue

_REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_REPOSITORY / "tests"))

from conformance_graphs.light import light_model  # noqa: E402 - found by the line above
from converters.hard_models import shared_scale  # noqa: E402

_OUTPUT = _REPOSITORY / "build" / "variants_table.json"
FORMS = _REPOSITORY / "build" / "real_models"
PROFILES = ("raspberry-pi-5", "intel-nuc")
# Of fewer than 300 samples that all agree, 1 % may still disagree (95 %): the gate would pass none.
CALIBRATION, EVALUATION = 32, 400

Draw = Callable[[np.random.Generator, tuple[int, ...]], NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Given:
    """A model and its data, as a person would name them; `dims` are its symbolic axes."""

    model: Path
    calibration: Path
    evaluation: Path
    dims: Mapping[str, int] = field(default_factory=dict)


def _normal(generator: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
    return generator.normal(size=shape)


def _image(generator: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
    return generator.random(shape)


def _cepstral(generator: np.random.Generator, shape: tuple[int, ...]) -> NDArray[Any]:
    return generator.normal(size=shape) * 3


def _digits(work: Path) -> Given:
    files = write_data(work)
    return Given(digits.model_path(), files.calibration, files.heldout)


def _built(build: Callable[[], onnx.ModelProto], draw: Draw) -> Callable[[Path], Given]:
    """A model that is made here, with noise."""

    def given(work: Path) -> Given:
        onnx.save(build(), work / "source.onnx")
        return _with_noise(work / "source.onnx", draw, work)

    return given


def _trained(name: str, draw: Draw | None) -> Callable[[Path], Given]:
    """A model of `real_models.py`, with noise or else with its own samples in two parts."""

    def given(work: Path) -> Given:
        path = FORMS / f"{name}.onnx"
        if draw is not None:
            return _with_noise(path, draw, work)
        with np.load(FORMS / f"{name}.npz") as stored:
            samples = dict(stored)
        parts = {"calibration": slice(None, CALIBRATION), "evaluation": slice(CALIBRATION, None)}
        for part, taken in parts.items():
            np.savez(work / part, allow_pickle=False, **{key: array[taken] for key, array in samples.items()})
        return Given(path, work / "calibration.npz", work / "evaluation.npz", _dims(onnx.load(path)))

    return given


def _with_noise(path: Path, draw: Draw, work: Path) -> Given:
    model = onnx.load(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    (entry,) = (item for item in model.graph.input if item.name not in weights)
    shape = tuple(axis.dim_value or 1 for axis in entry.type.tensor_type.shape.dim)[1:]
    generator = np.random.default_rng(0)
    for name, count in (("calibration", CALIBRATION), ("evaluation", EVALUATION)):
        drawn = draw(generator, (count, *shape)).astype(np.float32)
        np.savez(work / name, allow_pickle=False, **{entry.name: drawn})
    return Given(path, work / "calibration.npz", work / "evaluation.npz", _dims(model))


def _dims(model: onnx.ModelProto) -> dict[str, int]:
    axes = (axis for item in model.graph.input for axis in item.type.tensor_type.shape.dim)
    return {axis.dim_param: 1 for axis in axes if axis.dim_param}


MODELS: Mapping[str, Callable[[Path], Given]] = {
    "digits": _digits,
    "boxes and scores": _built(shared_scale, _image),
    "squeezenet": _built(lambda: light_model("squeezenet"), _normal),
    "shufflenet": _built(lambda: light_model("shufflenet"), _normal),
    "kws": _trained("kws", _cepstral),
    "vww_96": _trained("vww_96", _image),
    "sww": _trained("sww", None),
}


def present() -> list[str]:
    """The models whose files are here."""
    return [name for name in MODELS if name not in ("kws", "vww_96", "sww") or (FORMS / f"{name}.onnx").exists()]


def packaged(name: str) -> Report:
    """A package for both profiles, without a cache; what its report says."""
    with tempfile.TemporaryDirectory(prefix="edgefleet-benchmark-") as text:
        work = Path(text)
        given = MODELS[name](work)
        request = Request(
            model=str(given.model),
            profiles=tuple(catalogue.load(profile) for profile in PROFILES),
            calibration=str(given.calibration),
            evaluation=str(given.evaluation),
            name="benchmark",
            version="1",
            release=1,
            folder=work / "package",
            asked=Asked(dims=given.dims),
        )
        return package(request).report


def line(name: str, variant: VariantFacts) -> str:
    """A row of the table."""
    score = variant.score
    cells = (
        *(name, variant.name, figures.size(variant.size_bytes), figures.latency(variant.latency)),
        *((score.metric, figures.metric(score.metric, score.value)) if score else (figures.NONE, figures.NONE)),
        figures.loss(score),
        figures.decibels(score.sqnr_db if score else None),
        *(variant.status, str(len(variant.attempts)), figures.verdict(variant)),
    )
    return f"| {' | '.join(cells)} |"


_COLUMNS = (
    *("model", "variant", "size", "latency", "metric", "value", "change", "SQNR of the worst slice"),
    *("gate", "attempts", "verdict"),
)


def main() -> None:
    """Package, print and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", choices=[*MODELS, []], help="default: all whose files are here")
    given = parser.parse_args()
    print(f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}")
    reports: dict[str, Any] = {}
    for name in given.models or present():
        report = packaged(name)
        reports[name] = report.model_dump(mode="json")
        for variant in report.variants:
            print(line(name, variant), flush=True)
    _OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    _OUTPUT.write_text(json.dumps(reports, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
