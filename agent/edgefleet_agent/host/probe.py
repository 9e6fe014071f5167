"""What an environment answers before it is switched to: `python -m edgefleet_agent.host.probe SETTINGS`.

Its name and its one line of JSON are a contract between versions: an older one asks, a newer one answers.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from edgefleet import __version__
from edgefleet.errors import EdgefleetError
from edgefleet_agent.settings import load
from edgefleet_device_profiles.detect import installed_runtimes

# What the agent's processes import: an environment that lacks one of them is not switched to.
NEEDED = ("edgefleet_agent.agent", "edgefleet_agent.trust_process", "cryptography", "numpy", "paho.mqtt.client", "tuf")


def main(arguments: list[str]) -> int:
    """Print the answer; 1 when this environment cannot run an agent with these settings."""
    try:
        load(Path(arguments[0]))
        for name in NEEDED:
            importlib.import_module(name)
    except (EdgefleetError, ImportError) as error:
        print(error, file=sys.stderr)
        return 1
    runtimes = {runtime.value: version for runtime, version in installed_runtimes().items()}
    print(json.dumps({"version": __version__, "runtimes": runtimes}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
