"""Step: a torch.export program to a CoreML package (ML Program, float16) for iOS 16, macOS 13 and newer.

Does not run it: CoreML exists on Apple's systems only.
"""

from __future__ import annotations

import json
import logging
import shutil
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import coremltools
import numpy as np
import torch
from coremltools.proto import FeatureTypes_pb2

from edgefleet.package.manifest import TensorSpec
from edgefleet_converters.artefact import Artefact
from edgefleet_converters.step import Context

_ARRAY = FeatureTypes_pb2.ArrayFeatureType
_DTYPES: Mapping[int, str] = MappingProxyType(
    {_ARRAY.FLOAT32: "float32", _ARRAY.FLOAT16: "float16", _ARRAY.DOUBLE: "float64", _ARRAY.INT32: "int32"}
)
_AUTHOR = "com.apple.CoreML"
_DATE = "com.github.apple.coremltools.conversion_date"
# Item name → file or folder below Data/, and its description, as coremltools writes them.
_ITEMS = {
    "model.mlmodel": (f"{_AUTHOR}/model.mlmodel", "CoreML Model Specification"),
    "weights": (f"{_AUTHOR}/weights", "CoreML Model Weights"),
}


def run(artefact: Artefact, context: Context) -> Artefact:
    """.pt2 in, an .mlpackage folder out; borders keep their names, float types become float32 and integers int32."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    # CoreML knows the core operators only.
    program = torch.export.load(artefact.files[0]).run_decompositions({})
    model = coremltools.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=coremltools.target.iOS16,
        compute_precision=coremltools.precision.FLOAT16,
        outputs=[coremltools.TensorType(name=spec.name, dtype=_border(spec)) for spec in artefact.outputs],
        skip_model_load=True,
    )
    return package_of(model, artefact, context.folder)


def package_of(model: Any, artefact: Artefact, folder: Path) -> Artefact:
    """A CoreML model as an .mlpackage folder: the same bytes for the same model, unlike the library's own."""
    spec = model.get_spec()
    spec.description.metadata.userDefined.pop(_DATE, None)
    path = folder / "model.mlpackage"
    data = path / "Data" / _AUTHOR
    data.mkdir(parents=True)
    (data / "model.mlmodel").write_bytes(spec.SerializeToString(deterministic=True))
    shutil.copytree(model.weights_dir, data / "weights")
    (path / "Manifest.json").write_text(json.dumps(_manifest(), indent=4, sort_keys=True), encoding="utf-8")
    return Artefact(
        files=(path,),
        inputs=_specs(artefact.inputs, spec.description.input),
        outputs=_specs(artefact.outputs, spec.description.output),
    )


def _border(spec: TensorSpec) -> Any:
    return np.float32 if spec.dtype.startswith("float") else np.int32


def _specs(sources: tuple[TensorSpec, ...], features: Any) -> tuple[TensorSpec, ...]:
    """The source's tensors with the types that the package has."""
    types = {feature.name: _DTYPES[feature.type.multiArrayType.dataType] for feature in features}
    return tuple(spec.model_copy(update={"dtype": types[spec.name]}) for spec in sources)


def _manifest() -> dict[str, object]:
    """The package's list of contents; its identifiers need to differ from each other only."""
    identifiers = {name: str(uuid.uuid5(uuid.NAMESPACE_URL, place)) for name, (place, _) in _ITEMS.items()}
    entries = {
        identifiers[name]: {"author": _AUTHOR, "description": text, "name": name, "path": place}
        for name, (place, text) in _ITEMS.items()
    }
    root = identifiers["model.mlmodel"]
    return {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": root}
