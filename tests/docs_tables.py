"""The documents that are generated from tables in the code: `PYTHONPATH=tests python -m docs_tables` writes them.

A test compares them with what lies in docs/.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import TypeGuard

from agent.lifecycle_matrix import COMES_TO, Happening
from edgefleet import errors, spans
from edgefleet.package.manifest import Mark
from edgefleet.protocol import measurements, messages
from edgefleet.protocol.messages import State
from edgefleet.protocol.record import Part
from edgefleet.protocol.topics import PREFIX, TOPICS, TopicName
from edgefleet_agent.lifecycle import DEADLINES_S, INSTALLING, TRANSITIONS, Trigger
from edgefleet_converters.choose import Fate, Objective
from edgefleet_converters.gate import Status
from edgefleet_converters.ladder import AT_ONCE, NEXT
from edgefleet_converters.recipes import MICRO_RECIPE, RECIPES, Recipe
from edgefleet_converters.score import task
from edgefleet_converters.score.accuracy import METRICS, Counted
from edgefleet_converters.step import Ranges
from edgefleet_device_profiles.catalogue import DATA_FOLDER, read
from edgefleet_device_profiles.profile import Profile

DOCS = Path(__file__).parent.parent / "docs"


def wire() -> str:
    """docs/wire.md."""
    meanings = member_docs(TopicName)
    rows = [
        (
            f"`{row.pattern}`",
            f"{row.writer} → {row.reader}",
            f"{row.qos}{', retained' if row.retained else ''}",
            meanings[name],
        )
        for name, row in TOPICS.items()
    ]
    head = [
        "# The wire",
        "",
        "Generated from `edgefleet.protocol.topics`; do not edit.",
        "",
        f"All topics begin with `{PREFIX}/{{fleet}}/`.",
        "",
    ]
    topics = table(("topic", "may write → may read", "QoS", "carries"), rows)
    return "\n".join([*head, *topics, "", *_windows(), ""])


def _windows() -> list[str]:
    parts: list[type[Part]] = [messages.Window, *filter(_is_part, vars(measurements).values())]
    rows = [(f"`{part.__name__}`", ", ".join(part.model_fields), _first_line(part)) for part in parts]
    runs = [(f"p{q * 100:.0f}", str(fewest)) for q, fewest in spans.MIN_RUNS.items()]
    return [
        "## A telemetry window",
        "",
        "Generated from `edgefleet.protocol.measurements` and `edgefleet.spans`. A window carries sketches and joules;",
        f"figures are computed over the newest windows that last {spans.SPAN_S / 60:.0f} minutes together, and are",
        "null with the reason where that is too little. Units are in the names: s, j, c (°C), bytes. Durations are",
        "DDSketches: key k counts the values up to γᵏ s, γ = 1.01 ÷ 0.99; each key but the first is written as its",
        "distance from the one before.",
        "",
        *table(("part", "fields", "what it is"), rows),
        "",
        *_words("clock", measurements.Clock),
        "",
        *table(("percentile", "fewest runs"), runs),
        "",
        "Energy per inference is gross (joules ÷ inferences), with `net_of_idle` beside it. It is null after less than",
        f"{spans.MIN_ENERGY_S:.0f} s or, measured, fewer than {spans.MIN_ENERGY_SAMPLES} readings, after less than",
        f"{spans.MIN_SLOW_SENSOR_S:.0f} s of a sensor with {spans.SLOW_SENSOR_HZ:.0f} readings a second or fewer,",
        "and when a window was throttled.",
    ]


def _is_part(found: object) -> TypeGuard[type[Part]]:
    return isinstance(found, type) and issubclass(found, Part) and found.__module__ == measurements.__name__


def _first_line(found: type) -> str:
    return (found.__doc__ or "").partition("\n")[0].rstrip(".")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows)]


def member_docs(kind: type[StrEnum]) -> Mapping[str, str]:
    """The text below each member of an enumeration, without its full stop."""
    (tree,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(tree, ast.ClassDef)
    return {getattr(kind, name): text for name, text in _texts(tree.body).items()}


def _constant_docs(module: ModuleType) -> Mapping[str, str]:
    """The text below each constant of a module, by the constant's name."""
    return _texts(ast.parse(inspect.getsource(module)).body)


def _texts(body: Sequence[ast.stmt]) -> dict[str, str]:
    return {
        name.id: " ".join(str(text).split()).rstrip(".")
        for first, second in pairwise(body)
        if isinstance(first, ast.Assign) and isinstance(second, ast.Expr) and isinstance(second.value, ast.Constant)
        for name, text in [(first.targets[0], second.value.value)]
        if isinstance(name, ast.Name)
    }


def lifecycle() -> str:
    """docs/lifecycle.md."""
    arrows = [f"    {state} --> {after}: {trigger}" for (state, trigger), after in TRANSITIONS.items()]
    head = ["# The lifecycle of a device", "", "Generated from `edgefleet_agent.lifecycle`; do not edit.", ""]
    said = member_docs(State)
    rows = [f"| `{state}` | {said[state]} | {_limit(state)} |" for state in State]
    triggers = [f"| `{trigger}` | {text} |" for trigger, text in member_docs(Trigger).items()]
    ends = [
        f"| `{state}` | {' | '.join(f'`{COMES_TO[state, happening]}`' for happening in Happening)} |" for state in State
    ]
    return "\n".join([
        *head, "```mermaid", "stateDiagram-v2", "    [*] --> idle", *arrows, "```", "",
        "| state | what it means | its limit |", "|---|---|---|", *rows, "",
        "| by | what that is |", "|---|---|", *triggers, "",
        "## What a device comes to", "",
        "Each of these is a test. A newer generation waits for the end of `activating` and `rolling_back`. What was",
        "committed and is damaged is pulled again, once, where nothing else runs; with nothing left a device says",
        "`no_model` and why.",
        "",
        f"| in | {' | '.join(Happening)} |", f"|---|{'---|' * len(Happening)}", *ends, "",
    ])  # fmt: skip


def _limit(state: State) -> str:
    """How long a device may be in a state."""
    if state in DEADLINES_S:
        return f"{DEADLINES_S[state]:.0f} s"
    if state is State.PROBATION:
        return "`probation.deadline_s`"
    return "the deployment's" if state in INSTALLING else "–"


def profiles() -> str:
    """docs/profiles.md: the built-in profiles alone, whatever $EDGEFLEET_PROFILES says."""
    head = [
        "# Device profiles",
        "",
        "Generated from `edgefleet_device_profiles/data`; do not edit. `edgefleet profiles show NAME` prints the rest.",
        "Peaks are of all cores of the CPU, in 10⁹ operations a second (one multiply-accumulate is two), from the",
        "documents that each file names or calculated from them; accelerators in brackets are not used.",
        "",
        "| profile | device | processor | memory MiB | runtimes | fp32 / fp16 / int8 | GB/s | W | beside it |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join(
        [
            *head,
            *(_profile_row(read(path)) for path in sorted(DATA_FOLDER.glob("*.toml"), key=lambda path: path.stem)),
            "",
        ]
    )


def _profile_row(profile: Profile) -> str:
    cpu, power, peak = profile.cpu, profile.power, profile.peak
    runtimes = (f"{each.name} {each.version}: {', '.join(each.precisions)}" for each in profile.runtimes)
    gops = (peak.fp32_gops, peak.fp16_gops, peak.int8_gops) if peak else ()
    cells = (
        f"`{profile.id}`",
        profile.title,
        f"{cpu.architecture}, {cpu.cores} × {cpu.clock_mhz} MHz; {', '.join(cpu.isa)}",
        f"{profile.memory.total_mib:g}",
        "; ".join(runtimes),
        " / ".join("–" if each is None else f"{each:g}" for each in gops),
        f"{peak.bandwidth_gb_s:g}" if peak else "",
        f"{power.idle_w:g} to {power.max_w:g}",
        ", ".join(each.name if each.supported else f"({each.name})" for each in profile.accelerators),
    )
    return f"| {' | '.join(cells)} |"


def packaging_tables() -> str:
    """docs/packaging-tables.md."""
    head = [
        "# The tables of packaging",
        "",
        "Generated from the code of `edgefleet_converters`; do not edit. [`packaging.md`](packaging.md) explains them.",
    ]
    sections = {
        "Recipes": _recipes(),
        "Metrics": _metrics(),
        "Ranges of int8": _ranges(),
        "The gate's words": _words("status", Status),
        "Marks in the package": _words("mark", Mark),
        "What becomes of a variant, for each profile": _words("fate", Fate),
        "Objectives": _words("`--objective`", Objective),
        "Exit status": _exit_codes(),
    }
    parts = [line for title, lines in sections.items() for line in ("", f"## {title}", "", *lines)]
    return "\n".join([*head, *parts, ""])


def _recipes() -> list[str]:
    rows = [_recipe_row(runtime, precision, recipe) for (runtime, precision), recipe in RECIPES.items()]
    head = ("runtime", "precision", "starts from", "calibration", "run here", "marked", "extra")
    return table(head, [*rows, _recipe_row("litert (`micro`)", "int8", MICRO_RECIPE)])


def _recipe_row(runtime: str, precision: str, recipe: Recipe) -> tuple[str, ...]:
    unscored = () if recipe.scored else (Mark.UNSCORED,)
    return (
        runtime,
        precision,
        ", ".join(recipe.steps),
        "yes" if recipe.calibrated else "",
        "yes" if recipe.scored else "no",
        ", ".join((*unscored, *recipe.marks)),
        f"`{recipe.extra}`",
    )


def _metrics() -> list[str]:
    texts, paired = _constant_docs(task), "score interval of paired shares (Tango)"
    rows = []
    for name, metric in METRICS.items():
        if isinstance(metric, Counted):
            said = _said(metric.hits)
            text, higher, interval = f"Share of samples: {said[0].lower()}{said[1:]}", True, paired
        else:
            text, higher, interval = _said(metric.values), metric.higher_is_better, "bootstrap"
        rows.append((f"`{name}`", text, "higher" if higher else "lower", "yes", interval))
    own = "A function of your own, `module:function(outputs, labels) → float`"
    return table(
        ("metric", "what it is", "better", "labels", "95 % interval"),
        [
            *rows,
            (f"`{task.AGREEMENT}`", texts["AGREEMENT"], "higher", "no", paired),
            (f"`{task.SQNR}`", texts["SQNR"], "higher", "no", "none"),
            ("`NAME=module:function`", own, "its `higher_is_better`, else higher", "yes", "jackknife of 20 groups"),
        ],
    )


def _said(function: Callable[..., object]) -> str:
    """A function's docstring as one line, without its full stop."""
    return " ".join((inspect.getdoc(function) or "").split()).rstrip(".")


def _ranges() -> list[str]:
    meanings = member_docs(Ranges)
    rows = [
        (
            f"`{one}`",
            text,
            *(", ".join(name for name, ranges in rung.items() if one in ranges) for rung in (AT_ONCE, NEXT)),
        )
        for one, text in meanings.items()
    ]
    return table(("ranges", "what they are", "tried at once", "tried when that fails"), rows)


def _words(title: str, kind: type[StrEnum]) -> list[str]:
    return table((title, "meaning"), [(f"`{word}`", text) for word, text in member_docs(kind).items()])


def _exit_codes() -> list[str]:
    leaves = [found for found in vars(errors).values() if inspect.isclass(found)]
    rows = [
        (str(found.exit_code), f"`{found.__name__}`", _said(found))
        for found in leaves
        if issubclass(found, errors.EdgefleetError) and found is not errors.EdgefleetError
    ]
    return table(("status", "error", "meaning"), [("0", "", "Done"), *rows, ("130", "", "Interrupted")])


DOCUMENTS = {
    "wire.md": wire,
    "lifecycle.md": lifecycle,
    "profiles.md": profiles,
    "packaging-tables.md": packaging_tables,
}

if __name__ == "__main__":
    for name, make in DOCUMENTS.items():
        (DOCS / name).write_text(make())
