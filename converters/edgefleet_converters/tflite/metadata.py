"""Model metadata of a .tflite file, as TFLite's and MediaPipe's task libraries read it: names, normalisation, labels.

Writes only: whoever made the file knows what is in it. The labels stand in a zip archive behind the file (stored, not
compressed), the rest in a buffer of it. Source: TFLite metadata, metadata_schema.fbs.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from edgefleet_converters.tflite.metadata_tables import (
    COLOUR_SPACE,
    CONTENT,
    PROCESS,
    TENSOR_AXIS_LABELS,
    Byte,
    Table,
    encode,
)
from edgefleet_converters.tflite.writer import pack, unpack

ENTRY = "TFLITE_METADATA"
LABELS_FILE = "labels.txt"
# The parser that first knew all that is written here.
_MIN_PARSER_VERSION = "1.0.0"
_LEVELS = 255.0
# A zip archive must say when its files were written; the first day that it can.
_NO_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Image:
    """An input that is an image: `(level - mean) / std`, levels 0 to 255, one number for each channel or for all.

    `colour` is "rgb", "gray", or "unknown" for what the format has no word for.
    """

    colour: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Description:
    """What is said of a model; images by the names of the signature's inputs, labels of the classes of one output."""

    name: str
    text: str
    author: str
    images: Mapping[str, Image]
    labels: tuple[str, ...] = ()
    labelled_output: str = ""


def attach(content: bytes, description: Description) -> bytes:
    """The same file with the metadata; what it had of them before is replaced."""
    model = unpack(content)
    data = np.frombuffer(encode(_model(model, description)), np.uint8)
    before = [entry for entry in model.metadata or () if _text(entry.name) == ENTRY]
    if before:
        model.buffers[before[0].buffer].data = data
    else:
        entry = schema.MetadataT()
        entry.name, entry.buffer = ENTRY, len(model.buffers)
        model.buffers = [*model.buffers, schema.BufferT(data)]
        model.metadata = [*(model.metadata or ()), entry]
    packed = pack(model)
    return _with_file(packed, LABELS_FILE, description.labels) if description.labels else packed


def _model(model: Any, description: Description) -> Table:
    graph, signature = model.subgraphs[0], model.signatureDefs[0]
    inputs = [
        _input(name, tensor, description.images.get(name))
        for name, tensor in _in_file_order(signature.inputs, graph, graph.inputs)
    ]
    outputs = [
        _output(name, labelled=bool(description.labels) and name == description.labelled_output)
        for name, _ in _in_file_order(signature.outputs, graph, graph.outputs)
    ]
    fields = {"input_tensor_metadata": inputs, "output_tensor_metadata": outputs}
    return Table(
        "ModelMetadata",
        {
            "name": description.name,
            "description": description.text,
            "subgraph_metadata": [Table("SubGraphMetadata", fields)],
            "author": description.author,
            "min_parser_version": _MIN_PARSER_VERSION,
        },
    )


def _in_file_order(entries: Any, graph: Any, places: Any) -> list[tuple[str, Any]]:
    """Tensors by the signature's names, or else their own, in the order of the graph: readers go by position."""
    names = {int(entry.tensorIndex): _text(entry.name) for entry in entries}
    tensors = [(int(place), graph.tensors[place]) for place in places]
    return [(names.get(place, _text(tensor.name)), tensor) for place, tensor in tensors]


def _input(name: str, tensor: Any, image: Image | None) -> Table:
    if image is None:
        return Table("TensorMetadata", {"name": name, "content": _feature()})
    height, width = (int(size) for size in tensor.shape[1:3])
    size = Table("ImageSize", {"width": width, "height": height})
    properties = {"color_space": Byte(COLOUR_SPACE[image.colour]), "default_size": size}
    options = Table("NormalizationOptions", {"mean": image.mean, "std": image.std})
    unit = Table("ProcessUnit", {"options_type": Byte(PROCESS[options.name]), "options": options})
    return Table(
        "TensorMetadata",
        {
            "name": name,
            "description": "an image",
            "content": _content(Table("ImageProperties", properties)),
            "process_units": [unit],
            "stats": _stats(tensor, image),
        },
    )


def _stats(tensor: Any, image: Image) -> Table:
    """Largest and smallest value of each channel: levels where the file takes those, else what they become."""
    ends = [(_LEVELS, 0.0)]
    if tensor.type == schema.TensorType.FLOAT32:
        channels = range(max(len(image.mean), len(image.std)))
        pairs = [(image.mean[at % len(image.mean)], image.std[at % len(image.std)]) for at in channels]
        ends = [((_LEVELS - mean) / std, -mean / std) for mean, std in pairs]
    return Table("Stats", {"max": [end[0] for end in ends], "min": [end[1] for end in ends]})


def _output(name: str, *, labelled: bool) -> Table:
    labels = Table(
        "AssociatedFile",
        {"name": LABELS_FILE, "description": "names of the classes", "type": Byte(TENSOR_AXIS_LABELS)},
    )
    files = {"associated_files": [labels]} if labelled else {}
    return Table("TensorMetadata", {"name": name, "content": _feature(), **files})


def _feature() -> Table:
    return _content(Table("FeatureProperties", {}))


def _content(properties: Table) -> Table:
    kind = Byte(CONTENT[properties.name])
    return Table("Content", {"content_properties_type": kind, "content_properties": properties})


def _with_file(content: bytes, name: str, lines: Sequence[str]) -> bytes:
    """A file with a zip archive behind it, whose offsets count from the file's start."""
    stream = io.BytesIO(content)
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_STORED) as archive:
        entry = zipfile.ZipInfo(name, _NO_DATE)
        # What the archive says of its maker must not depend on the system.
        entry.create_system = 3
        archive.writestr(entry, "".join(f"{line}\n" for line in lines))
    return stream.getvalue()


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
