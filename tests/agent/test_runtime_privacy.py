"""Runtimes that would report over the network are told not to before they are imported."""

from __future__ import annotations

import os
import subprocess
import sys

PROBE = """
import importlib.abc, os, sys
class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            print(os.environ.get("ORT_DISABLE_TELEMETRY"))
        return None
sys.meta_path.insert(0, Watch())
import edgefleet_agent.runtimes.onnxruntime
"""


def test_onnx_runtime_is_told_not_to_report_before_it_is_imported() -> None:
    free = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", PROBE], env=free, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"]
