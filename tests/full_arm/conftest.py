"""Where emulation cannot be had these tests are left out, and the last lines say so aloud."""

from __future__ import annotations

import pytest

from full_arm import userland


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if (reason := userland.missing()) is not None:
        config.stash[REASON] = reason
        for item in items:
            item.add_marker(pytest.mark.skip(reason=f"no ARM emulation: {reason}"))


REASON = pytest.StashKey[str]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if reason := config.stash.get(REASON, None):
        terminalreporter.write_line(f"!!! NOTHING WAS PROVED ON ARM: {reason} !!!", red=True)
