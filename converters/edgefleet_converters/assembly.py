"""Assembly: what a variant that ships looks like in the package: its spec, its files, its golden samples.

Nothing here may differ from one run to the next: the same inputs give the same package.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from edgefleet.package.manifest import Mark, VariantFiles, VariantSpec
from edgefleet_converters.gate import Status
from edgefleet_converters.golden import write_golden
from edgefleet_converters.score.faults import tolerance
from edgefleet_converters.score.metrics import Assessment, Measured
from edgefleet_converters.score.versions import runtime_range
from edgefleet_converters.step import Samples
from edgefleet_converters.trials import Bench, Climb
from edgefleet_device_profiles.profile import Runtime

UNSCORED_RANGES: Mapping[Runtime, str] = MappingProxyType(
    {
        # ML Program model packages need Core ML 5, and 8-bit weights Core ML 7 (coremltools guide, deployment targets).
        Runtime.COREML: ">=7",
        # Explicit quantisation with per-channel weights (TensorRT developer guide, working with quantized types).
        Runtime.TENSORRT: ">=8.5",
    }
)
"""Runtime that does not run on the packaging host → versions that may open its files."""


def assemble(bench: Bench, samples: Samples, climb: Climb, reference: Measured) -> VariantFiles:
    """The variant's spec and files; golden outputs are the file's own, or the source's where nobody could run it."""
    planned, trial = climb.planned, climb.kept
    if trial.artefact is None:
        raise AssertionError(f"{planned.name} was accepted and has no files")
    golden_file = bench.work / f"{planned.name}.golden.npz"
    measured = trial.measured or reference
    if isinstance(trial.found, Assessment):
        score, tolerances = trial.found.score, trial.found.tolerances
        versions = runtime_range(planned.runtime, trial.artefact, measured.runtime_version)
    else:
        score, versions = None, UNSCORED_RANGES[planned.runtime]
        tolerances = {name: tolerance(array, planned.precision) for name, array in reference.outputs.items()}
    spec = VariantSpec(
        name=planned.name,
        runtime=planned.runtime,
        precision=planned.precision,
        runtime_version=versions,
        model_file=trial.artefact.files[0].name,
        inputs=trial.artefact.inputs,
        outputs=trial.artefact.outputs,
        labels=bench.facts.labels,
        preprocessing=bench.facts.preprocessing,
        golden=write_golden(golden_file, trial.artefact, samples, measured, tolerances),
        score=score,
        marks=marks(climb),
        architectures=planned.architectures,
    )
    return VariantFiles(spec, trial.artefact.files, golden_file)


def marks(climb: Climb) -> tuple[Mark, ...]:
    """What a person should know of the variant."""
    unscored = (Mark.UNSCORED,) if climb.kept.artefact and not climb.planned.recipe.scored else ()
    unproven = (Mark.UNPROVEN,) if not unscored and climb.kept.verdict.status is Status.UNPROVEN else ()
    return (*unscored, *unproven, *climb.planned.recipe.marks)
