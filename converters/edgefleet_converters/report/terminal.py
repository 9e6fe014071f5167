"""The report as a table for a terminal of 80 columns, reasons below it.

Long texts wrap in the lines below the table and never in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgefleet_converters.report import figures
from edgefleet_converters.report.model import Report, VariantFacts

_STYLES = {"ships": "green", "refused": "red", "dropped": "dim"}


def print_report(report: Report, console: Console) -> None:
    """Draw the table of variants, then what was refused, then what each device gets."""
    console.print(_table(report.variants))
    for line in _lines(report):
        console.print(Text(line), soft_wrap=True)


def _table(variants: Sequence[VariantFacts]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False, collapse_padding=True)
    metric = next((variant.score.metric for variant in variants if variant.score), "metric")
    # The only one that gives way when there is no room.
    table.add_column("variant", overflow="fold")
    for title in ("size", metric, "Δ fp32", "agree", "SQNR", "latency"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for variant in variants:
        score = variant.score
        word = figures.verdict(variant)
        table.add_row(
            Text(variant.name),
            figures.size(variant.size_bytes),
            figures.metric(score.metric, score.value) if score else figures.NONE,
            figures.loss(score),
            figures.share(score.agreement if score else None, digits=1),
            figures.decibels(score.sqnr_db if score else None, digits=0),
            figures.latency(variant.latency),
            # Marks are said below: a table of 80 columns has no room for them.
            Text(word.split(",")[0], style=_STYLES[word.split(",")[0]]),
        )
    return table


def _lines(report: Report) -> Iterator[str]:
    for variant in report.variants:
        if not variant.accepted:
            yield f"refused  {variant.name}: {variant.reason}"
        elif variant.marks:
            yield f"marked   {variant.name}: {', '.join(variant.marks)}; {variant.reason}"
    for profile in report.profiles:
        first = [f"{found.runtime} {found.variant}" for found in profile.decisions if found.rank == 1]
        yield f"device   {profile.id}: {', '.join(first) or 'nothing'}"
        for refused in profile.refused:
            yield f"         no {refused.runtime} {refused.precision}: {refused.reason}"
    hosts = dict.fromkeys(variant.latency.measured_on for variant in report.variants if variant.latency)
    for host in hosts:
        yield f"latency  measured on {host}; it says nothing about other devices"
    yield f"package  {report.package.folder}"
    yield f"digest   {report.package.digest}"
