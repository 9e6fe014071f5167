"""What every power meter does. The port only; the meters lie beside it."""

from __future__ import annotations

from typing import Protocol

from edgefleet.protocol.messages import EstimatedPower, MeasuredPower


class Meter(Protocol):
    """Mean power between two calls of `window`."""

    def window(self) -> MeasuredPower | EstimatedPower:
        """Mean power since the last call (or since the meter was opened); never raises OSError."""
        ...
