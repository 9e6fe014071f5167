"""The agent's main process loads nothing heavy: memory on a small board is the reason."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {
    "ai_edge_litert", "cryptography", "fastapi", "nncf", "numpy", "onnx", "onnxruntime", "openvino", "rich",
    "securesystemslib", "tensorflow", "tflite_runtime", "torch", "tuf",
}  # fmt: skip
OTHER_FLOORS = {"edgefleet_converters", "edgefleet_demo"}


def loaded(statement: str) -> set[str]:
    """Top-level modules, and edgefleet's own in full, that a statement brings into a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = done.stdout.split()
    return {name.partition(".")[0] for name in names} | {name for name in names if name.startswith("edgefleet")}


@pytest.mark.parametrize(
    "statement",
    [
        "import edgefleet_agent",
        "import edgefleet_agent.agent, edgefleet_agent.cli",
        "import edgefleet_agent.install, edgefleet_agent.power, edgefleet_agent.settings, edgefleet_agent.supervise",
    ],
)
def test_the_agent_loads_nothing_heavy_and_nothing_of_other_floors(statement: str) -> None:
    assert loaded(statement).isdisjoint(HEAVY | OTHER_FLOORS)


def test_the_commands_module_loads_the_agent_only_when_it_runs() -> None:
    names = loaded("import edgefleet_agent.cli")
    assert {name for name in names if name.startswith("edgefleet_agent.")} == {"edgefleet_agent.cli"}
    assert names.isdisjoint({"pydantic", "paho"})


def test_a_worker_is_begun_before_anything_that_takes_its_time_is_loaded() -> None:
    names = loaded("import edgefleet_agent.worker_ahead")
    assert names.isdisjoint(HEAVY | OTHER_FLOORS | {"pydantic", "paho", "ssl"})


def test_the_agent_package_alone_loads_no_module_of_any_other() -> None:
    """As Python's own import log has it."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import edgefleet_agent"], capture_output=True, text=True, check=True
    )
    names = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert "edgefleet_agent" in names
    tops = {name.partition(".")[0] for name in names}
    assert tops.isdisjoint(HEAVY | OTHER_FLOORS | {"edgefleet", "pydantic", "paho", "click"})


def test_the_workers_own_module_loads_no_runtime_before_it_has_a_plan() -> None:
    names = loaded("import edgefleet_agent.worker")
    assert "numpy" in names
    assert names.isdisjoint((HEAVY - {"numpy"}) | {"pydantic", "paho"})


def test_the_trust_process_loads_nothing_heavy_before_it_is_tied_to_its_agent() -> None:
    names = loaded("import edgefleet_agent.trust_process")
    assert names.isdisjoint(HEAVY | {"pydantic", "paho"})


def test_the_trust_process_loads_no_runtime_and_no_broker_connection() -> None:
    names = loaded("import edgefleet_agent.trust_jobs")
    assert {"tuf", "cryptography"} <= names
    assert names.isdisjoint((HEAVY - {"cryptography", "securesystemslib", "tuf"}) | {"paho"})
