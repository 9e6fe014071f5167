"""The command line of packaging: options, progress on stderr, and a table of what was made at the end.

Decides nothing: `packaging.package` does the work, and the sdk's `main` prints its errors.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

import click

if TYPE_CHECKING:
    from rich.progress import TaskID

    from edgefleet_converters.packaging import PackageResult
    from edgefleet_converters.progress import Event
    from edgefleet_device_profiles.profile import Profile

_FILE = click.Path(path_type=Path)


@click.command("package")
@click.argument("model", type=_FILE)
@click.option("--profile", "profiles", multiple=True, required=True, help="Device profile to package for; repeat it.")
@click.option("--calibration", type=_FILE, required=True, help=".npz with x: float32 [N, *input shape without batch].")
@click.option("--evaluation", type=_FILE, required=True, help=".npz with x, and y: class numbers [N].")
@click.option("--name", required=True, help="Name of the package.")
@click.option("--version", required=True, help="Version of the package.")
@click.option("--release", type=click.IntRange(min=1), required=True, help="Release counter; must only ever grow.")
@click.option("-o", "--output", "folder", type=_FILE, required=True, help="Folder to write; must not exist yet.")
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0, max=1),
    default=0.01,
    show_default=True,
    help="Largest loss of top-1 accuracy against the fp32 model that may ship.",
)
def app(
    *,
    model: Path,
    profiles: tuple[str, ...],
    calibration: Path,
    evaluation: Path,
    name: str,
    version: str,
    release: int,
    folder: Path,
    max_drop: float,
) -> None:
    """Convert MODEL (ONNX) for every profile, measure each variant as shipped, and write the package."""
    from edgefleet.errors import MissingExtraError

    try:
        from edgefleet_converters.packaging import Request, package
    except ModuleNotFoundError as error:
        raise MissingExtraError("packaging a model", error.name or "onnx", "convert") from error
    request = Request(
        model=model,
        profiles=tuple(_profile(wanted) for wanted in dict.fromkeys(profiles)),
        calibration=calibration,
        evaluation=evaluation,
        name=name,
        version=version,
        release=release,
        folder=folder,
        max_drop=max_drop,
    )
    with _Display() as display:
        result = package(request, display.show)
    _print_table(result)


def _profile(name: str) -> Profile:
    from edgefleet.errors import InputError
    from edgefleet_device_profiles import catalogue

    try:
        return catalogue.load(name)
    except catalogue.UnknownProfileError as error:
        known = ", ".join(catalogue.names())
        raise InputError("reading the profiles", f"there is no {name!r}", f"choose from: {known}") from error


class _Display:
    """A progress bar per stage on stderr, and warnings above them."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.description:<8}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[text]}"),
            console=Console(stderr=True),
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._progress.stop()

    def show(self, event: Event) -> None:
        """Draw one event."""
        if event.stage == "warning":
            self._progress.console.print(f"warning: {event.text}", style="yellow", highlight=False)
            return
        # A stage without jobs is done as soon as the next one starts.
        total, done = (event.total, event.done) if event.total else (1, 1)
        if event.stage not in self._tasks:
            self._tasks[event.stage] = self._progress.add_task(event.stage, total=total, text="")
        self._progress.update(self._tasks[event.stage], completed=done, total=total, text=event.text)


def _print_table(result: PackageResult) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    # Narrow enough for 80 columns; reasons go below it, where a terminal may wrap them.
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False, collapse_padding=True)
    for title in ("variant", "runtime", "precision", "size", "top-1", "Δ fp32", "agree", "verdict"):
        left = title in ("variant", "runtime", "precision", "verdict")
        table.add_column(title, justify="left" if left else "right", no_wrap=True)
    for outcome in result.variants:
        planned, score = outcome.planned, outcome.score
        figures = ("-", "-", "-")
        if score is not None:
            drop = score.value - score.reference
            figures = (f"{score.value:.2%}", f"{drop:+.2%}", f"{score.agreement:.2%}")
        size = f"{outcome.size_bytes / 1000:.0f} kB"
        verdict = "ships" if outcome.verdict.accepted else "refused"
        table.add_row(planned.name, planned.runtime, planned.precision, size, *figures, verdict)
    Console().print(table)
    for outcome in result.variants:
        if not outcome.verdict.accepted:
            click.echo(f"refused  {outcome.planned.name}: {outcome.verdict.reason}")
    click.echo(f"package  {result.folder}")
    click.echo(f"digest   {result.digest}")
