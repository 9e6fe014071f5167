"""Our extras against the pinned environments: converters that cannot live together never meet in one."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
_MADE_OF = re.findall(r"^EXTRAS_(\w+) := (\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
ENVIRONMENTS = {"constraints.txt": "dev", **{f"constraints/{name}.txt": extras for name, extras in _MADE_OF}}
# The emulated 32-bit userland of tests/full_arm; its numpy is the distribution's.
ARMV7 = "constraints/armv7.txt"
ENVIRONMENTS[ARMV7] = "agent,tflite"
OF_THE_DISTRIBUTION = {ARMV7: {"numpy"}}


def _needed(extra: str) -> Iterator[Requirement]:
    """What an extra asks for, and the extras that it is made of."""
    for text in EXTRAS[extra]:
        requirement = Requirement(text)
        if requirement.name == "edgefleet":
            for inner in requirement.extras:
                yield from _needed(inner)
        else:
            yield requirement


def _pins(file: str) -> dict[str, str]:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name.strip()): version.split(";")[0].strip() for name, version in pairs}


@pytest.mark.parametrize("file", ENVIRONMENTS)
def test_every_environment_pins_what_its_extras_ask_for(file: str) -> None:
    pins = _pins(file)
    needed = [found for extra in ENVIRONMENTS[file].split(",") for found in _needed(extra)]
    wanted = [found for found in needed if found.name not in OF_THE_DISTRIBUTION.get(file, ())]
    assert wanted
    missing = [str(found) for found in wanted if canonicalize_name(found.name) not in pins]
    assert missing == []
    unmet = [str(found) for found in wanted if pins[canonicalize_name(found.name)] not in found.specifier]
    assert unmet == []


def test_every_extra_is_in_an_environment_that_is_tested() -> None:
    """All but `train`, whose torch stands in one with the same pin, and the test environments' own."""
    tested = {found.name for extras in ENVIRONMENTS.values() for extra in extras.split(",") for found in _needed(extra)}
    assert {found.name for extra in EXTRAS for found in _needed(extra)} <= tested


def test_toolchains_that_clash_are_apart() -> None:
    """TensorFlow pins what the others need newer; torch is thirty times the size of the rest."""
    base = _pins("constraints.txt")
    assert not {"tensorflow", "tf-keras", "torch", "coremltools", "executorch", "mediapipe"} & set(base)
