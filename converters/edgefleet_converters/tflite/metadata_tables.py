"""The tables of TFLite's model metadata as flatbuffers: what may stand in them, by the numbers of their fields.

Knows the format, not models: `metadata` says what is in them. Source: metadata_schema.fbs of TFLite Support and
MediaPipe (file identifier M001), whose field and union numbers these are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import flatbuffers

FILE_IDENTIFIER = b"M001"

FIELDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "ModelMetadata": (
            *("name", "description", "version", "subgraph_metadata", "author", "license", "associated_files"),
            "min_parser_version",
        ),
        "SubGraphMetadata": ("name", "description", "input_tensor_metadata", "output_tensor_metadata"),
        "TensorMetadata": (
            *("name", "description", "dimension_names", "content", "process_units", "stats", "associated_files"),
        ),
        "Content": ("content_properties_type", "content_properties", "range"),
        "FeatureProperties": (),
        "ImageProperties": ("color_space", "default_size"),
        "ImageSize": ("width", "height"),
        "ProcessUnit": ("options_type", "options"),
        "NormalizationOptions": ("mean", "std"),
        "Stats": ("max", "min"),
        "AssociatedFile": ("name", "description", "type", "locale", "version"),
    }
)
"""Table → its fields in the order of their numbers, as far as they are used."""

CONTENT = MappingProxyType({"FeatureProperties": 1, "ImageProperties": 2})
PROCESS = MappingProxyType({"NormalizationOptions": 1})
COLOUR_SPACE = MappingProxyType({"unknown": 0, "rgb": 1, "gray": 2})
TENSOR_AXIS_LABELS = 2
"""AssociatedFileType: one line for each element of an axis."""


@dataclass(frozen=True, slots=True)
class Byte:
    """A number of one byte: an enum or the kind of a union."""

    number: int


@dataclass(frozen=True, slots=True)
class Table:
    """One table: its name in FIELDS, and its fields.

    A field is a text, a Byte, a 32-bit unsigned int, floats, a table, or a list of tables; None is left out.
    """

    name: str
    fields: Mapping[str, object]


def encode(root: Table) -> bytes:
    """A finished flatbuffer; the same tables give the same bytes."""
    builder = flatbuffers.Builder(1024)
    builder.Finish(_table(builder, root), file_identifier=FILE_IDENTIFIER)
    return bytes(builder.Output())


def _table(builder: Any, table: Table) -> int:
    names = FIELDS[table.name]
    # What a table refers to must be written before it.
    held = [(names.index(name), _prepared(builder, value)) for name, value in table.fields.items() if value is not None]
    builder.StartObject(len(names))
    for slot, (write, value) in held:
        write(builder, slot, value)
    return int(builder.EndObject())


_Writer = Callable[[Any, int, int], None]


def _prepared(builder: Any, value: object) -> tuple[_Writer, int]:
    """How a field is written, and its number or the offset of what it refers to."""
    if isinstance(value, Byte):
        return _write_byte, value.number
    if isinstance(value, int):
        return _write_uint, value
    if isinstance(value, str):
        return _write_offset, int(builder.CreateString(value))
    if isinstance(value, Table):
        return _write_offset, _table(builder, value)
    if isinstance(value, Sequence):
        return _write_offset, _vector(builder, value)
    raise TypeError(f"no field of a metadata table can hold {value!r}")


def _vector(builder: Any, items: Sequence[object]) -> int:
    """Tables, or floats."""
    offsets = [_table(builder, item) for item in items if isinstance(item, Table)]
    builder.StartVector(4, len(items), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    for item in reversed(items):
        if isinstance(item, float):
            builder.PrependFloat32(item)
    return int(builder.EndVector())


def _write_byte(builder: Any, slot: int, number: int) -> None:
    builder.PrependInt8Slot(slot, number, 0)


def _write_uint(builder: Any, slot: int, number: int) -> None:
    builder.PrependUint32Slot(slot, number, 0)


def _write_offset(builder: Any, slot: int, offset: int) -> None:
    builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
