"""The command line of one conversion: options, notes on stderr, and one summary at the end.

Decides nothing: the flow of the target does the work, and the sdk's `main` prints its errors.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from edgefleet.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from edgefleet_converters.conversion.file_facts import Border
    from edgefleet_converters.conversion.flow import Converted

# Runtime → (module of its flow, extra that installs what it needs).
TARGETS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {"litert": ("edgefleet_converters.conversion.flow", "convert-litert")}
)
# The names of profile.Precision, whose module takes longer to load than an fp32 conversion of a small model.
PRECISIONS = ("fp32", "fp16", "int8", "int8-dynamic", "int4-weights")

_FILE = click.Path(path_type=Path)


@click.command("convert")
@click.argument("model", type=_FILE)
@click.option("--to", "target", type=click.Choice(tuple(TARGETS)), required=True, help="Runtime to convert for.")
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True, help="Of the result.")
@click.option("--calibration", type=_FILE, help="Samples: .npz with an array per input (or x), or a folder of them.")
@click.option("-o", "--output", type=_FILE, required=True, help="File to write.")
@click.option("--shape", "shapes", multiple=True, metavar="NAME=1,3,224,224", help="Shape of an input; repeat it.")
@click.option("--dim", "dims", multiple=True, metavar="SYMBOL=N", help="Size of a symbolic axis; repeat it.")
@click.option("--input-layout", "layouts", multiple=True, metavar="NAME=nchw|nhwc", help="Layout of an input.")
@click.option("--keep-layout", is_flag=True, help="Keep all inputs and outputs in the source's layout.")
@click.option(
    "--io",
    "border",
    type=click.Choice(("float32", "uint8", "int8")),
    default="float32",
    show_default=True,
    help="Type of an int8 file's inputs and outputs.",
)
@click.option("--mean", type=float, help="With --io uint8: image mean in levels 0 to 255, folded into the input.")
@click.option("--std", type=float, help="With --io uint8: image standard deviation in levels.")
@click.option("--check/--no-check", default=True, show_default=True, help="Compare the file with ONNX Runtime.")
@click.option("--bisect", is_flag=True, help="Name the first tensor that differs from ONNX Runtime.")
def app(target: str, shapes: Sequence[str], dims: Sequence[str], layouts: Sequence[str], **options: Any) -> None:
    """Convert MODEL (ONNX) into one file for one runtime, check it, and say what it is."""
    module, extra = TARGETS[target]
    try:
        flow = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"converting for {target}", error.name or "onnx", extra) from error
    request = flow.Request(
        shapes={name: read_sizes(name, text) for name, text in read_pairs("--shape", shapes).items()},
        dims={name: read_size("--dim", name, text) for name, text in read_pairs("--dim", dims).items()},
        input_layout={name: _layout(name, text) for name, text in read_pairs("--input-layout", layouts).items()},
        **options,
    )
    result = flow.convert(request, lambda text: click.echo(f"note: {text}", err=True))
    for title, line in _summary(result, target):
        click.echo(f"{title:<9} {line}")


def read_pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE texts; a name may hold "=" itself."""
    found: dict[str, str] = {}
    for text in texts:
        name, sign, value = text.rpartition("=")
        if not sign or not name or not value:
            raise InputError(f"reading {option} {text}", "it is not NAME=VALUE", f"write {option} NAME=VALUE")
        if name in found:
            raise InputError(f"reading {option} {text}", f"{name!r} is given twice", "give it once")
        found[name] = value
    return found


def read_size(option: str, name: str, text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise InputError(f"reading {option} {name}={text}", f"{text!r} is not a size", "write whole numbers from 1")
    return int(text)


def read_sizes(name: str, text: str) -> tuple[int, ...]:
    return tuple(read_size("--shape", name, part) for part in text.split(","))


def _layout(name: str, text: str) -> str:
    if text not in ("nchw", "nhwc"):
        found = f"{text!r} is not a layout"
        raise InputError(f"reading --input-layout {name}={text}", found, "write nchw or nhwc")
    return text


def _summary(result: Converted, target: str) -> list[tuple[str, str]]:
    facts = result.facts
    listed = ", ".join(f"{count} {name}" for name, count in facts.operators.items())
    rows = [
        ("wrote", f"{result.path} ({target} {result.precision}, {result.size_bytes:,} bytes)"),
        ("operators", f"{sum(facts.operators.values())}: {listed}"),
        ("fused", f"{facts.fused} activations; {facts.transposes} transposes"),
        ("outside", _outside(result)),
        ("runtime", f"TensorFlow Lite {facts.min_runtime} or newer"),
        *(("input", _described(item)) for item in facts.inputs),
        *(("output", _described(item)) for item in facts.outputs),
    ]
    if result.comparison is None:
        rows.append(("check", "skipped (--no-check)"))
    elif result.comparison.without_reference:
        rows.append(("check", f"not possible: {result.comparison.without_reference}"))
    else:
        rows += [("check", f"{item.name}: {item.text}") for item in result.comparison.outputs]
    if result.bisected:
        rows.append(("bisect", result.bisected))
    rows.append(("seconds", ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in result.seconds.items())))
    return rows


def _outside(result: Converted) -> str:
    """Operators outside XNNPACK: measured by the check, else by the table."""
    measured = result.comparison is not None and not result.comparison.without_reference
    found = result.comparison.outside if result.comparison is not None and measured else result.facts.outside
    listed = ", ".join(f"{count} {name}" for name, count in found.items()) or "none"
    return f"XNNPACK: {listed}" + ("" if measured else " (by the table, not measured)")


def _described(border: Border) -> str:
    first = "up to " if border.bounded else ""
    shape = f"[{first}{', '.join(map(str, border.shape))}]"
    text = f"{border.name}: {border.dtype} {shape}"
    if border.permutation is not None:
        text += f", the source's axes {list(border.permutation)} (NHWC)"
    if border.scale is not None:
        text += f", scale {border.scale:.6g}, zero point {border.zero_point}"
    return text
