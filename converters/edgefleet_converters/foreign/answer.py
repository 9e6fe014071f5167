"""Runs one function of a script beside it and leaves its answer: `child`'s other side in a foreign environment.

Imports nothing of this project, and the scripts beside it do not either: only what their environment has.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path


def main(function: str, answer: Path) -> None:
    """Read the job (JSON) from standard input, call `script:function` on it, write the outcome."""
    script, name = function.split(":")
    try:
        result = getattr(importlib.import_module(script), name)(json.load(sys.stdin))
        outcome: dict[str, object] = {"result": json.dumps(result)}
    except Exception as error:  # noqa: BLE001 - toolchains raise anything; the parent says it in one line
        first = (str(error).strip().splitlines() or [""])[0]
        found = f"{type(error).__name__}: {first}"
        outcome = {"failure": {"kind": "", "doing": "", "found": found, "remedy": ""}}
    answer.write_text(json.dumps(outcome), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
