"""What every operator's function is: the one signature of the table's entries.

Kept apart so that a family's module need not import the table it is part of.
"""

from __future__ import annotations

from collections.abc import Callable

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.graph import Node

Lowering = Callable[[Node, Emitter], None]
"""Writes one node: every wanted output gets its value by `into`. Raises NotLowerableError for an unknown form."""
