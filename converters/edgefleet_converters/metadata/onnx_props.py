"""Facts as `metadata_props` of an ONNX file, under names that begin with `edgefleet.`.

Leaves properties of other tools as they are. Source: ONNX's Metadata Properties (docs/MetadataProps.md).
"""

from __future__ import annotations

import onnx

from edgefleet_converters.artefact import Artefact
from edgefleet_converters.metadata.facts import Facts

PREFIX = "edgefleet."


def write(content: bytes, _artefact: Artefact, facts: Facts) -> bytes:
    """The same model with the facts, which replace those of an earlier run."""
    model = onnx.load_from_string(content)
    kept = {entry.key: entry.value for entry in model.metadata_props if not entry.key.startswith(PREFIX)}
    del model.metadata_props[:]
    for key, value in sorted({**kept, **{PREFIX + key: value for key, value in facts.entries.items()}}.items()):
        model.metadata_props.add(key=key, value=value)
    found: bytes = model.SerializeToString(deterministic=True)
    return found
