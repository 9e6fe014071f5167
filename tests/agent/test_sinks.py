"""Sinks: a line of JSON for each result, bounded on disk, and no inference waits for one that fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from agent.source_lab import SPEC, VECTOR, client, house_broker
from agent.worker_lab import Lab
from edgefleet_agent import sinks
from edgefleet_agent.sinks import MOST_VALUES, TABLE, Array, Results, record
from edgefleet_agent.sinks.jsonl import JsonLines
from edgefleet_agent.sinks.topic import Topic
from edgefleet_agent.source_settings import Sink
from sdk.mqtt_made import MOSQUITTO, wait_for

DIGEST = "sha256:" + "7" * 64
OUTPUTS = {"scores": np.array([[0.1, 0.7, 0.2]], np.float32)}


def to_file(path: Path, most_mb: int = 1) -> dict[str, Any]:
    return {"kind": "jsonl", "path": str(path), "most_mb": most_mb}


def test_every_kind_of_the_settings_has_a_module() -> None:
    sections = get_args(get_args(Sink)[0])
    assert {get_args(section.model_fields["kind"].annotation)[0] for section in sections} == set(TABLE)


def test_a_result_names_its_digest_its_label_and_its_values(tmp_path: Path) -> None:
    results = Results([to_file(tmp_path / "a.jsonl"), to_file(tmp_path / "b.jsonl")], SPEC, DIGEST)
    for _ in range(2):
        results.write(OUTPUTS, 0.0125)
    results.close()
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    first, second = (json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines())
    assert first.pop("at") <= second.pop("at")
    assert first == second
    values = [[np.float32(value).item() for value in (0.1, 0.7, 0.2)]]
    assert first == {
        "digest": DIGEST, "inference_s": 0.0125, "label": "dog",
        "outputs": {"scores": {"dtype": "float32", "shape": [1, 3], "values": values}},
    }  # fmt: skip


def test_what_is_not_finite_is_null_and_what_is_large_is_not_told() -> None:
    outputs: dict[str, Array] = {
        "odd": np.array([1.0, np.nan, np.inf], np.float32),
        "none": np.zeros((0, 4), np.int64),
        "flag": np.array([True, False]),
        "large": np.zeros(MOST_VALUES + 1, np.float32),
    }
    told = json.loads(json.dumps(record(outputs, 0.1, DIGEST, []), allow_nan=False))["outputs"]
    assert told["odd"]["values"] == [1.0, None, None]
    assert told["none"] == {"dtype": "int64", "shape": [0, 4], "values": []}
    assert told["flag"]["values"] == [True, False]
    assert told["large"] == {"dtype": "float32", "shape": [MOST_VALUES + 1]}


def test_names_that_are_not_as_many_as_the_values_name_nothing() -> None:
    assert "label" not in record({"boxes": np.zeros((1, 7, 4))}, 0.1, DIGEST, ["cat", "dog"])
    assert "label" not in record(OUTPUTS, 0.1, DIGEST, VECTOR["labels"])


def test_the_file_is_bounded_and_what_is_there_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    file = JsonLines(path, 10_000)
    for number in range(500):
        file.write(json.dumps({"number": number, "filler": "x" * 80}))
        assert sum(part.stat().st_size for part in tmp_path.iterdir()) <= 20_000
    file.close()
    kept = [json.loads(line)["number"] for part in (f"{path}.1", path) for line in Path(part).read_text().splitlines()]
    assert kept == list(range(kept[0], 500))
    again = JsonLines(path, 10_000)
    again.write("{}")
    again.close()
    assert path.read_text().endswith("{}\n")


def test_a_part_of_a_line_is_taken_back(tmp_path: Path) -> None:
    """/dev/full refuses whole writes only; a pipe's reader that is slow takes a part, as a disk that fills does."""
    file = JsonLines(tmp_path / "results.jsonl", 10_000)
    file.write('{"whole": 1}')

    class Short:
        """A stream on a disk that has 5 bytes left."""

        def __init__(self) -> None:
            self.inner = (tmp_path / "results.jsonl").open("ab", buffering=0)

        def write(self, content: bytes) -> int:
            return self.inner.write(content[:5])

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

    file._stream = Short()  # type: ignore[assignment]
    with pytest.raises(OSError, match="took 5 of 8 bytes"):
        file.write('{"b":2}')
    assert (tmp_path / "results.jsonl").read_text() == '{"whole": 1}\n'


def test_a_sink_that_fails_is_said_once_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "none" / "results.jsonl"
    results = Results([to_file(path), to_file(tmp_path / "good.jsonl")], SPEC, DIGEST)
    for _ in range(3):
        results.write(OUTPUTS, 0.1)
    path.parent.mkdir()
    results.write(OUTPUTS, 0.1)
    assert list(path.parent.iterdir()) == []
    monkeypatch.setattr(sinks, "AGAIN_AFTER_S", -1e9)
    results._places[0].retry_at = 0.0
    results.write(OUTPUTS, 0.1)
    assert len(path.read_text().splitlines()) == 1
    assert len((tmp_path / "good.jsonl").read_text().splitlines()) == 5
    (said,) = caplog.messages
    assert "No such file" in said
    results.close()


def test_a_full_disk_costs_results_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "results.jsonl").symlink_to("/dev/full")
    results = Results([to_file(tmp_path / "results.jsonl")], SPEC, DIGEST)
    for _ in range(5):
        results.write(OUTPUTS, 0.1)
    results.turn()
    results.close()
    assert ["No space left" in message for message in caplog.messages] == [True]
    assert f"sink jsonl {tmp_path}/results.jsonl: " in caplog.text


def test_another_outage_after_one_that_ended_is_said_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sinks, "AGAIN_AFTER_S", -1e9)
    full, path = Path("/dev/full"), tmp_path / "results.jsonl"
    results = Results([to_file(path)], SPEC, DIGEST)
    for target in (full, tmp_path / "space", full):
        results.close()
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        for _ in range(3):
            results.turn()
            results.write(OUTPUTS, 0.1)
    results.close()
    assert ["No space left" in message for message in caplog.messages] == [True, True]


def test_results_go_to_a_topic_of_the_house(tmp_path: Path, need: Callable[[bool, str], None]) -> None:
    need(MOSQUITTO is not None, "mosquitto (a system package)")
    with house_broker(tmp_path) as broker, client(broker, "home/results") as (house, heard):
        results = Results([{"kind": "mqtt", "topic": "home/results", "broker": broker}], SPEC, DIGEST)

        def is_connected() -> bool:
            results.turn()
            sink = results._places[0].sink
            return isinstance(sink, Topic) and sink._connection.connected

        def came() -> bool:
            results.turn()
            house.poll(0.0)
            return bool(heard)

        # Before there is a result: the first one is not to be lost to a connection that is still being made.
        wait_for(is_connected)
        results.write(OUTPUTS, 0.1)
        wait_for(came)
        assert json.loads(heard[0])["label"] == "dog"
        results.close()


def test_a_worker_takes_from_its_folder_and_tells_its_sinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real worker process, as the agent starts it by its settings."""
    inputs, results = tmp_path / "watched", tmp_path / "results.jsonl"
    inputs.mkdir()
    for number in (1, 2, 3):
        np.save(inputs / f"{number}.npy", np.full((1, 4), number, np.float32))
    source = {"kind": "folder", "path": inputs, "after": "delete", "rate_per_s": 100}
    lab = Lab(tmp_path, monkeypatch, [3.0], source=source, sinks=[to_file(results)])
    lab.started()
    lab.until(lambda: results.exists() and len(results.read_text().splitlines()) == 3)
    lab.inference.stop()
    told = [json.loads(line) for line in results.read_text().splitlines()]
    assert [line["outputs"]["y"]["values"] for line in told] == [[[3.0 * number] * 4] for number in (1, 2, 3)]
    assert {line["digest"] for line in told} == {lab.variants[0].digest}
    assert list(inputs.iterdir()) == []
