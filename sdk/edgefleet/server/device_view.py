"""`edgefleet fleet show`: one device in 80 columns: what it runs, how long that takes, what goes in and comes out.

Figures that cannot be given say why. It reads the store, and judges nothing: whether inputs drift is for people to see.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgefleet import spans
from edgefleet.errors import InputError, one_line

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from edgefleet.server.store import DeviceRow, DeviceTelemetry, Store, TensorTotals
    from edgefleet.spans import Span

NEWEST_EVENTS = 10
QUANTILES = (0.5, 0.9, 0.99)


def device_view(store: Store, device: str) -> Iterator[RenderableType]:
    """Lines and tables for a rich console; raises InputError for a device that never said hello."""
    from rich.text import Text  # noqa: PLC0415 - a server needs no rich

    row = store.device(device)
    if row is None:
        raise InputError(f"showing {device}", "it never said hello here", "look at: edgefleet fleet list")
    # Text: what a device says of itself is no markup.
    yield Text("\n".join(_lines(row, store)))
    if row.digest is not None:
        seen = store.telemetry(device, row.digest)
        yield Text("\n".join(("", *_totals(seen))))
        yield from _durations(seen.span)
        newest = store.tensors(device, row.digest, spans.SPAN_S)
        yield _tensors(newest, store.tensors(device, row.digest))
    if events := store.events(device)[-NEWEST_EVENTS:]:
        yield Text("\n".join(f"{kind}: {one_line(text)}" for kind, text in events))


def _lines(row: DeviceRow, store: Store) -> Iterator[str]:
    presence = (
        "online" if row.online else time.strftime("offline, heard of %Y-%m-%d %H:%M", time.localtime(row.seen_at))
    )
    simulated = f", simulated: {one_line(row.simulated_reason or '')}" if row.simulated else ""
    yield f"{row.device}: {one_line(row.profile or 'no profile')}{simulated}; {presence}"
    yield f"{row.state or 'waiting'}, generation {row.generation}{': ' + one_line(row.reason) if row.reason else ''}"
    if (denied := store.denied().get(row.device)) is not None:
        yield f"no deployments: {one_line(denied)}"
    yield f"pulled {row.pulled_bytes / 1000:.1f} kB, {row.bad_blocks} damaged blocks asked for again"
    if row.digest is None:
        yield "it runs no variant"
        return
    package = store.package_of(row.index_digest) if row.index_digest is not None else None
    of = "" if package is None else f" of {package[0]}@{package[1]}"
    yield f"runs {one_line(row.variant or '–')}{of}\n  {row.digest}"


def _totals(seen: DeviceTelemetry) -> Iterator[str]:
    accuracy = f", {seen.correct / seen.labelled:.2%} of {seen.labelled} right" if seen.labelled else ""
    yield f"in all: {seen.inferences} runs, {seen.errors} errors, {seen.windows} windows{accuracy}"
    span = seen.span
    rate = "" if span.achieved_per_s is None else f", {span.achieved_per_s:.4g} runs a second"
    yield f"newest: {span.duration_s:.0f} s in {span.windows} windows{rate}"
    if (energy := span.energy) is not None and energy.watts is not None:
        per_run = spans.energy_per_inference(energy)
        why = "" if energy.reason is None else f" ({one_line(energy.reason)})"
        yield f"power: {energy.watts:.4g} W {energy.source}, {one_line(energy.scope)}{why}"
        yield f"energy a run: {f'– ({per_run.reason})' if per_run.value is None else f'{per_run.value * 1000:.4g} mJ'}"


def _durations(span: Span) -> Iterator[RenderableType]:
    rows = {"preprocess": span.preprocess, "inference": span.inference, "end to end": span.end_to_end}
    table = _table("newest, ms", *(f"p{q * 100:.0f}" for q in QUANTILES))
    missing: dict[str, None] = {}
    for name, sketch in rows.items():
        figures = [spans.percentile(sketch, q) for q in QUANTILES]
        missing |= {figure.reason: None for figure in figures if figure.reason is not None}
        table.add_row(name, *(_number(None if each.value is None else each.value * 1000) for each in figures))
    yield table
    if missing:
        yield "; ".join(missing)


def _tensors(newest: list[TensorTotals], kept: list[TensorTotals]) -> Table:
    """The newest beside everything that is kept; the mean's shift is in standard deviations of the latter."""
    from rich.text import Text  # noqa: PLC0415

    before = {(tensor.side, tensor.name): tensor for tensor in kept}
    table = _table("tensor", "mean", "kept", "shift", "std", "kept", "min", "max", "not finite")
    for tensor in newest:
        other = before[tensor.side, tensor.name]
        table.add_row(
            Text(f"{tensor.side} {one_line(tensor.name)}"),
            _number(tensor.mean), _number(other.mean), _shift(tensor, other), _number(tensor.std), _number(other.std),
            _number(tensor.low), _number(tensor.high), str(tensor.not_finite),
        )  # fmt: skip
    return table


def _shift(newest: TensorTotals, kept: TensorTotals) -> str:
    if newest.mean is None or kept.mean is None or not kept.std or not math.isfinite(newest.mean - kept.mean):
        return "–"
    return f"{(newest.mean - kept.mean) / kept.std:+.2f}"


def _table(*headings: str) -> Table:
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(*headings, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
