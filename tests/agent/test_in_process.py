"""A variant opened in the caller's own process, from a state folder or from its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import edgefleet_agent
from agent.fake_runtime.ai_edge_litert.interpreter import HANG, REFUSE
from agent.worker_lab import FAKE_RUNTIME, Lab
from edgefleet.errors import InputError, IntegrityError
from edgefleet_agent import slot_options

X = np.array([[1, 2, 3, 4]], np.float32)


@pytest.fixture(name="lab")
def _lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """A state folder with two variants, and the fake runtime in this process."""
    monkeypatch.syspath_prepend(FAKE_RUNTIME)
    ours = [name for name in sys.modules if name.startswith(("ai_edge_litert", "edgefleet_agent.runtimes.litert"))]
    for name in ours:
        monkeypatch.delitem(sys.modules, name)
    yield Lab(tmp_path, monkeypatch, [3.0, 5.0])
    for name in ("ai_edge_litert", "ai_edge_litert.interpreter", "edgefleet_agent.runtimes.litert"):
        sys.modules.pop(name, None)


def test_the_current_variant_of_a_state_folder(lab: Lab) -> None:
    lab.slots.activate(lab.variants[1].digest)
    loaded = edgefleet_agent.load(lab.folder / "state")
    assert loaded.digest == lab.variants[1].digest
    assert loaded.spec.name == "v1"
    first = loaded.infer(X)
    loaded.infer({"x": 0 * X})
    np.testing.assert_array_equal(first["y"], 5 * X)


def test_a_variants_own_folder_with_what_was_chosen_for_it(lab: Lab) -> None:
    slot = lab.slots.path(lab.variants[0].digest)
    slot_options.record(slot, slot_options.SlotOptions(threads=7))
    given = np.array([[1, HANG, 0, 0]], np.float32)
    assert edgefleet_agent.load(str(slot)).infer(given)["y"][0, 0] == 7


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"z": X}, "the inputs are z; give x"),
        ({}, "the inputs are none; give x"),
        ({"x": X, "z": X}, "the inputs are x, z; give x"),
        (X[0], r"x is float32 \[4\]; give float32 \[1, 4\]"),
        (X.astype(np.float64), r"x is float64 \[1, 4\]; give float32 \[1, 4\]"),
        ([[1, 2]], r"x is int64 \[1, 2\]; give float32 \[1, 4\]"),
    ],
)
def test_what_does_not_fit_is_refused(lab: Lab, given: object, said: str) -> None:
    loaded = edgefleet_agent.load(lab.slots.path(lab.variants[0].digest))
    with pytest.raises(InputError, match=f"^inferring with v0: {said}$"):
        loaded.infer(given)  # type: ignore[arg-type]


def test_what_the_runtime_raises_is_the_callers(lab: Lab) -> None:
    loaded = edgefleet_agent.load(lab.slots.path(lab.variants[0].digest))
    with pytest.raises(RuntimeError, match="the runtime refused"):
        loaded.infer(np.full((1, 4), REFUSE, np.float32))


def test_a_damaged_file_is_not_opened(lab: Lab) -> None:
    slot = lab.slots.path(lab.variants[0].digest)
    (slot / "v0.bin").write_text("4.0")
    with pytest.raises(IntegrityError, match=r"v0\.bin does not match its digest"):
        edgefleet_agent.load(slot)


@pytest.mark.parametrize(
    ("name", "content"), [("manifest.json", b"{"), ("manifest.json", None), ("variant.json", None)]
)
def test_a_folder_without_a_variant_says_so(lab: Lab, name: str, content: bytes | None) -> None:
    slot = lab.slots.path(lab.variants[0].digest)
    (slot / name).unlink()
    if content is not None:
        (slot / name).write_bytes(content)
    with pytest.raises(InputError, match="name a state folder of an agent"):
        edgefleet_agent.load(slot)
