"""Admission: what is refused, or warned of, before packaging does any work: names, the place, labels, metric and data.

Does not read anything of the person's own: `intake` and `data` do, and refuse what they cannot read.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgefleet.errors import InputError, StorageError
from edgefleet.package.manifest import TensorSpec
from edgefleet_converters import data
from edgefleet_converters.intake.input_spec import InputSpec
from edgefleet_converters.report.write import report_folder
from edgefleet_converters.score.hook import check_hook
from edgefleet_converters.score.task import AUTO, choose_task
from edgefleet_converters.step import Samples

# The version becomes the layout's reference name, so it must be what an OCI tag may be; names are as strict.
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


def check_names(name: str, version: str, doing: str) -> None:
    """Raise InputError for a package name or version that cannot be one."""
    for what, text in (("name", name), ("version", version)):
        if not _TAG.fullmatch(text):
            raise InputError(doing, f"{text!r} cannot be a {what}", "use letters, digits, '.', '_', '-'")


def check_place(folder: Path, doing: str) -> None:
    """Raise InputError where a package must not be written, StorageError where the disk refuses it."""
    try:
        refused = _refused_place(folder)
    except OSError as error:
        raise StorageError(doing, error.strerror or str(error), "name a folder that can be written to") from error
    if refused:
        raise InputError(doing, refused, "name another folder, or remove this one first")


def _refused_place(folder: Path) -> str:
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        return "something is already there"
    if folder.resolve() == Path.cwd():
        return "it is the folder that you are in"
    report = report_folder(folder)
    if report.exists() and not report.is_dir():
        return f"{report} is in the way of the report"
    there = next(place for place in folder.absolute().parents if place.exists())
    # The package is made beside its place first, under such a name.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=there):
        return ""


def check_labels(labels: NDArray[np.generic] | None, outputs: Sequence[TensorSpec], metric: str, doing: str) -> None:
    """Raise InputError for labels that are not a classifier's, and for a metric that they or the outputs do not fit."""
    scores = outputs[0]
    classified = scores.dtype.startswith("float") and len(scores.shape) == 2 and scores.shape[1] > 1
    if labels is not None and classified and metric in (AUTO, "top1", "top5"):
        numbers = labels.dtype.kind in "iu" or labels.ndim == 1
        if numbers or data.is_one_hot(labels, scores.shape[1]):
            data.check_classes(labels, scores, doing)
    count = 1 if labels is None else len(labels)
    shaped = {spec.name: np.broadcast_to(np.zeros((), spec.dtype), (count, *spec.shape)) for spec in outputs}
    task = choose_task(metric, shaped, labels)
    if task.function is not None:
        check_hook(task.function)


def data_notes(sets: Mapping[str, Samples], spec: InputSpec) -> list[str]:
    """What the person should know of calibration and evaluation data, by what they are called, in this order.

    Raises InputError where they cannot be right.
    """
    notes = [
        note
        for called, samples in sets.items()
        for note in data.check_normalisation(samples, spec, f"checking the {called}")
    ]
    calibration, evaluation = sets.values()
    if data.count(calibration) < data.FEWEST_CALIBRATION_SAMPLES:
        notes.append(f"only {data.count(calibration)} calibration samples; int8 ranges from fewer than 32 are guesses")
    if shared := data.overlap(calibration, evaluation):
        notes.append(f"{shared} evaluation samples are calibration samples too: the accuracy is not of unseen data")
    return notes
