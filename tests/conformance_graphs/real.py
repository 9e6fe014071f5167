"""The real graphs and how many layout transposes each may have beside its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import onnx

from conformance_graphs.judge import Graph
from conformance_graphs.light import light_model, names
from conformance_graphs.networks import NETWORKS
from conformance_graphs.sequences import SEQUENCES

_SEEDS = 3
# The nodes before and after the model's own transpose of the distribution over bins.
_ADDED = {"YOLO-style detector": 1}
# Transposes of the source that are only the price of its layout.
_UNDONE = {"NHWC as tf2onnx writes": 8, "GRU keywords": 1, "ViT-tiny": 1}


def real_graphs() -> list[Graph]:
    """Every real graph, the largest first, so that two workers end together."""
    found: list[tuple[str, str, Callable[[], onnx.ModelProto]]] = [
        *((f"light {name}", "light models", partial(light_model, name)) for name in names()),
        *((name, "networks", make) for name, make in NETWORKS.items()),
        *((name, "sequences", make) for name, make in SEQUENCES.items()),
    ]
    large = ("light vgg19", "light zfnet512", "light bvlc_alexnet")
    ordered = sorted(found, key=lambda item: large.index(item[0]) if item[0] in large else len(large))
    return [Graph(name, family, make, _SEEDS, partial(_allowed, name)) for name, family, make in ordered]


def _allowed(name: str, model: onnx.ModelProto) -> int:
    own = [node.op_type for node in model.graph.node].count("Transpose")
    return own + _ADDED.get(name, 0) - _UNDONE.get(name, 0)
