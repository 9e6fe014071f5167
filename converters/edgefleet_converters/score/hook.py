"""A metric of the person's own, `module:function(outputs, labels) -> float`, run in a child process.

For what has no one form, such as mAP over boxes. It decides nothing; its code is the person's, and runs with their
rights.
"""

from __future__ import annotations

import importlib
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from edgefleet.errors import InputError, UnsupportedError
from edgefleet_converters import child
from edgefleet_converters.score.arrays import Arrays
from edgefleet_converters.score.interval import jackknife_groups, jackknife_upper

TIMEOUT_S = 900.0

Function = Callable[[Arrays, NDArray[np.generic]], float]


class HookJob(BaseModel):
    """A function, and the outputs of a variant and its source with the labels as .npz files."""

    function: str
    """`module:function`; its attribute `higher_is_better` (True where it has none) says which way is better."""
    search: Path
    """Folder in which the module may lie."""
    variant: Path
    source: Path
    labels: Path


class Compared(BaseModel):
    """The metric of a variant and of its source, and the upper end of the 95 % interval of the loss."""

    value: float
    reference: float
    higher_is_better: bool
    drop_upper: float | None
    """None below 20 samples, or where the metric of a part of the samples is not defined."""


class _Named(BaseModel):
    """A function to look for, and the folder in which its module may lie."""

    function: str
    search: Path


def check_hook(function: str) -> None:
    """Raise InputError where there is no such function, or its module cannot be imported."""
    job = _Named(function=function, search=Path.cwd())
    try:
        child.call("edgefleet_converters.score.hook:find_hook", job, _Named, timeout_s=TIMEOUT_S)
    except child.ChildFailedError as error:
        raise InputError(_doing(function), f"its module cannot be imported: {error}", "fix the module") from error


def find_hook(text: str) -> _Named:
    """The child's side of `check_hook`."""
    job = _Named.model_validate_json(text)
    _load(job, _doing(job.function))
    return job


def compare_hook(function: str, variant: Arrays, source: Arrays, labels: NDArray[np.generic]) -> Compared:
    """Run it on both; raises InputError for a function that cannot be called or gives no number for the source.

    Raises UnsupportedError when it fails on the outputs of the variant.
    """
    doing = _doing(function)
    with tempfile.TemporaryDirectory(prefix="edgefleet-metric-") as folder:
        work = Path(folder)
        np.savez(work / "variant.npz", allow_pickle=False, **variant)
        np.savez(work / "source.npz", allow_pickle=False, **source)
        np.savez(work / "labels.npz", allow_pickle=False, y=labels)
        job = HookJob(
            function=function,
            search=Path.cwd(),
            variant=work / "variant.npz",
            source=work / "source.npz",
            labels=work / "labels.npz",
        )
        try:
            return child.call("edgefleet_converters.score.hook:run_hook", job, Compared, timeout_s=TIMEOUT_S)
        except child.ChildFailedError as error:
            raise UnsupportedError(doing, str(error), "look at what the function does with these outputs") from error


def run_hook(text: str) -> Compared:
    """The child's side: the metric of all samples, and of all but each of 20 groups."""
    job = HookJob.model_validate_json(text)
    doing = _doing(job.function)
    call = _load(job, doing)
    variant, source, labels = _read(job.variant), _read(job.source), _read(job.labels)["y"]
    try:
        reference = float(call(source, labels))
    except Exception as error:
        raise InputError(doing, f"it fails on the source's outputs: {error!r}", "fix the function") from error
    value = float(call(variant, labels))
    if not math.isfinite(reference):
        raise InputError(doing, f"it gives {reference} for the source", "return a finite number")
    if not math.isfinite(value):
        raise UnsupportedError(doing, f"it gives {value} for the variant", "return a finite number")
    higher = bool(getattr(call, "higher_is_better", True))
    sign = 1 if higher else -1
    parts = [
        sign * (float(call(_part(source, stay), labels[stay])) - float(call(_part(variant, stay), labels[stay])))
        for stay in jackknife_groups(len(labels))
    ]
    upper = jackknife_upper(sign * (reference - value), parts) if parts else math.nan
    return Compared(
        value=value, reference=reference, higher_is_better=higher, drop_upper=upper if math.isfinite(upper) else None
    )


def _doing(function: str) -> str:
    return f"computing the metric {function}"


def _load(job: HookJob | _Named, doing: str) -> Function:
    module, _, name = job.function.partition(":")
    sys.path.insert(0, str(job.search))
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            doing, str(error), f"name a function of a module that can be imported in {job.search}"
        ) from error
    if not callable(found):
        raise InputError(doing, f"{job.function} is no function", "name module:function(outputs, labels)")
    call: Function = found
    return call


def _read(path: Path) -> dict[str, NDArray[np.generic]]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _part(outputs: Arrays, stay: NDArray[np.int64]) -> Arrays:
    return {name: array[stay] for name, array in outputs.items()}
