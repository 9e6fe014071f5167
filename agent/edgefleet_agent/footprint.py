"""Memory as the kernel apportions it: what a process takes, and what there is left, from /proc.

It judges nothing, and knows no process by itself. None is what cannot be read: a process that is gone, a kernel
without smaps_rollup.
"""

from __future__ import annotations

from pathlib import Path

PROC = Path("/proc")
"""Our own processes are in our own /proc, wherever the machine's sensors are read."""


def pss_bytes(pid: int, proc: Path = PROC) -> int | None:
    """Proportional set size: shared pages count by their share (proc(5), smaps_rollup)."""
    try:
        for line in (proc / str(pid) / "smaps_rollup").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "Pss":
                return int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def available_bytes(proc: Path = PROC) -> int | None:
    """Memory that could be had without swapping (proc(5), MemAvailable)."""
    try:
        for line in (proc / "meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None
