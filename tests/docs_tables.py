"""The documents that are generated from tables in the code: `PYTHONPATH=tests python -m docs_tables` writes them.

A test compares them with what lies in docs/.
"""

from __future__ import annotations

from pathlib import Path

from edgefleet.protocol.topics import PREFIX, TOPICS, TopicName
from edgefleet_agent.lifecycle import TRANSITIONS

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


DOCUMENTS = {"wire.md": wire, "lifecycle.md": lifecycle}

if __name__ == "__main__":
    for name, make in DOCUMENTS.items():
        (DOCS / name).write_text(make())
