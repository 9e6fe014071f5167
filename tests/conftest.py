"""What every test may use. Services that are missing skip a test with the reason, or fail it in CI."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from faults import table

REQUIRE_VARIABLE = "EDGEFLEET_REQUIRE_SERVICES"


def need(present: bool, what: str) -> None:
    """Skip when `what` is absent; fail instead where the environment promises that it is there."""
    if present:
        return
    if os.environ.get(REQUIRE_VARIABLE):
        pytest.fail(f"{what} is required here ({REQUIRE_VARIABLE} is set) and is absent")
    pytest.skip(f"{what} is absent")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test uses, or fills, the person's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEFLEET_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of faults, where some were tried."""
    reports = [each for kind in ("passed", "failed", "error") for each in terminalreporter.stats.get(kind, [])]
    for line in table.lines(reports):
        terminalreporter.write_line(line)


@pytest.fixture(name="need")
def _need() -> Callable[[bool, str], None]:
    return need
