"""The documents that are generated from tables in the code: `PYTHONPATH=tests python -m docs_tables` writes them.

A test compares them with what lies in docs/.
"""

from __future__ import annotations

from pathlib import Path

from edgefleet.protocol.topics import PREFIX, TOPICS, TopicName
from edgefleet_agent.lifecycle import TRANSITIONS
from edgefleet_device_profiles.catalogue import DATA_FOLDER, read
from edgefleet_device_profiles.profile import Profile

DOCS = Path(__file__).parent.parent / "docs"


def wire() -> str:
    """docs/wire.md."""
    meanings = _member_docs()
    rows = [
        f"| `{row.pattern}` | {row.writer} → {row.reader} | {row.qos}{', retained' if row.retained else ''} "
        f"| {meanings[name]} |"
        for name, row in TOPICS.items()
    ]
    head = [
        "# The wire",
        "",
        "Generated from `edgefleet.protocol.topics`; do not edit.",
        "",
        f"All topics begin with `{PREFIX}/{{fleet}}/`.",
        "",
        "| topic | may write → may read | QoS | carries |",
        "|---|---|---|---|",
    ]
    return "\n".join([*head, *rows, ""])


def _member_docs() -> dict[TopicName, str]:
    """The one line below each member of TopicName."""
    source = Path(__file__).parent.parent / "sdk/edgefleet/protocol/topics.py"
    lines = source.read_text().splitlines()
    found: dict[TopicName, str] = {}
    for place, line in enumerate(lines):
        name, equals, value = line.strip().partition(" = ")
        if equals and name.isupper() and value.strip('"') in set(TopicName):
            found[TopicName(value.strip('"'))] = lines[place + 1].strip().strip('"').rstrip(".")
    return found


def lifecycle() -> str:
    """docs/lifecycle.md."""
    arrows = [f"    {state} --> {after}: {trigger}" for (state, trigger), after in TRANSITIONS.items()]
    head = ["# The lifecycle of a device", "", "Generated from `edgefleet_agent.lifecycle`; do not edit.", ""]
    return "\n".join([*head, "```mermaid", "stateDiagram-v2", "    [*] --> idle", *arrows, "```", ""])


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


DOCUMENTS = {"wire.md": wire, "lifecycle.md": lifecycle, "profiles.md": profiles}

if __name__ == "__main__":
    for name, make in DOCUMENTS.items():
        (DOCS / name).write_text(make())
