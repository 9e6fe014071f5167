"""`edgefleet profiles list|show|validate|detect`: the catalogue of devices, and which of them this machine is.

Decides nothing: `catalogue` reads, `detect` finds out, and `fit` says which profile fits and why.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgefleet.errors import InputError

if TYPE_CHECKING:
    from edgefleet_device_profiles.detect import MachineFacts
    from edgefleet_device_profiles.fit import Fit
    from edgefleet_device_profiles.profile import Profile

_DOING = "reading the device profiles"

_folder = click.option(
    "--profiles",
    "folder",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Your own profiles, before the built-in ones. Default: $EDGEFLEET_PROFILES.",
)
_as_json: Callable[[Callable[..., None]], Callable[..., None]] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON."
)


@click.group("profiles")
def app() -> None:
    """Known devices, and which of them this machine is."""


@app.command("list")
@_folder
@_as_json
def list_(folder: Path | None, *, as_json: bool) -> None:
    """List the profiles."""
    profiles = _all(folder)
    if as_json:
        _print_json([profile.model_dump(mode="json") for profile in profiles])
        return
    rows = [
        (
            profile.id,
            profile.cpu.architecture,
            f"{profile.cpu.cores} × {profile.cpu.clock_mhz} MHz",
            ", ".join(allowed.name for allowed in profile.runtimes),
            profile.title,
        )
        for profile in profiles
    ]
    _print_columns([("profile", "architecture", "processor", "runtimes", "device"), *rows])


@app.command("show")
@click.argument("name")
@_folder
@_as_json
def show(name: str, folder: Path | None, *, as_json: bool) -> None:
    """Show one profile with all that it inherits."""
    from edgefleet_device_profiles import catalogue  # noqa: PLC0415

    with _one_line():
        profile = catalogue.load(name, folder)
    if as_json:
        _print_json(profile.model_dump(mode="json"))
    else:
        _print_columns(list(_flat(profile.model_dump(mode="json", exclude_none=True))))


@app.command("validate")
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
def validate(files: tuple[Path, ...]) -> None:
    """Check files of your own; they may extend their neighbours and the built-in profiles."""
    from edgefleet_device_profiles import catalogue  # noqa: PLC0415

    wrong: list[catalogue.InvalidProfileError] = []
    for path in files:
        try:
            catalogue.read(path)
        except catalogue.InvalidProfileError as error:
            wrong.append(error)
        else:
            click.echo(f"{path} is valid")
    for other in wrong[1:]:
        click.echo(str(other))
    if wrong:
        found = str(wrong[0]) + (f", and {len(wrong) - 1} more, named above" if wrong[1:] else "")
        raise InputError("validating device profiles", found, "correct what is named") from wrong[0]


@app.command("detect")
@_folder
@_as_json
def detect_(folder: Path | None, *, as_json: bool) -> None:
    """Say what this machine is, which profiles fit it, and why."""
    from edgefleet_device_profiles.detect import detect  # noqa: PLC0415
    from edgefleet_device_profiles.fit import fits  # noqa: PLC0415

    facts = detect()
    found = fits(_all(folder), facts)
    if as_json:
        _print_json({"machine": facts.model_dump(mode="json"), "profiles": [_fit_row(fit) for fit in found]})
        return
    _print_machine(facts)
    _print_fits(found)


def _all(folder: Path | None) -> list[Profile]:
    from edgefleet_device_profiles import catalogue  # noqa: PLC0415

    with _one_line():
        return [catalogue.load(name, folder) for name in catalogue.names(folder)]


@contextmanager
def _one_line() -> Iterator[None]:
    """Translate the catalogue's errors."""
    from edgefleet_device_profiles.catalogue import InvalidProfileError, UnknownProfileError  # noqa: PLC0415

    try:
        yield
    except UnknownProfileError as error:
        raise InputError(_DOING, str(error), "give one of these names") from error
    except InvalidProfileError as error:
        raise InputError(_DOING, str(error), "correct the file or the folder's name") from error


def _print_machine(facts: MachineFacts) -> None:
    runtimes = (f"{name} {version}" for name, version in facts.runtimes.items())
    clock = "clock not told" if facts.max_clock_mhz is None else f"{facts.max_clock_mhz} MHz"
    _print_columns(
        [
            ("board", facts.board or "not told"),
            ("processor", f"{facts.cpu_model}, {facts.architecture}, {facts.cores} cores, {clock}"),
            ("instruction sets", ", ".join(facts.isa) or "none that matter"),
            ("memory", f"{facts.memory_mib} MiB"),
            ("accelerators", ", ".join(facts.accelerators) or "none found"),
            ("system", facts.os),
            ("runtimes", ", ".join(runtimes) or "none installed"),
        ]
    )


def _print_fits(found: Sequence[Fit]) -> None:
    near = [fit for fit in found if fit.evidence is not None]
    click.echo("\nFits, the nearest first:" if near else "\nNo profile fits.")
    _print_columns([(f"  {fit.profile}", fit.reason) for fit in near])
    click.echo("\nDoes not fit:")
    _print_columns([(f"  {fit.profile}", fit.reason) for fit in found if fit.evidence is None])


def _fit_row(fit: Fit) -> dict[str, str | None]:
    evidence = None if fit.evidence is None else fit.evidence.name.lower()
    return {"profile": fit.profile, "evidence": evidence, "reason": fit.reason}


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """A table as dotted names; a list of tables goes by their `name`, what is empty is left out."""
    for key, item in value.items():
        if isinstance(item, dict):
            yield from _flat(item, f"{prefix}{key}.")
        elif isinstance(item, list) and item and isinstance(item[0], dict):
            for row in item:
                yield from _flat({k: v for k, v in row.items() if k != "name"}, f"{prefix}{key}.{row['name']}.")
        elif key == "sources":
            yield from ((f"{prefix}{key}", source) for source in item)
        elif text := _cell(item):
            yield f"{prefix}{key}", text


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(value) if isinstance(value, list) else str(value)


def _print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Cells below each other, the last as long as it is."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]) - 1)] if rows else []
    for row in rows:
        click.echo("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]))


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
