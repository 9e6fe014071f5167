"""The command line of packaging: options, progress on stderr, and a table of what was made at the end.

Decides nothing: `packaging.package` does the work, and the sdk's `main` prints its errors.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click

from edgefleet_converters.options import load_profiles, read_dims, read_shapes

if TYPE_CHECKING:
    from rich.progress import TaskID

    from edgefleet_converters.packaging import PackageResult
    from edgefleet_converters.progress import Event
    from edgefleet_device_profiles.profile import Profile

_FILE = click.Path(path_type=Path)
# The names of choose.Objective, whose module takes longer to load than the help.
OBJECTIVES = ("latency", "size", "energy", "accuracy")


@click.command("package")
@click.argument("model")
@click.option("--profile", "profiles", multiple=True, required=True, help="Device profile to package for; repeat it.")
@click.option("--calibration", required=True, help="Samples for int8: .npz, .npy, a folder of images, module:function.")
@click.option("--evaluation", required=True, help="Held-out samples, with labels where there are any; the same kinds.")
@click.option("--labels", type=_FILE, help="Labels of the evaluation samples in a file of their own: .npy, .csv, .txt.")
@click.option("--input-spec", type=_FILE, help="TOML: layout, normalisation and size of image inputs, class names.")
@click.option("--shape", "shapes", multiple=True, metavar="NAME=1,3,224,224", help="Shape of an input; repeat it.")
@click.option("--dim", "dims", multiple=True, metavar="SYMBOL=N", help="Size of a symbolic axis; repeat it.")
@click.option("--trust", is_flag=True, help="Let code inside the model run: pickles, Keras Lambda layers.")
@click.option("--name", required=True, help="Name of the package.")
@click.option("--version", required=True, help="Version of the package.")
@click.option("--release", type=click.IntRange(min=1), required=True, help="Release counter; must only ever grow.")
@click.option("-o", "--output", "folder", type=_FILE, required=True, help="Folder to write; must not exist yet.")
@click.option(
    "--metric",
    default="auto",
    show_default=True,
    help="top1, top5, auc, rmse, mae, r2, agreement, sqnr, or NAME=module:function.",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0),
    default=0.01,
    show_default=True,
    help="Largest loss of the metric against the fp32 model that may ship.",
)
@click.option(
    "--min-sqnr",
    type=float,
    default=20.0,
    show_default=True,
    help="Least signal to noise, in dB, of the worst slice of an output that no metric looks at.",
)
@click.option(
    "--objective",
    type=click.Choice(OBJECTIVES),
    default="latency",
    show_default=True,
    help="What the first choice of each runtime is best at.",
)
@click.option("--explain", "explained", multiple=True, metavar="PROFILE", help="Say why a device gets what it gets.")
@click.option(
    "--jobs", type=click.IntRange(min=1), help="Conversions and runs at a time; one per processor if not given."
)
@click.option("--cache/--no-cache", "cached", default=True, show_default=True, help="Use what earlier runs have made.")
def app(
    profiles: tuple[str, ...],
    shapes: tuple[str, ...],
    dims: tuple[str, ...],
    max_drop: float,
    min_sqnr: float,
    objective: str,
    explained: tuple[str, ...],
    **options: Any,
) -> None:
    """Convert MODEL for every profile, measure each variant as shipped, and write the package and a report.

    MODEL is an .onnx or .tflite file, a Keras file or SavedModel folder, a torch.export program or module:function, or
    a fitted scikit-learn estimator.
    """
    from edgefleet.errors import MissingExtraError

    try:
        from edgefleet_converters.cache import user_cache
        from edgefleet_converters.choose import Objective, explain
        from edgefleet_converters.gate import Limits
        from edgefleet_converters.intake import Asked
        from edgefleet_converters.packaging import Request, package
        from edgefleet_converters.progress import local_executor
    except ModuleNotFoundError as error:
        raise MissingExtraError("packaging a model", error.name or "onnx", "convert") from error
    jobs, cached, trust = options.pop("jobs"), options.pop("cached"), options.pop("trust")
    request = Request(
        profiles=load_profiles(profiles),
        limits=Limits(max_drop=max_drop, min_sqnr_db=min_sqnr),
        objective=Objective(objective),
        asked=Asked(shapes=read_shapes(shapes), dims=read_dims(dims), trust=trust),
        **options,
    )
    wanted = [_among(request.profiles, name) for name in explained]
    # A plain kill and a closed terminal must end the children too, as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        # nohup has it ignored, and so it stays.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    with _Display() as display, local_executor(jobs) as executor:
        result = package(request, display.show, executor=executor, cache=user_cache() if cached else None)
    _print(result)
    for profile in wanted:
        for line in explain(profile, result.decisions, request.objective):
            click.echo(line)


def _among(profiles: Sequence[Profile], name: str) -> Profile:
    from edgefleet.errors import InputError

    for profile in profiles:
        if profile.id == name:
            return profile
    raise InputError("choosing what to explain", f"{name!r} is not packaged for", f"add --profile {name}")


class _Display:
    """A progress bar per stage on stderr, and warnings above them."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.table import Column

        self._progress = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True, min_width=11)),
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


def _print(result: PackageResult) -> None:
    from rich.console import Console

    from edgefleet_converters.report.terminal import print_report

    print_report(result.report, Console())
    click.echo(f"report   {result.report_folder}")
