"""Data from a function of the person's own, `module:function` or `file.py:function`, that yields batches.

It runs in a child process, in the person's folder. A batch is an array, a dict of arrays by input name, or a pair of
one of these and its labels; arrays are [n, *input shape] with or without the batch axis of 1.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefleet.errors import InputError
from edgefleet.package.manifest import TensorSpec
from edgefleet_converters.conversion.samples import Array, refuse_unusable, stacked
from edgefleet_converters.data.loaded import Done, Loaded, LoadJob, load_in_child, store
from edgefleet_converters.intake.input_spec import InputSpec

_FORM = "yield arrays, dicts of arrays by input name, or pairs of these and labels"


def load(place: str, inputs: Sequence[TensorSpec], spec: InputSpec, doing: str) -> Loaded:
    """All batches joined; raises InputError."""
    return load_in_child("edgefleet_converters.data.batches:collect", place, inputs, spec, doing)


def collect(text: str) -> Done:
    """The child's side: call the function and join what it yields."""
    job = LoadJob.model_validate_json(text)
    batches = _function(job)()
    if isinstance(batches, (str, bytes, Mapping)) or not isinstance(batches, Iterable):
        raise InputError(job.doing, f"the function gave {type(batches).__name__}, not batches", _FORM)
    parts: list[dict[str, Array]] = []
    labels: list[NDArray[np.generic]] = []
    for batch in batches:
        samples, batch_labels = _split(batch, job)
        parts.append(samples)
        labels += [] if batch_labels is None else [batch_labels]
    if not parts:
        raise InputError(job.doing, "the function yielded no batches", "yield at least one")
    if labels and len(labels) != len(parts):
        found = f"{len(labels)} of {len(parts)} batches have labels"
        raise InputError(job.doing, found, "yield labels with every batch, or with none")
    joined = {item.name: np.concatenate([part[item.name] for part in parts]) for item in job.inputs}
    refuse_unusable(joined, job.doing)
    return store(job, joined, np.concatenate(labels) if labels else None)


def _function(job: LoadJob) -> Callable[[], Any]:
    """What the person named; raises InputError where there is no such function."""
    where, _, name = job.place.rpartition(":")
    sys.path.insert(0, str(job.folder))
    try:
        if where.endswith(".py"):
            file = (job.folder / where).resolve(strict=True)
            sys.path.insert(0, str(file.parent))
            where = file.stem
        function: Callable[[], Any] = getattr(importlib.import_module(where), name)
    except (ImportError, AttributeError, OSError) as error:
        raise InputError(job.doing, f"there is no such function ({error})", "name it as module:function") from error
    return function


def _split(batch: Any, job: LoadJob) -> tuple[dict[str, Array], NDArray[np.generic] | None]:
    """Samples by input name, [n, *input shape], and labels [n, …]."""
    labels = None
    if isinstance(batch, tuple) and len(batch) == 2:
        batch, labels = batch[0], np.asarray(batch[1])
    if not isinstance(batch, Mapping):
        if len(job.inputs) != 1:
            names = ", ".join(item.name for item in job.inputs)
            raise InputError(job.doing, f"a batch without names, and the model has inputs {names}", _FORM)
        batch = {job.inputs[0].name: batch}
    missing = [item.name for item in job.inputs if item.name not in batch]
    if missing:
        found = f"a batch without {', '.join(map(repr, missing))} (it has: {', '.join(map(str, batch)) or 'nothing'})"
        raise InputError(job.doing, found, _FORM)
    samples = {item.name: stacked(np.asarray(batch[item.name]), item, job.doing) for item in job.inputs}
    lengths = {len(array) for array in samples.values()} | ({len(labels)} if labels is not None else set())
    if len(lengths) != 1:
        raise InputError(job.doing, f"a batch with {sorted(lengths)} samples and labels", "yield as many of each")
    return samples, labels
