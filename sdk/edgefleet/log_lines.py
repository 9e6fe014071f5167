"""What a process of ours logs: one line for each record, on stderr."""

from __future__ import annotations

import logging

from edgefleet.errors import one_line


class LogLine(logging.Formatter):
    """One line for each record, whatever devices and servers put into it; a traceback follows on its own lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the base's name
        """The line."""
        record.message = one_line(record.message)
        return super().formatMessage(record)


def to_stderr() -> None:
    """Have this process log so, from INFO upwards, with time and the logger's name."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogLine("%(asctime)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # What it warns of, the error that follows says in our words.
    logging.getLogger("tuf").setLevel(logging.ERROR)
