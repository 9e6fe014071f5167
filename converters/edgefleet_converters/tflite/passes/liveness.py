"""Which nodes some output needs.

Knows nothing of what they compute.
"""

from __future__ import annotations

from collections.abc import Iterable

from edgefleet_converters.tflite.graph import Node


def needed(nodes: Iterable[Node], outputs: Iterable[str]) -> list[Node]:
    """The nodes that the outputs depend on, in their order."""
    wanted, kept = set(outputs), []
    for node in reversed(list(nodes)):
        if wanted.intersection(node.outputs):
            wanted.update(name for name in node.inputs if name)
            kept.append(node)
    return kept[::-1]
