"""What every test may use. Services that are missing skip a test with the reason, or fail it in CI."""

from __future__ import annotations

import os
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from faults import table

REQUIRE_VARIABLE = "EDGEFLEET_REQUIRE_SERVICES"
# Set by pytest-xdist in each of its workers.
WORKER_VARIABLE = "PYTEST_XDIST_WORKER"
SECONDS_A_TEST = {
    "demo/test_demo": 15.0,
    "converters/test_packaging": 5.0,
    "converters/test_silent_failures": 3.0,
    "faults/": 5.0,
    "fleet/test_broker_access": 0.2,
    "fleet/": 7.0,
    "agent/test_worker_process": 0.6,
    "agent/test_renewal": 1.0,
    "agent/test_agent_process": 2.0,
    "converters/test_convert_": 0.6,
    "converters/test_cache": 1.0,
    "converters/test_environments": 1.5,
    "converters/test_package_bad_input": 0.5,
}
"""Start of a test's path below this folder → about how long a test there takes; of two that fit, the first counts."""
OTHER_SECONDS_A_TEST = 0.04

# An example takes as long as it takes: a machine that is busy is no fault of what is tested.
settings.register_profile("further", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("further")
# With it, what a run finds is what was changed since the last one; without it, hypothesis looks further every time.
settings.register_profile("same", settings.get_profile("further"), derandomize=True)


def need(present: bool, what: str) -> None:
    """Skip when `what` is absent; fail instead where the environment promises that it is there."""
    if present:
        return
    if os.environ.get(REQUIRE_VARIABLE):
        pytest.fail(f"{what} is required here ({REQUIRE_VARIABLE} is set) and is absent")
    pytest.skip(f"{what} is absent")


@pytest.fixture(scope="session", name="run_folder")
def _run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of this run of the tests, which all of its workers share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if WORKER_VARIABLE in os.environ else own


@pytest.fixture(scope="session", autouse=True)
def _own_cache(run_folder: Path) -> Iterator[None]:
    """No test uses, or fills, the person's own cache; what one worker has made there, the others find."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEFLEET_CACHE", str(run_folder / "cache"))
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first: a worker takes whole files, and none shall be left alone with a long one."""
    seconds: defaultdict[Path, float] = defaultdict(float)
    for item in items:
        seconds[item.path] += _seconds(item.path)
    items.sort(key=lambda item: seconds[item.path], reverse=True)


def _seconds(path: Path) -> float:
    here = path.as_posix().removeprefix(f"{Path(__file__).parent.as_posix()}/")
    return next((seconds for start, seconds in SECONDS_A_TEST.items() if here.startswith(start)), OTHER_SECONDS_A_TEST)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of faults, where some were tried."""
    reports = [each for kind in ("passed", "failed", "error") for each in terminalreporter.stats.get(kind, [])]
    for line in table.lines(reports):
        terminalreporter.write_line(line)


@pytest.fixture(name="need")
def _need() -> Callable[[bool, str], None]:
    return need


@pytest.fixture(name="mount_disk")
def _mount_disk() -> Iterator[Callable[[Path, int], Path]]:
    """Makes a folder that is a file system of its own, of so many MiB, until the test has ended."""
    mounted: list[Path] = []

    def mount(folder: Path, size_mib: int) -> Path:
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(folder)]
        need(subprocess.run(command, check=False, capture_output=True).returncode == 0, "the right to mount a tmpfs")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)
