"""Files that a decoder breaks on in its own way are passed over, and topics that a broker would refuse are said."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from agent.source_lab import VECTOR, take
from edgefleet.errors import InputError
from edgefleet_agent.settings import Settings
from edgefleet_agent.sources import folder as folder_source
from edgefleet_agent.sources import open_source
from edgefleet_agent.sources.replay import open_replay


def stored(*, compressed: bool = False) -> bytearray:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, values=np.arange(3, dtype=np.int16))
    return bytearray(file.getvalue())


def with_field(local: int, central: int, value: int) -> bytes:
    """An archive with one field of its entry changed, in both places that have it."""
    content = stored()
    content[content.find(b"PK\x03\x04") + local] = value
    content[content.find(b"PK\x01\x02") + central] = value
    return bytes(content)


def broken_stream() -> bytes:
    content = stored(compressed=True)
    begin = content.find(b"values.npy") + len("values.npy")
    # A block of a type that does not exist (RFC 1951, 3.2.3), behind whatever extra field there is.
    begin += content[28] + 256 * content[29]
    content[begin] = 0b111
    return bytes(content)


def header(text: str) -> bytes:
    line = f"{text}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line


DAMAGED = {
    "encrypted.npz": with_field(6, 8, 1),
    "method.npz": with_field(8, 10, 99),
    "stream.npz": broken_stream(),
    "open.npy": header("{'descr': '<i2', 'fortran_order': False, 'shape': ((("),
    "terabytes.npy": header("{'descr': '<i2', 'fortran_order': False, 'shape': (10000000000000,), }"),
    "numbers.npy": header("{'descr': '<i2', 'fortran_order': False, 'shape': (10000000000000000000000,), }"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_does_not_end_the_source(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(folder_source, "LOOK_EVERY_S", 0.0)
    caplog.set_level(logging.WARNING)
    (tmp_path / f"a-{name}").write_bytes(DAMAGED[name])
    np.save(tmp_path / "b.npy", np.arange(3, dtype=np.int16))
    (tmp_path / "round.npy").symlink_to("round.npy")
    source = open_source({"kind": "folder", "path": str(tmp_path), "after": "delete"}, VECTOR)
    (sample,) = take(source, 1)
    assert sample.inputs["values"].tolist() == [[0, 1, 2]]
    (said,) = caplog.messages
    assert f"a-{name} is passed over: not a numpy file (" in said
    with pytest.raises(InputError, match=r"it is not an \.npz file with x"):
        open_replay(tmp_path / f"a-{name}", VECTOR["inputs"])


def test_a_file_that_memory_is_too_short_for_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker's memory is limited: reading the file may be what does not fit."""
    monkeypatch.setattr(folder_source, "LOOK_EVERY_S", 0.0)
    whole = Path.open

    def limited(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == "a.npy":
            raise MemoryError
        return whole(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", limited)
    for name in ("a.npy", "b.npy"):
        np.save(tmp_path / name, np.arange(3, dtype=np.int16))
    source = open_source({"kind": "folder", "path": str(tmp_path), "after": "delete"}, VECTOR)
    take(source, 1)
    assert ["a.npy is passed over: memory is too short" in message for message in caplog.messages] == [True]


def told(section: str, topic: str) -> Settings:
    part = {"kind": "mqtt", "topic": topic}
    common = {"profile": "generic-x86-64", "state_folder": "state"}
    return Settings.model_validate({**common, section: part if section == "source" else (part,)})


@pytest.mark.parametrize("topic", ["#", "+", "a/+/b", "+/+", "a/#", "/", "a//b", "$share/pis/yard/camera"])
def test_a_filter_that_mqtt_has(topic: str) -> None:
    assert getattr(told("source", topic).source, "topic", None) == topic


@pytest.mark.parametrize(
    ("section", "topic"),
    [
        ("source", "a/#/b"), ("source", "#a"), ("source", "a+"), ("source", "a/+b"), ("source", "a\0b"),
        ("sinks", "a/#"), ("sinks", "a/+"), ("sinks", "a\0b"),
    ],
)  # fmt: skip
def test_a_topic_that_mqtt_has_not_is_refused_before_a_broker_is_asked(section: str, topic: str) -> None:
    with pytest.raises(ValidationError, match="pattern"):
        told(section, topic)
