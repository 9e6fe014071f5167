"""Step: static int8 of a torch.export program for ExecuTorch's XNNPACK backend; its inputs and outputs stay float32.

Weights are symmetric and per channel, activations asymmetric and per tensor (XNNPACK's signed 8-bit kernels).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
from torchao.quantization.pt2e import HistogramObserver, MinMaxObserver, MovingAverageMinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from edgefleet.errors import UnsupportedError
from edgefleet_converters.artefact import Artefact
from edgefleet_converters.intake.torch_export import arguments
from edgefleet_converters.step import Context, Ranges, in_file_layout

# The library's own lower bound of a scale: smaller ones overflow the fixed-point multipliers of its kernels.
_LEAST_SCALE = 2**-12
_OBSERVERS: Mapping[Ranges, Any] = MappingProxyType(
    {
        Ranges.MINMAX: MinMaxObserver,
        Ranges.MEAN: MovingAverageMinMaxObserver,
        Ranges.MSE: HistogramObserver,
    }
)


def run(artefact: Artefact, context: Context) -> Artefact:
    """Float .pt2 in, .pt2 with quantised operators out; raises UnsupportedError for ranges that torchao has not."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    program = torch.export.load(artefact.files[0])
    quantizer = XNNPACKQuantizer().set_global(_configuration(context.settings.ranges))
    quantizer.set_filter_function(_not_left(_names_left(program, artefact, context.settings.float_tensors)))
    observed = prepare_pt2e(program.module(), quantizer)
    with torch.no_grad():
        for feed in in_file_layout(artefact, context.samples):
            args, kwargs = arguments(program, [torch.from_numpy(feed[spec.name]) for spec in artefact.inputs])
            observed(*args, **kwargs)
    quantized = torch.export.export(convert_pt2e(observed), *program.example_inputs)
    path = context.folder / "program.pt2"
    torch.export.save(quantized, path)
    return artefact.model_copy(update={"files": (path,)})


def _configuration(ranges: Ranges) -> Any:
    """The quantiser's configuration with an observer of our choice in place of its histogram."""
    if ranges not in _OBSERVERS:
        doing = f"quantising for ExecuTorch with {ranges} ranges"
        raise UnsupportedError(doing, "torchao has no such observer", f"choose {', '.join(_OBSERVERS)}")
    usual = get_symmetric_quantization_config(is_per_channel=True)
    observer = _OBSERVERS[ranges].with_args(eps=_LEAST_SCALE)
    activation = replace(usual.input_activation, observer_or_fake_quant_ctr=observer)
    return replace(usual, input_activation=activation, output_activation=activation)


def _names_left(program: Any, artefact: Artefact, float_tensors: tuple[str, ...]) -> frozenset[str]:
    """Nodes of the program that make these tensors of its ONNX form.

    The ONNX names are those of the decomposed program's nodes, but for the outputs, which have the source's names. A
    normalisation that the ONNX form folds into a convolution stands for both.
    """
    results = (str(name) for name in program.graph_signature.user_outputs)
    outputs = dict(zip((spec.name for spec in artefact.outputs), results, strict=True))
    wanted = {outputs.get(name, name) for name in float_tensors}
    nodes = {node.name: node for node in program.graph.nodes}
    left = wanted & nodes.keys()
    if wanted - left:
        for node in program.run_decompositions().graph.nodes:
            if node.name in wanted and node.meta.get("from_node"):
                left.add(node.meta["from_node"][0].name)
    folded = {str(nodes[name].args[0]) for name in left if "batch_norm" in str(nodes[name].target)}
    return frozenset(left | folded)


def _not_left(left: frozenset[str]) -> Callable[[Any], bool]:
    return lambda node: node.name not in left
