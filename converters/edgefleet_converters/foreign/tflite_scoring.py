"""Runs a .tflite file over samples in tflite-runtime, in the environment of that runtime.

Knows the file's own layout only, and needs nothing but numpy 1 and tflite-runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tflite_runtime.interpreter import Interpreter


def run(job: Mapping[str, Any]) -> dict[str, object]:
    """Every sample of `feeds` once, then the first `repeats` of them in each further pass; outputs to an .npz.

    The job: file, feeds (.npz, by input name, [N, *the file's input shape]), outputs (path), repeats, passes. The
    answer: runtime_version, peak_rss_bytes. Raises ValueError or RuntimeError when the runtime refuses the file.
    """
    interpreter = Interpreter(model_path=job["file"], num_threads=1)
    runner = interpreter.get_signature_runner()
    with np.load(job["feeds"], allow_pickle=False) as stored:
        feeds = dict(stored)
    count = len(next(iter(feeds.values())))
    places = [*range(count), *list(range(min(job["repeats"], count))) * (job["passes"] - 1)]
    found: dict[str, list[Any]] = {}
    for place in places:
        for name, array in runner(**{name: stack[place] for name, stack in feeds.items()}).items():
            found.setdefault(name, []).append(np.array(array))
    stacks = {name: np.stack(arrays) for name, arrays in found.items()}
    np.savez(job["outputs"], **stacks)  # type: ignore[arg-type] # mypy takes them for allow_pickle, which numpy 1 lacks
    return {"runtime_version": version("tflite-runtime"), "peak_rss_bytes": _peak_rss_bytes()}


def _peak_rss_bytes() -> int:
    """VmHWM of /proc/self/status, in KiB there."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
