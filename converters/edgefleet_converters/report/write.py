"""Writes the report's files into a folder beside the package, never into it: the same inputs give the same package.

An older report of the same name is written over, file by file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from edgefleet.durable import write_file
from edgefleet.errors import StorageError
from edgefleet_converters.report.html import to_html
from edgefleet_converters.report.markdown import to_markdown
from edgefleet_converters.report.model import Report

FILES: Mapping[str, Callable[[Report], str]] = MappingProxyType(
    {
        "report.json": lambda report: report.model_dump_json(indent=2) + "\n",
        "report.md": to_markdown,
        "report.html": to_html,
    }
)
"""File name → how it is drawn."""


def report_folder(package: Path) -> Path:
    """Where the report of a package lies: `digits` has its report in `digits.report`."""
    return package.with_name(f"{package.name}.report")


def write_report(report: Report, package: Path) -> Path:
    """Write all files, each one whole or not at all; gives their folder, raises StorageError."""
    folder = report_folder(package)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, draw in FILES.items():
            write_file(folder / name, draw(report).encode())
    except OSError as error:
        remedy = "make room there, or remove what is in the way"
        raise StorageError(f"writing the report {folder}", error.strerror or str(error), remedy) from error
    return folder
