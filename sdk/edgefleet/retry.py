"""How long to wait after the n-th failure in a row. Pure; jitter is the caller's business."""

from __future__ import annotations

# Far above every cap in use: a power of two beyond it would only overflow.
_MOST_DOUBLINGS = 16


def backoff_s(failures: int, first_s: float, cap_s: float) -> float:
    """Seconds after `failures` ≥ 1 failures in a row: `first_s`, doubling, at most `cap_s`."""
    return float(min(cap_s, first_s * 2.0 ** min(max(failures - 1, 0), _MOST_DOUBLINGS)))
