"""What decides a result, as one digest: the files that go in, how the job is set, our code, and the tools' versions.

Reads and hashes only. Too fine is the safe side: a key that changes without need costs time, one that does not, truth.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import sys
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from pathlib import Path

from packaging.requirements import Requirement

from edgefleet_converters.artefact import Artefact
from edgefleet_converters.convert import ConvertJob
from edgefleet_converters.recipes import RECIPES
from edgefleet_converters.score.host import Host
from edgefleet_converters.score.infer import InferJob
from edgefleet_converters.score.latency_child import LatencyJob
from edgefleet_converters.sensitivity import SensitivityJob
from edgefleet_device_profiles.detect import installed_runtimes
from edgefleet_device_profiles.profile import Runtime

_DISTRIBUTION = "edgefleet"
_OWN_FOLDER = Path(__file__).parent


def conversion_key(job: ConvertJob) -> str:
    """Digest of a conversion: source, calibration, settings, our code, and all that the recipe's extra installs."""
    extra = RECIPES[job.runtime, job.precision].extra
    return _digest(
        "conversion",
        job.model_dump(mode="json", exclude={"source", "calibration", "folder"}),
        _contents(job.source),
        _file_digest(job.calibration) if job.calibration else None,
        tool_versions(extra),
    )


def inference_key(job: InferJob) -> str:
    """Digest of a run over samples: the file, the samples, how often they are run, our code, the runtime's version."""
    return _digest(
        "inference",
        job.model_dump(mode="json", exclude={"artefact", "samples", "outputs"}),
        _contents(job.artefact),
        _file_digest(job.samples),
        installed_runtimes().get(job.runtime),
    )


def sensitivity_key(job: SensitivityJob) -> str:
    """Digest of a ranking of layers: the source, the samples, how much is tried, our code, ONNX Runtime's version."""
    return _digest(
        "sensitivity",
        job.model_dump(mode="json", exclude={"source", "samples"}),
        _contents(job.source),
        _file_digest(job.samples),
        installed_runtimes().get(Runtime.ONNXRUNTIME),
    )


def latency_key(jobs: Mapping[str, LatencyJob], host: Host) -> str:
    """Digest of a set of variants timed together: files, samples, our code, runtime versions, and the host itself."""
    installed = installed_runtimes()
    return _digest(
        "latency",
        [
            (
                name,
                job.model_dump(mode="json", exclude={"artefact", "samples"}),
                _contents(job.artefact),
                _file_digest(job.samples),
                installed.get(job.runtime),
            )
            for name, job in jobs.items()
        ],
        host.digest,
    )


def tool_versions(extra: str) -> Mapping[str, str]:
    """Name → version of every installed distribution that one of our extras needs, directly or not; by name."""
    return dict(sorted(_closure(extra).items()))


@cache
def _closure(extra: str) -> Mapping[str, str]:
    found: dict[str, str] = {}
    todo, seen = [(_DISTRIBUTION, frozenset({extra}))], set()
    while todo:
        place = todo.pop()
        if place in seen:
            continue
        seen.add(place)
        for requirement in _requirements(*place):
            try:
                found[requirement.name] = importlib.metadata.version(requirement.name)
            except importlib.metadata.PackageNotFoundError:
                continue
            todo.append((requirement.name, frozenset(requirement.extras)))
    return found


def _requirements(name: str, extras: frozenset[str]) -> Iterator[Requirement]:
    for text in importlib.metadata.requires(name) or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in (*extras, "")):
            yield requirement


def _digest(kind: str, *parts: object) -> str:
    host = (sys.version, platform.machine())
    text = json.dumps((kind, code_digest(), host, parts), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def code_digest() -> str:
    """sha256 of everything in this package: a step may reach any of it, the lowering above all."""
    found = hashlib.sha256()
    for path in sorted(_OWN_FOLDER.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            content = path.read_bytes()
            found.update(f"{path.relative_to(_OWN_FOLDER)}\0{len(content)}\0".encode() + content)
    return found.hexdigest()


def _contents(artefact: Artefact) -> object:
    """An artefact without the folder that it lies in today."""
    return [
        [(path.name, _file_digest(path)) for path in artefact.files],
        artefact.model_dump(mode="json", exclude={"files"}),
    ]


def _file_digest(path: Path) -> str:
    found = path.stat()
    return _hashed(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=256)
def _hashed(path: Path, _size_bytes: int, _modified_ns: int) -> str:
    """One source is read once, however many recipes start from it."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
