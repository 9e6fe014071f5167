"""A wrong clock for a process that a test starts: what to put in front of its command.

Monotonic time goes on as it is, as with a kernel, where a test changes the clock while the process runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

# For Python's own clock: libfaketime 0.9.10 cannot leave monotonic time alone without breaking clock_nanosleep.
_SITE = """
import time

_real = time.time


def _time():
    with open({file!r}) as stream:
        return _real() + float(stream.read() or 0)


time.time = _time
"""


def behind(need: Callable[[bool, str], None], clock: str) -> tuple[str, ...]:
    """`clock` as in faketime(1), OpenSSL's too: `-365d` from now, or `@2021-03-01 00:00:00` at its start.

    The library rather than the command: what is stopped at the end is the process itself.
    """
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    need(library is not None, "libfaketime (a system package)")
    return ("env", f"LD_PRELOAD={library}", f"FAKETIME={clock}")


def following(folder: Path) -> tuple[tuple[str, ...], Path]:
    """(prefix, file): the process adds the seconds in the file to Python's clock, whenever it looks."""
    file = folder / "clock"
    file.write_text("0")
    (folder / "sitecustomize.py").write_text(_SITE.format(file=str(file)))
    before = os.environ.get("PYTHONPATH")
    return ("env", f"PYTHONPATH={folder}" + (f":{before}" if before else "")), file
