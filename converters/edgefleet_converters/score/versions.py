"""Versions of a runtime that a variant may meet: the range that its file asks for, and verdicts on older ones.

Which version a device has is the device's own business; a version that cannot be installed here is a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from packaging.version import Version

from edgefleet.errors import EdgefleetError
from edgefleet_converters.artefact import Artefact
from edgefleet_converters.child import ChildFailedError
from edgefleet_converters.progress import Event, Progress, Stage
from edgefleet_converters.score.infer import InferJob
from edgefleet_converters.score.metrics import Measured
from edgefleet_converters.score.runtime_environments import infer_on, versions_carried
from edgefleet_device_profiles.profile import Profile, Runtime

Found = TypeVar("Found")


def runtime_range(runtime: Runtime, artefact: Artefact, scored_on: str) -> str:
    """What may open the file, as a PEP 440 specifier: what its operators ask for, else no older than was proven."""
    version = Version(scored_on)
    proven = f"{version.major}.{version.minor}"
    if runtime is not Runtime.LITERT:
        return f">={proven}"
    from edgefleet_converters.tflite.runtime_versions import litert_range  # noqa: PLC0415 - only for such files

    return litert_range(artefact.files[0].read_bytes(), proven)


def judge_versions(
    job: InferJob,
    scored_on: str,
    profiles: Iterable[Profile],
    judge: Callable[[Measured | str], Found],
    progress: Progress,
) -> dict[str, Found]:
    """Verdicts by version, for every other version that one of the profiles may have and that can be had here."""
    ranges = [allowed.version for profile in profiles for allowed in profile.runtimes if allowed.name is job.runtime]
    verdicts: dict[str, Found] = {}
    for other in versions_carried(job.runtime, ranges, runtime_range(job.runtime, job.artefact, scored_on)):
        try:
            verdicts[other.version] = judge(infer_on(other, job, progress))
        except ChildFailedError as error:
            verdicts[other.version] = judge(str(error))
        except EdgefleetError as error:
            progress(Event(Stage.WARNING, f"not scored on {job.runtime} {other.version}: {error}"))
    return verdicts
