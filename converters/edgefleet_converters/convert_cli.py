"""The command line of one conversion: options, notes on stderr, and one summary at the end.

Decides nothing: the flow of the target does the work, and the sdk's `main` prints its errors.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from edgefleet.errors import InputError, MissingExtraError
from edgefleet_converters.options import read_dims, read_pairs, read_shapes

if TYPE_CHECKING:
    from edgefleet.package.manifest import TensorSpec
    from edgefleet_converters import recipe_flow
    from edgefleet_converters.conversion.check import Comparison
    from edgefleet_converters.conversion.file_facts import Border
    from edgefleet_converters.conversion.flow import Converted


@dataclass(frozen=True, slots=True)
class Target:
    """A runtime: the module of its flow, the extra that installs what it needs, and what it can be asked for.

    Precisions by the names of profile.Precision, whose module takes longer to load than an fp32 conversion.
    """

    flow: str
    extra: str
    precisions: tuple[str, ...]


_RECIPES = "edgefleet_converters.recipe_flow"
TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "litert": Target(
            "edgefleet_converters.conversion.flow",
            "convert-litert",
            ("fp32", "fp16", "int8", "int8-dynamic", "int4-weights", "int16x8"),
        ),
        "onnxruntime": Target(_RECIPES, "convert-onnx", ("fp32", "fp16", "int8", "int8-dynamic", "int4-weights")),
        "openvino": Target(_RECIPES, "convert-openvino", ("fp32", "fp16", "int8", "int8-weights", "int4-weights")),
    }
)
PRECISIONS = tuple(dict.fromkeys(name for target in TARGETS.values() for name in target.precisions))
# Options by the names of their flow's fields, and what they are when nobody gives them.
_LITERT_ONLY: Mapping[str, object] = MappingProxyType(
    {"keep_layout": False, "border": "float32", "mean": None, "std": None, "bisect": False, "input_layout": {}}
)

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
    chosen = TARGETS[target]
    if options["precision"] not in chosen.precisions:
        found = f"it has no {options['precision']} here"
        raise InputError(f"converting for {target}", found, f"choose one of {', '.join(chosen.precisions)}")
    options["shapes"], options["dims"] = read_shapes(shapes), read_dims(dims)
    options["input_layout"] = {
        name: _layout(name, text) for name, text in read_pairs("--input-layout", layouts).items()
    }
    try:
        flow = importlib.import_module(chosen.flow)
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"converting for {target}", error.name or "onnx", chosen.extra) from error
    if chosen.flow == _RECIPES:
        options = _of_recipes(target, options)
    result = flow.convert(flow.Request(**options), lambda text: click.echo(f"note: {text}", err=True))
    rows = _recipe_summary(result, target) if chosen.flow == _RECIPES else _litert_summary(result)
    for title, line in rows:
        click.echo(f"{title:<9} {line}")


def _of_recipes(target: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that every runtime has; raises InputError for one that only LiteRT has."""
    given = [name for name, default in _LITERT_ONLY.items() if options[name] != default]
    if given:
        shown = ", ".join({"border": "--io"}.get(name, f"--{name.replace('_', '-')}") for name in given)
        remedy = "leave it out: the file keeps the source's inputs and outputs"
        raise InputError(f"converting for {target}", f"{shown} is for --to litert only", remedy)
    from edgefleet_device_profiles.profile import Precision, Runtime  # noqa: PLC0415 - costs time that fp32 never needs

    kept = {name: value for name, value in options.items() if name not in _LITERT_ONLY}
    return kept | {"runtime": Runtime(target), "precision": Precision(options["precision"])}


def _layout(name: str, text: str) -> str:
    if text not in ("nchw", "nhwc"):
        found = f"{text!r} is not a layout"
        raise InputError(f"reading --input-layout {name}={text}", found, "write nchw or nhwc")
    return text


def _litert_summary(result: Converted) -> list[tuple[str, str]]:
    facts = result.facts
    return [
        ("wrote", f"{result.path} (litert {result.precision}, {result.size_bytes:,} bytes)"),
        ("operators", _counted(facts.operators)),
        ("fused", f"{facts.fused} activations; {facts.transposes} transposes"),
        ("outside", _outside(result)),
        ("runtime", f"TensorFlow Lite {facts.min_runtime} or newer"),
        *(("input", _described(item)) for item in facts.inputs),
        *(("output", _described(item)) for item in facts.outputs),
        *_check_rows(result.comparison),
        *([("bisect", result.bisected)] if result.bisected else []),
        ("seconds", _timed(result.seconds)),
    ]


def _recipe_summary(result: recipe_flow.Converted, target: str) -> list[tuple[str, str]]:
    paths = " and ".join(map(str, result.paths))
    return [
        ("wrote", f"{paths} ({target} {result.precision}, {result.size_bytes:,} bytes)"),
        ("operators", _counted(result.operators)),
        *(("input", _shown(item)) for item in result.inputs),
        *(("output", _shown(item)) for item in result.outputs),
        *_check_rows(result.comparison),
        ("seconds", _timed(result.seconds)),
    ]


def _counted(operators: Mapping[str, int]) -> str:
    return f"{sum(operators.values())}: {', '.join(f'{count} {name}' for name, count in operators.items())}"


def _timed(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{stage} {value:.2f}" for stage, value in seconds.items())


def _check_rows(comparison: Comparison | None) -> list[tuple[str, str]]:
    if comparison is None:
        return [("check", "skipped (--no-check)")]
    if comparison.without_reference:
        return [("check", f"not possible: {comparison.without_reference}")]
    return [("check", f"{item.name}: {item.text}") for item in comparison.outputs]


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


def _shown(spec: TensorSpec) -> str:
    return f"{spec.name}: {spec.dtype} [{', '.join(map(str, spec.shape))}]"
