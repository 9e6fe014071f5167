"""The work of a packaging run as jobs for any executor: a conversion, or a run over samples, kept in the result cache.

Functions of a module with picklable arguments. A failure is an answer in one line, so that it costs one row of the
report and not the run; but a full disk ends it, for it says nothing about the model.
"""

from __future__ import annotations

import os
from pathlib import Path

from edgefleet.errors import EdgefleetError, StorageError
from edgefleet_converters.artefact import Artefact
from edgefleet_converters.cache import Cache, Entry
from edgefleet_converters.cache_key import conversion_key, inference_key, sensitivity_key
from edgefleet_converters.child import ChildFailedError
from edgefleet_converters.convert import ConvertJob, convert
from edgefleet_converters.score.infer import Answer, InferJob, infer, read_outputs
from edgefleet_converters.score.metrics import Measured
from edgefleet_converters.sensitivity import Sensitivity, SensitivityJob, find_sensitivity

_OUTPUTS = "outputs.npz"


def run_conversion(job: ConvertJob, cache: Cache | None) -> Artefact | str:
    """The variant's files, or one line on why there are none; without a cache everything is made anew."""
    key = conversion_key(job) if cache else ""
    if cache and (kept := cache.get(key, job.folder / "kept")):
        artefact = Artefact.model_validate_json(kept.facts)
        return artefact.model_copy(update={"files": tuple(kept.files[str(name)] for name in artefact.files)})
    try:
        made = convert(job)
    except StorageError:
        raise
    except EdgefleetError as error:
        return str(error)
    if cache:
        cache.put(key, _entry(made))
    return made


def run_inference(job: InferJob, cache: Cache | None) -> Measured | str:
    """Outputs of one file, or one line on why there are none: a crash of the runtime is a finding."""
    key = inference_key(job) if cache else ""
    if cache and (kept := cache.get(key, job.outputs.with_suffix(".kept"))):
        return read_outputs(kept.files[_OUTPUTS], job.artefact, Answer.model_validate_json(kept.facts))
    try:
        measured = infer(job)
    except ChildFailedError as error:
        return str(error)
    if cache:
        answer = Answer(runtime_version=measured.runtime_version, peak_rss_bytes=measured.peak_rss_bytes)
        cache.put(key, Entry(answer.model_dump_json(), {_OUTPUTS: job.outputs}))
    return measured


def run_sensitivity(job: SensitivityJob, cache: Cache | None, work: Path) -> Sensitivity | str:
    """The layers that cost the accuracy, or one line on why nobody knows; `work` is for what comes out of the cache."""
    key = sensitivity_key(job) if cache else ""
    if cache and (kept := cache.get(key, work / "sensitivity")):
        return Sensitivity.model_validate_json(kept.facts)
    try:
        found = find_sensitivity(job)
    except StorageError:
        raise
    except EdgefleetError as error:
        return str(error)
    if cache:
        cache.put(key, Entry(found.model_dump_json(), {}))
    return found


def _entry(artefact: Artefact) -> Entry:
    """An artefact whose files are named from the folder that they share."""
    root = Path(os.path.commonpath([path.parent for path in artefact.files]))
    names = {str(path.relative_to(root)): path for path in artefact.files}
    facts = artefact.model_copy(update={"files": tuple(Path(name) for name in names)})
    return Entry(facts.model_dump_json(), names)
