"""Metadata of model files: the last thing that is done to a variant, so that its file alone tells a tool what it needs.

Changes no weight and no operator, only what the file says of itself.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from edgefleet_converters.artefact import Artefact
from edgefleet_converters.metadata.facts import Facts
from edgefleet_device_profiles.profile import Runtime

WRITERS: Mapping[Runtime, str] = MappingProxyType(
    {
        Runtime.LITERT: "edgefleet_converters.metadata.litert",
        Runtime.ONNXRUNTIME: "edgefleet_converters.metadata.onnx_props",
        Runtime.OPENVINO: "edgefleet_converters.metadata.openvino_rt_info",
        Runtime.TENSORRT: "edgefleet_converters.metadata.onnx_props",
    }
)
"""Runtime → module with `write(content, artefact, facts) -> bytes` for the file that it opens."""


def write_metadata(runtime: Runtime, artefact: Artefact, facts: Facts, folder: Path) -> Artefact:
    """The same artefact in an empty folder, its first file with the facts; as it was where a runtime has no place."""
    if runtime not in WRITERS:
        return artefact
    first, *others = artefact.files
    content: bytes = importlib.import_module(WRITERS[runtime]).write(first.read_bytes(), artefact, facts)
    (folder / first.name).write_bytes(content)
    for path in others:
        shutil.copyfile(path, folder / path.name)
    return artefact.model_copy(update={"files": tuple(folder / path.name for path in artefact.files)})
