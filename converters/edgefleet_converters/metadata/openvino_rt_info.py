"""Facts as `rt_info` of an OpenVINO IR, in a section `edgefleet`: `model.get_rt_info(["edgefleet", "labels"])`.

Edits the text of the .xml file: reading and serialising it again could change more than is meant.
"""

from __future__ import annotations

import re
from xml.sax.saxutils import quoteattr

from edgefleet_converters.artefact import Artefact
from edgefleet_converters.metadata.facts import Facts

_OURS = re.compile(r"\s*<edgefleet>.*?</edgefleet>", re.DOTALL)
_END = "</net>"
_SECTION_END = "</rt_info>"


def write(content: bytes, _artefact: Artefact, facts: Facts) -> bytes:
    """The same .xml with the facts, which replace those of an earlier run; raises ValueError if it is no IR."""
    text = _OURS.sub("", content.decode("utf-8"))
    head, end, tail = text.rpartition(_END)
    if not end:
        raise ValueError("the OpenVINO file has no </net>")
    lines = "".join(f"\t\t\t<{key} value={quoteattr(value)} />\n" for key, value in facts.entries.items())
    ours = f"\t\t<edgefleet>\n{lines}\t\t</edgefleet>\n\t"
    # The model's own section is the last of its children; layers have sections of the same name.
    if head.rstrip().endswith(_SECTION_END):
        before = head[: head.rindex(_SECTION_END)]
        head = f"{before.rstrip()}\n{ours}{_SECTION_END}\n"
    else:
        head = f"{head.rstrip()}\n\t<rt_info>\n{ours}{_SECTION_END}\n"
    return f"{head}{end}{tail}".encode()
