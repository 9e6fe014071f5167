"""Looks into a saved torch.export program before torch opens it: torch.export.load unpickles, evaluates and resolves
names that the file gives, so a hostile file would run code.

Does not judge the model: it only says whether opening the file could run more than tensor operators.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from edgefleet.errors import InputError

TensorsOnly = Callable[[io.BytesIO], object]
"""Loads a pickle that may hold nothing but tensors and plain containers, and raises where it holds more."""

_REMEDY = "give --trust if you know where it comes from, or save it again with torch.export.save"
# Members that torch unpickles without limits, or loads as machine code, wherever they appear.
_REFUSED = {
    "data/aotinductor/": "compiled code",
    "data/constants/custom_obj_": "a pickled Python object",
    "data/constants/opaque_obj_": "a pickled Python object",
}
# What the graph may call: operators of libraries that torch itself registers, and arithmetic on sizes.
_TARGET = re.compile(
    r"torch\.ops\.(aten|prim|prims|higher_order|quantized_decomposed|torchao)\.\w+(\.\w+)?"
    r"|_operator\.\w+|math\.\w+|torch\._?sym_\w+"
)
# Sizes are written as sympy expressions, which sympy evaluates as Python.
_EXPRESSION = re.compile(
    r"(Symbol\('[suz]\d+'(, \w+=True)*\)"
    r"|([suz]?\d+|Integer|Add|Mul|Pow|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|ModularIndexing|oo)\b"
    r"|[\s+\-*/(),])*"
)
# Every other name ends up in Python source that torch generates and executes.
_NAME = re.compile(r"[\w.+<>\- ]*")
_TREE = re.compile(r'[\w\s.,:\[\]{}"\\-]*')
# Conditions on the inputs' sizes, such as `L['args'][0][0].size()[0] <= 8`.
_GUARD = re.compile(r"(L?\[('\w+'|\d+)\]|\.(size|stride|storage_offset)\(\)|(and|or|not|\d+)\b|[\s<>=!+\-*/%()])*")
_RULES = {
    "target": _TARGET,
    "expr_str": _EXPRESSION,
    "guards_code": _GUARD,
    "in_spec": _TREE,
    "out_spec": _TREE,
}
# Kept as text, and quoted where it is generated: traces of the person's source, and operators' own string arguments.
_TEXT = frozenset({"metadata", "as_string", "as_strings"})


def check(path: Path, load: TensorsOnly, doing: str) -> None:
    """Raise InputError when opening the program could run code of the file's own, or it is no such program."""
    try:
        with zipfile.ZipFile(path) as archive:
            for found in _dangers(archive, load):
                raise InputError(doing, f"it holds {found}, and opening it would run that", _REMEDY)
    except (zipfile.BadZipFile, json.JSONDecodeError, UnicodeDecodeError, KeyError) as error:
        found = f"not a saved torch.export program ({error})"
        raise InputError(doing, found, "save it with torch.export.save") from error


def _dangers(archive: zipfile.ZipFile, load: TensorsOnly) -> Iterator[str]:
    """What in the archive would run code, in words."""
    names = archive.namelist()
    # Two readers of one archive may choose different ones of two members with the same name.
    if len(set(names)) < len(names) or len({name.partition("/")[0] for name in names}) > 1:
        yield "members that hide each other"
    members = {name.partition("/")[2]: name for name in names}
    if "archive_format" not in members:
        yield "an older format, which is unpickled as a whole"
    for member, name in members.items():
        yield from (what for start, what in _REFUSED.items() if member.startswith(start))
        if member.endswith(".pt") and not _is_plain(archive.read(name), load):
            yield "a pickled Python object"
        elif member.startswith("models/") or member.endswith("_config.json"):
            yield from _in_json(json.loads(archive.read(name)))


def _is_plain(content: bytes, load: TensorsOnly) -> bool:
    try:
        load(io.BytesIO(content))
    except Exception:  # noqa: BLE001 - whatever it raises, torch would go on and unpickle the rest
        return False
    return True


def _in_json(value: object, key: str = "") -> Iterator[str]:
    """Dangers in the description of the graph, the weights or the constants."""
    if isinstance(value, dict):
        if value.get("use_pickle"):
            yield "a pickled tensor"
        for name, item in value.items():
            if not _NAME.fullmatch(name):
                yield f"the name {name[:60]!r}"
            if name not in _TEXT:
                yield from _in_json(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _in_json(item, key)
    elif isinstance(value, str) and not _RULES.get(key, _NAME).fullmatch(value):
        yield f"{key} {value[:60]!r}"
