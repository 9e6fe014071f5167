"""Step: a torch.export program to an ExecuTorch program (.pte), for XNNPACK where it takes the operators.

Does not quantise; operators that XNNPACK does not take run in ExecuTorch's portable kernels, on one thread.
"""

from __future__ import annotations

import logging
import warnings

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower

from edgefleet_converters.artefact import Artefact
from edgefleet_converters.step import Context


def run(artefact: Artefact, context: Context) -> Artefact:
    """.pt2 in, .pte out, with the same inputs and outputs, which ExecuTorch knows by their order alone."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    program = torch.export.load(artefact.files[0])
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    path = context.folder / "model.pte"
    with path.open("wb") as stream:
        lowered.write_to_file(stream)
    return artefact.model_copy(update={"files": (path,)})
