"""Which (operator, dtype, rank) LiteRT computes rightly without quantisation, by files of one operator.

`python -m conformance.kernel_probe` prints the rows of `edgefleet_converters.tflite.kernels.KERNELS`.
"""

from __future__ import annotations

import os
import pickle
import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from conformance.kernel_cases import MAKERS
from conformance.kernel_forms import Array, Case
from edgefleet_converters.tflite.file import Draft, Tensor, options_of
from edgefleet_converters.tflite.writer import write

DTYPES = ("float32", "int32", "int64", "bool", "int8", "uint8", "int16", "uint16", "uint32", "uint64", "float64")
SHAPES = tuple((2, 3, 2, 2, 1, 2, 2, 1)[:rank] for rank in range(9))


def run(operator: str, case: Case) -> list[Array]:
    """Outputs of one operator in LiteRT."""
    draft = Draft()
    for position, array in enumerate(case.inputs):
        name, data = f"i{position}", array if position in case.constant else None
        draft.tensors[name] = Tensor(name, array.shape, str(array.dtype), data)
    for position, array in enumerate(case.outputs):
        draft.temporary(f"o{position}", array.shape, str(array.dtype))
    outputs = [f"o{position}" for position in range(len(case.outputs))]
    options = options_of(case.options, **dict(case.fields)) if case.options else None
    inputs = tuple(f"i{position}" for position in range(len(case.inputs)))
    draft.emit(operator, inputs, tuple(outputs), options)
    fed = [position for position in range(len(case.inputs)) if position not in case.constant]
    names = [f"i{position}" for position in fed]
    content = write(draft, dict(zip(names, names, strict=True)), dict(zip(outputs, outputs, strict=True)))
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    for detail, position in zip(interpreter.get_input_details(), fed, strict=True):
        interpreter.set_tensor(detail["index"], case.inputs[position])
    interpreter.invoke()
    return [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]


def verdict(operator: str, case: Case) -> str:
    """`ok`, `wrong`, `error` (refused by the runtime) or `dead` (the process is)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.dup2(null, 1)
        with os.fdopen(writer, "wb") as pipe:
            try:
                pickle.dump(run(operator, case), pipe)
            except Exception:  # noqa: BLE001 - whatever the runtime raises is its verdict
                pickle.dump(None, pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    if not data:
        return "dead"
    found = pickle.loads(data)  # noqa: S301 - written by the fork above
    if found is None:
        return "error"
    same = all(
        a.shape == b.shape and a.dtype == b.dtype and np.allclose(a.astype("f8"), b.astype("f8"), 1e-4, 1e-5)
        for a, b in zip(found, case.outputs, strict=True)
    )
    return "ok" if same else "wrong"


def largest_rank(operator: str, dtype: str) -> int:
    """Largest rank (up to 8) at which an operator is right on a dtype, as on every rank below; -1 for none."""
    best = -1
    for rank, shape in enumerate(SHAPES):
        try:
            case = MAKERS[operator](dtype, shape)
        except TypeError:
            return -1
        if case is None:
            continue
        if verdict(operator, case) != "ok":
            return best
        best = rank
    return best


def main() -> None:
    """Print the table."""
    np.seterr(all="ignore")
    for operator in MAKERS if len(sys.argv) < 2 else sys.argv[1:]:
        ranks = {dtype: largest_rank(operator, dtype) for dtype in DTYPES}
        print(
            f'    "{operator}": { ({dtype: rank for dtype, rank in ranks.items() if rank >= 0}) },'.replace("'", '"'),
            flush=True,
        )


if __name__ == "__main__":
    main()
