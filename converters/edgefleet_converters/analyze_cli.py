"""The command line of an analysis: a table of layers, a summary for each profile, or all of it as JSON.

Computes nothing: `analysis` counts, `roofline` predicts, and the sdk's `main` prints their errors.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgefleet.errors import MissingExtraError
from edgefleet_converters.options import load_profiles, read_dims, read_shapes

if TYPE_CHECKING:
    from rich.table import Table

    from edgefleet_converters.analysis import Analysis, Fit, Layer
    from edgefleet_device_profiles.profile import Precision, Profile
    from edgefleet_device_profiles.roofline import ModelPrediction, Widths

# The names of profile.Precision, whose module the help need not wait for.
PRECISIONS = ("fp32", "fp16", "int8", "int8-dynamic", "int8-weights", "int4-weights", "int16x8")
# All columns of the table but the first, so that a name may fill the rest of the terminal.
_FIGURES_WIDTH = 65


@dataclass(frozen=True, slots=True)
class Verdict:
    """One model on one profile in one precision; no prediction where the profile states no peak."""

    profile: str
    precision: Precision
    widths: Widths
    size_bytes: int
    activation_bytes: int
    prediction: ModelPrediction | None
    fit: Fit


@click.command("analyze")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--profile", "profiles", multiple=True, required=True, help="Device profile to look at; repeat it.")
@click.option(
    "--precision", type=click.Choice(PRECISIONS), help="Default: the best that the profile's first runtime takes."
)
@click.option("--shape", "shapes", multiple=True, metavar="NAME=1,3,224,224", help="Shape of an input; repeat it.")
@click.option("--dim", "dims", multiple=True, metavar="SYMBOL=N", help="Size of a symbolic axis; repeat it.")
@click.option("--top", type=click.IntRange(min=1), metavar="N", help="Only the N slowest layers, for every profile.")
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON, sizes in bytes.")
def app(
    *,
    model: Path,
    profiles: tuple[str, ...],
    precision: str | None,
    shapes: Sequence[str],
    dims: Sequence[str],
    top: int | None,
    as_json: bool,
) -> None:
    """Say what MODEL (ONNX) costs and how fast it can at best be on each profile; nothing is converted or run.

    A predicted time is the least that a device with exactly the profile's peaks can need (roofline). Exit status 1:
    the model does not fit on a profile that was asked for.
    """
    wanted = load_profiles(profiles)
    analysis = _analysis(model, shapes, dims)
    verdicts = [_verdict(analysis, profile, precision) for profile in wanted]
    if as_json:
        click.echo(json.dumps(_document(model, analysis, verdicts), indent=2))
    else:
        _print(model, analysis, verdicts, top)
    if not all(verdict.fit.ok for verdict in verdicts):
        sys.exit(1)


def _analysis(model: Path, shapes: Sequence[str], dims: Sequence[str]) -> Analysis:
    fixed, sizes = read_shapes(shapes), read_dims(dims)
    try:
        from edgefleet_converters.analysis import analyze  # noqa: PLC0415 - it loads onnx
        from edgefleet_converters.conversion.shapes import fix_shapes  # noqa: PLC0415 - the same
        from edgefleet_converters.conversion.source import read_model  # noqa: PLC0415 - the same
    except ModuleNotFoundError as error:
        raise MissingExtraError("analysing a model", error.name or "onnx", "convert-litert") from error
    source = read_model(model)
    for note in fix_shapes(source.model, fixed, sizes):
        click.echo(f"note: {note}", err=True)
    return analyze(source)


def _verdict(analysis: Analysis, profile: Profile, asked: str | None) -> Verdict:
    from edgefleet_converters.analysis import fits  # noqa: PLC0415 - it loads onnx
    from edgefleet_device_profiles.profile import Precision  # noqa: PLC0415 - the same
    from edgefleet_device_profiles.roofline import predict, widths  # noqa: PLC0415 - the same

    precision = Precision(asked) if asked else profile.runtimes[0].precisions[0]
    bits = widths(profile, precision)
    return Verdict(
        profile.id,
        precision,
        bits,
        analysis.weight_bytes(bits),
        analysis.activation_bytes(bits),
        predict((layer.work for layer in analysis.layers), profile, precision),
        fits(analysis, profile, precision),
    )


# For people --------------------------------------------------------------------------------------------


def _print(model: Path, analysis: Analysis, verdicts: Sequence[Verdict], top: int | None) -> None:
    from rich.console import Console  # noqa: PLC0415 - only where there is a table

    console = Console()
    if top is not None or len(verdicts) == 1:
        for verdict in verdicts:
            console.print(_layer_table(analysis, verdict, top, max(console.width - _FIGURES_WIDTH, 15)))
    counted = f"{len(analysis.layers)} layers, {_scaled(analysis.macs)} MACs, {_scaled(analysis.parameters)} parameters"
    click.echo(f"model    {model}: {counted}")
    for note in analysis.notes:
        click.echo(f"note     {note}")
    if len(verdicts) == 1:
        _print_details(verdicts[0])
    else:
        console.print(_profile_table(verdicts))
    for verdict in verdicts:
        if not verdict.fit.ok:
            click.echo(f"does not fit {verdict.profile} in {verdict.precision}: {_held(verdict.fit)}")


def _print_details(verdict: Verdict) -> None:
    found, total = verdict.prediction, verdict.size_bytes + verdict.activation_bytes
    predicted = "no latency: the profile states no peak"
    if found is not None:
        predicted = f"at best {_milliseconds(found.time_s)} ms, mostly {found.bound} bound ({found.reason})"
    parts = f"weights {_bytes(verdict.size_bytes)}, activations {_bytes(verdict.activation_bytes)}"
    click.echo(f"profile  {verdict.profile}, {verdict.precision}: {predicted}")
    click.echo(f"memory   {_bytes(total)} at its peak ({parts})")
    if verdict.fit.ok:
        click.echo(f"fits     {_held(verdict.fit)}")


def _held(fit: Fit) -> str:
    return f"{fit.limit}: needs {fit.need:.4g} {fit.unit}, has {fit.have:.4g} {fit.unit}"


def _table(titles: Sequence[str], words: Sequence[str], heading: str | None = None) -> Table:
    """An empty table, narrow enough for 80 columns; columns that are no `words` hold numbers."""
    from rich import box  # noqa: PLC0415 - only where there is a table
    from rich.table import Table  # noqa: PLC0415 - the same

    table = Table(title=heading, title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    for title in titles:
        table.add_column(title, justify="left" if title in words else "right", no_wrap=True)
    return table


def _profile_table(verdicts: Sequence[Verdict]) -> Table:
    titles = ("profile", "precision", "ms at best", "bound", "weights", "activations", "fits")
    table = _table(titles, ("profile", "precision", "bound", "fits"))
    for verdict in verdicts:
        found = verdict.prediction
        predicted = ("-", "-") if found is None else (_milliseconds(found.time_s), str(found.bound))
        sizes = (_bytes(verdict.size_bytes), _bytes(verdict.activation_bytes))
        held = "yes" if verdict.fit.ok else f"no: {verdict.fit.limit}"
        table.add_row(verdict.profile, verdict.precision, *predicted, *sizes, held)
    return table


def _layer_table(analysis: Analysis, verdict: Verdict, top: int | None, longest_name: int) -> Table:
    from rich.text import Text  # noqa: PLC0415 - only where there is a table

    titles = ("layer", "operator", "MACs", "params", "bytes", "ops/B", "ms", "bound")
    table = _table(titles, ("layer", "operator", "bound"), f"{verdict.profile}, {verdict.precision}")
    for place in _shown(analysis, verdict, top):
        layer = analysis.layers[place]
        name = layer.name if len(layer.name) <= longest_name else f"…{layer.name[1 - longest_name :]}"
        # A name may hold brackets, which are no markup.
        table.add_row(Text(name), *_figures(layer, place, verdict))
    return table


def _shown(analysis: Analysis, verdict: Verdict, top: int | None) -> list[int]:
    """All layers in order, or the slowest first; without a prediction, those with the most arithmetic."""
    places = list(range(len(analysis.layers)))
    if top is None:
        return places
    slow = [layer.work.operations * 1.0 for layer in analysis.layers]
    if verdict.prediction is not None:
        slow = [layer.time_s for layer in verdict.prediction.layers]
    return sorted(places, key=lambda place: -slow[place])[:top]


def _figures(layer: Layer, place: int, verdict: Verdict) -> tuple[str, ...]:
    operator = layer.operators[0] + (f" +{len(layer.operators) - 1}" if len(layer.operators) > 1 else "")
    moved = verdict.widths.activation_bytes(layer.work.activations, layer.work.fixed_activation_bytes)
    figures: tuple[str, ...] = ("-", "-", "-")
    if verdict.prediction is not None:
        found = verdict.prediction.layers[place]
        figures = (f"{found.intensity:.1f}", _milliseconds(found.time_s), found.bound)
    return (operator, _scaled(layer.macs), _scaled(layer.parameters), _bytes(moved), *figures)


def _milliseconds(time_s: float) -> str:
    return f"{time_s * 1e3:.3g}" if time_s == 0 or time_s >= 1e-6 else "<0.001"


def _scaled(number: int) -> str:
    """With three digits and a decimal prefix."""
    for limit, prefix in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if number >= limit:
            return f"{number / limit:.3g}{prefix}"
    return str(number)


def _bytes(number: int) -> str:
    """As the profiles have them: in KiB or MiB."""
    return f"{number / 2**20:.3g} MiB" if number >= 1000 * 2**10 else f"{number / 2**10:.3g} KiB"


# For programs ------------------------------------------------------------------------------------------


def _document(model: Path, analysis: Analysis, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    return {
        "model": str(model),
        "macs": analysis.macs,
        "parameters": analysis.parameters,
        "notes": list(analysis.notes),
        "layers": [_described(layer) for layer in analysis.layers],
        "profiles": [_judged(analysis, verdict) for verdict in verdicts],
    }


def _described(layer: Layer) -> dict[str, Any]:
    return {
        "name": layer.name,
        "operators": list(layer.operators),
        "macs": layer.macs,
        "parameters": layer.parameters,
        "operations": layer.work.operations,
    }


def _judged(analysis: Analysis, verdict: Verdict) -> dict[str, Any]:
    found, bits = verdict.prediction, verdict.widths
    works = [layer.work for layer in analysis.layers]
    layers: list[dict[str, Any]] = [
        {
            "weight_bytes": bits.weight_bytes(work.weights, work.fixed_weight_bytes),
            "activation_bytes": bits.activation_bytes(work.activations, work.fixed_activation_bytes),
        }
        for work in works
    ]
    if found is not None:
        for entry, predicted in zip(layers, found.layers, strict=True):
            entry |= {"ms": predicted.time_s * 1e3, "bound": predicted.bound, "intensity": predicted.intensity}
    return {
        "profile": verdict.profile,
        "precision": verdict.precision,
        "size_bytes": verdict.size_bytes,
        "activation_bytes": verdict.activation_bytes,
        "memory_bytes": verdict.size_bytes + verdict.activation_bytes,
        "ms": found.time_s * 1e3 if found is not None else None,
        "bound": found.bound if found is not None else None,
        "reason": found.reason if found is not None else "the profile states no peak",
        "fit": asdict(verdict.fit),
        "layers": layers,
    }
