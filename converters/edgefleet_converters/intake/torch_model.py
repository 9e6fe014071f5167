"""Opens what the person gave as a PyTorch model: a saved program, their own function, or a pickled module they trust.

Imports torch at the top and runs the person's code, so only child processes import this module.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch

from edgefleet.errors import InputError, UnsupportedError
from edgefleet_converters.conversion.shapes import Shapes
from edgefleet_converters.intake import torch_archive
from edgefleet_converters.intake.torch_program import FUNCTION, ExportJob

_SEED = 0
_RETURNS = "return (module, example inputs), with a tuple of tensors or a dict of them by argument"


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """What torch.export is given: a module, or a program of it, and example arguments.

    A program that was saved without its example has none.
    """

    module: Any
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] | None = None
    program: Any = None


def open_model(job: ExportJob, doing: str) -> Model:
    """The model that a job names; raises InputError or UnsupportedError."""
    function = FUNCTION.fullmatch(job.model)
    if function:
        return _called(job.folder, function["module"], function["name"], doing)
    path = job.folder / job.model
    if not path.is_file():
        raise InputError(doing, "there is no such file", "check the path")
    return _saved(path, job.trust, doing) if path.suffix.lower() == ".pt2" else _pickled(path, job, doing)


def _saved(path: Path, trust: bool, doing: str) -> Model:
    """A saved torch.export program."""
    if not trust:
        torch_archive.check(path, lambda stream: torch.load(stream, weights_only=True), doing)
    try:
        program = torch.export.load(path)
    except Exception as error:
        found = f"torch {torch.__version__} cannot open it ({_first_line(error)})"
        raise InputError(doing, found, "save it with torch.export.save in the same release of torch") from error
    return Model(program.module(), program=program)


def _called(folder: Path, module: str, name: str, doing: str) -> Model:
    """What the person's own function returns; it runs in their folder, and leaves no .pyc files there."""
    sys.dont_write_bytecode = True
    os.chdir(folder)
    try:
        function = getattr(_imported(folder, module), name, None)
    except Exception as error:
        raise InputError(doing, f"importing {module} failed ({_first_line(error)})", "check that it imports") from error
    if not callable(function):
        raise InputError(doing, f"{module} has no function {name!r}", f"define it: {_RETURNS}")
    return _returned(function, name, doing)


def _imported(folder: Path, module: str) -> ModuleType:
    """A module by name, as if python had been started in the folder, or by its file's path."""
    if not module.endswith(".py"):
        sys.path.insert(0, str(folder))
        return importlib.import_module(module)
    path = (folder / module).resolve()
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def _returned(function: Callable[[], object], name: str, doing: str) -> Model:
    try:
        match function():
            case torch.export.ExportedProgram() as program:
                return Model(program.module(), program=program)
            case (torch.nn.Module() as module, dict() as example):
                return Model(module.eval(), kwargs=dict(example))
            case (torch.nn.Module() as module, torch.Tensor() as example):
                return Model(module.eval(), (example,))
            case (torch.nn.Module() as module, tuple() | list() as example):
                return Model(module.eval(), tuple(example))
            case other:
                found = f"{name}() returned {type(other).__name__}"
    except Exception as error:
        raise InputError(doing, f"{name}() raised {_first_line(error)}", "call it in Python on its own") from error
    raise InputError(doing, found, f"let it {_RETURNS}, or a torch.export program")


def _pickled(path: Path, job: ExportJob, doing: str) -> Model:
    """A module that torch.save wrote: a pickle, which runs whatever code it holds when it is loaded."""
    if _is_torchscript(path):
        raise UnsupportedError(doing, "it is TorchScript", "export the module with torch.export.save as .pt2")
    try:
        found = torch.load(path, map_location="cpu", weights_only=not job.trust)
    except pickle.UnpicklingError as error:
        text = "it is a pickled Python object, and loading it runs whatever code it holds"
        remedy = "save it with torch.export.save as .pt2, or give --trust if you know where it comes from"
        raise InputError(doing, text, remedy) from error
    except Exception as error:
        raise InputError(doing, f"torch cannot load it ({_first_line(error)})", "save it again") from error
    if not isinstance(found, torch.nn.Module):
        _refuse_weights(found, path, doing)
    return Model(found.eval(), _made_up(found, job.shapes, doing))


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _refuse_weights(found: object, path: Path, doing: str) -> NoReturn:
    remedy = (
        f"write a function that builds the module, loads {path.name} and returns (module, example inputs), "
        "and name it as FILE.py:FUNCTION"
    )
    raise InputError(doing, f"it holds weights without a model ({type(found).__name__})", remedy)


def _made_up(module: Any, shapes: Shapes, doing: str) -> tuple[Any, ...]:
    """Seeded normal float32 arguments for a module that came without an example; their shapes must be given."""
    parameters = inspect.signature(module.forward).parameters.values()
    wanted = [each.name for each in parameters if each.default is each.empty and each.kind is not each.VAR_KEYWORD]
    missing = [name for name in wanted if name not in shapes]
    if missing:
        remedy = " ".join(f"--shape {name}=1,3,224,224" for name in missing)
        raise InputError(doing, "a pickled module has no example of its inputs", f"give {remedy} (float32)")
    generator = torch.Generator().manual_seed(_SEED)
    return tuple(torch.randn(shapes[name], generator=generator) for name in wanted)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
