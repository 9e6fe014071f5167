"""A real docker-registry on a free port of this machine, with its files in a folder of the test's."""

from __future__ import annotations

import json
import queue
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from patience import PATIENCE_S

PROGRAM = shutil.which("docker-registry")
USER, PASSWORD = "anna", "stick-and-stone"
_HTPASSWD = f"{USER}:$2b$05$vefYG.slMXak087ksebwMeFEEOVCBKt3n7jaSSDGbsBnTC7VM6dM.\n"


@contextmanager
def registry(folder: Path, *, password: bool = False) -> Iterator[str]:
    """Serve until the block ends; yields `127.0.0.1:PORT`."""
    assert PROGRAM is not None
    folder.mkdir(parents=True)
    (folder / "htpasswd").write_text(_HTPASSWD)
    settings = {
        "version": 0.1,
        "log": {"level": "info", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "files")}},
        "http": {"addr": "127.0.0.1:0"},
        **({"auth": {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}} if password else {}),
    }
    (folder / "config.yml").write_text(json.dumps(settings))
    process = subprocess.Popen(
        [PROGRAM, "serve", str(folder / "config.yml")], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    addresses: queue.Queue[str] = queue.Queue()
    reader = threading.Thread(target=_drain, args=(process.stderr, addresses), daemon=True)
    reader.start()
    try:
        yield addresses.get(timeout=PATIENCE_S)
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE_S)
        reader.join(timeout=PATIENCE_S)
        process.stderr.close()


def _drain(log: IO[str], addresses: queue.Queue[str]) -> None:
    """Read the log to its end, so that the registry never waits for us."""
    for line in log:
        if found := re.search(r"listening on (127\.0\.0\.1:\d+)", line):
            addresses.put(found.group(1))
