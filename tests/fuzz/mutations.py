"""Damage to valid messages: in their bytes, and in their JSON with the rest left valid.

Strategies for Hypothesis; a coverage-guided fuzzer mutates by itself.
"""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

JUNK: tuple[Any, ...] = (
    None, True, -1, 0, 0.5, 1e308, float("nan"), float("inf"), 2**53, 2**63, 2**70, 10**400, "", "\0", "\ud800",
    "a\r\nb", "../../etc/passwd", "sha256:" + "g" * 64, "9" * 300, "x" * 20_000, [], [[]], {}, {"": {}},
    [0] * 5000, "eA==\n", "=====", "2026-01-01",
)  # fmt: skip


def _places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything below a JSON value."""
    found: list[tuple[Any, Any]] = []
    children: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        children = [(value, key) for key in value]
    elif isinstance(value, list):
        children = [(value, index) for index in range(len(value))]
    for container, key in children:
        found += [(container, key), *_places(container[key])]
    return found


@st.composite
def damaged_json(draw: st.DrawFn, example: bytes) -> bytes:
    """One to three values of a JSON text replaced, removed, doubled or nested."""
    content = copy.deepcopy(json.loads(example))
    for _ in range(draw(st.integers(1, 3))):
        if not (places := _places(content)):
            break
        container, key = draw(st.sampled_from(places))
        what = draw(st.sampled_from(["replace", "remove", "nest", "rename", "swap"]))
        if what == "replace":
            container[key] = copy.deepcopy(draw(st.sampled_from(JUNK)))
        elif what == "remove":
            del container[key]
        elif what == "nest":
            container[key] = [container[key]] * draw(st.integers(1, 3))
        elif what == "rename" and isinstance(container, dict):
            container[str(draw(st.sampled_from(JUNK)))] = container.pop(key)
        elif what == "swap":
            container[key] = copy.deepcopy(draw(st.sampled_from([c[k] for c, k in places if k in _keys(c)] or [None])))
    return json.dumps(content).encode("utf-8", "surrogatepass")


def _keys(container: Any) -> Any:
    return container if isinstance(container, dict) else range(len(container))


@st.composite
def damaged_bytes(draw: st.DrawFn, example: bytes) -> bytes:
    """One to four cuts, insertions, doublings and flips."""
    data = bytearray(example)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.integers(0, 20)))
        what = draw(st.sampled_from(["cut", "insert", "double", "flip", "truncate"]))
        if what == "cut":
            del data[at:end]
        elif what == "insert":
            data[at:at] = draw(st.binary(max_size=20))
        elif what == "double":
            data[at:at] = data[at:end]
        elif what == "truncate":
            del data[at:]
        elif at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
    return bytes(data)


def hostile(examples: tuple[bytes, ...]) -> st.SearchStrategy[bytes]:
    """Arbitrary bytes, and damaged forms of valid examples."""
    damages = [st.binary(max_size=2000)]
    for example in examples:
        damages.append(damaged_bytes(example))
        if example.startswith(b"{"):
            damages.append(damaged_json(example))
    return st.one_of(damages)
