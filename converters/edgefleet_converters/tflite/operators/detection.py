"""Boxes: RoiAlign and NonMaxSuppression.

Region pooling with bins that depend on data is refused, and so is suppression whose results the graph goes on with.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Tensor, options_of
from edgefleet_converters.tflite.graph import Array, Graph, Node, NotLowerableError, Value
from edgefleet_converters.tflite.operators.channels import channels_last, finish
from edgefleet_converters.tflite.operators.contract import Lowering
from edgefleet_converters.tflite.operators.sampling import Sampling, neighbours

# Twice as much is still a float32.
_ENDLESS = 1e38


def roi_align(node: Node, e: Emitter) -> None:
    """RoiAlign, avg or max, float32, with a fixed `sampling_ratio` (0 would depend on each region's size)."""
    ratio, mode = node.integer("sampling_ratio", 0), node.text("mode", "avg")
    if ratio <= 0 or mode not in ("avg", "max"):
        raise NotLowerableError(f"sampling_ratio={ratio}, mode={mode!r}")
    value, rois = channels_last(e), e.input(1)
    batch, *size, channels = value.shape
    regions, pooled = rois.shape[0], (node.integer("output_height", 1), node.integer("output_width", 1))
    lines = [_sample_lines(node, e, rois, axis, pooled[axis] * ratio) for axis in (0, 1)]
    across = [e.reshape(lines[0], (regions, -1, 1)), e.reshape(lines[1], (regions, 1, -1))]
    count = regions * math.prod(pooled) * ratio * ratio
    whole = np.zeros((regions, pooled[0] * ratio, pooled[1] * ratio), np.float32)
    points = [e.reshape(e.add(line, whole), (1, count)) for line in across]
    images = e.reshape(e.mul(e.cast(e.input(2), "int32"), math.prod(size)), (regions, 1, 1))
    offset = e.reshape(e.add(images, whole.astype(np.int32)), (1, count))
    rows = e.reshape(value, (1, batch * math.prod(size), channels))
    parts = neighbours(e, rows, size, points, Sampling(padding="border"), offset)
    reduced = e.reduce_sum(parts, (1,)) if mode == "avg" else e.reduce_max(parts, (1,))
    samples = e.mul(reduced, e.reshape(_present(e, points, size), (1, 1, count, 1)))
    # Rank 6 is as far as float reductions go: the axes of rows and of columns are reduced one after the other.
    reduce = e.reduce_mean if mode == "avg" else e.reduce_max
    columns = e.reshape(samples, (regions * pooled[0], ratio, pooled[1], ratio, channels))
    pooled_regions = reduce(columns, (1, 3))
    finish(e, e.reshape(pooled_regions, (regions, *pooled, channels)))


def _sample_lines(node: Node, e: Emitter, rois: Tensor, axis: int, samples: int) -> Tensor:
    """Positions [regions, samples] along height (axis 0) or width (1), in elements."""
    half = node.text("coordinate_transformation_mode", "half_pixel" if node.opset >= 16 else "output_half_pixel")
    scale, shift = node.number("spatial_scale", 1.0), 0.5 if half == "half_pixel" else 0.0
    scaled = e.sub(e.mul(rois, scale), shift)
    start, end = (e.slice(scaled, (0, column), (rois.shape[0], 1)) for column in (1 - axis, 3 - axis))
    length = e.sub(end, start)
    if half != "half_pixel":
        length = e.maximum(length, 1.0)
    within = ((np.arange(samples) + 0.5) / samples).astype(np.float32)[None, :]
    return e.add(start, e.mul(length, within))


def _present(e: Emitter, points: list[Tensor], size: list[int]) -> Tensor:
    """1 for points no further than one element outside the image, 0 for the rest."""
    inside = None
    for point, length in zip(points, size, strict=True):
        both = e.logical_and(e.greater_equal(point, -1.0), e.less_equal(point, float(length)))
        inside = both if inside is None else e.logical_and(inside, both)
    if inside is None:
        raise NotLowerableError("an image without axes")
    return e.cast(inside, "float32")


def bound_selections(graph: Graph) -> Graph:
    """The graph with the largest shape of each NonMaxSuppression result that is an output and that nothing reads.

    Only such a result may have a length that data decide: every rule takes shapes for exact.
    """
    values = dict(graph.values)
    for node in graph.nodes:
        if node.operator == "NonMaxSuppression" and _is_last(node, graph):
            scores = _shape(graph, node.input(1))
            if scores is not None and len(scores) == 3:
                rows = scores[0] * scores[1] * min(_limit(graph.constants.get(node.input(2))), scores[2])
                values[node.outputs[0]] = Value(node.outputs[0], "int64", (rows, 3))
    return replace(graph, values=values)


def _is_last(node: Node, graph: Graph) -> bool:
    read = {name for reader in graph.nodes for name in reader.inputs}
    return node.outputs[0] in graph.outputs and node.outputs[0] not in read


def _shape(graph: Graph, name: str) -> tuple[int, ...] | None:
    if name in graph.constants:
        return graph.constants[name].shape
    value = graph.values.get(name)
    return None if value is None else value.shape


def _limit(found: Array | None) -> int:
    """max_output_boxes_per_class, which is 0 by default."""
    return 0 if found is None or not found.size else max(int(found.reshape(-1)[0]), 0)


def non_max_suppression(node: Node, e: Emitter) -> None:
    """NonMaxSuppression since 10, float32, as an output of the graph that no node reads; its length is bounded.

    `max_output_boxes_per_class` and `iou_threshold` are constant or absent, the latter from 0 to below 1. One
    NON_MAX_SUPPRESSION_V4 for each image and class marks rows in a table of the largest size, and WHERE packs them.
    """
    if not _is_last(node, e.graph):
        raise NotLowerableError("its result is read by other nodes, and has a length that only its data decide")
    limit = _limit(e.array(2, "max_output_boxes_per_class") if e.has(2) else None)
    least = _least_overlap(e)
    target, (images, classes, count) = e.output(), e.input(1).shape
    most, pairs = min(limit, count), images * classes
    if not most * pairs:
        e.into(target.name, e.constant(np.zeros((0, 3), np.int64)))
        return
    order, ranks = _ranked(e)
    boxes = e.gather(_corners(node, e), order, axis=1, batch_dims=1)
    boxes, ranks = e.reshape(boxes, (pairs * count, 4)), e.reshape(ranks, (pairs * count,))
    starts = range(0, pairs * count, count)
    found = [_suppressed(e, boxes, ranks, range(first, first + count), most, least) for first in starts]
    chosen = e.reshape(e.concat([positions for positions, _ in found], 0), (pairs, most))
    pack = options_of("Pack", axis=0, valuesCount=pairs)
    lengths = e.reshape(e.call("PACK", [length for _, length in found], (pairs,), "int32", pack), (pairs, 1))
    indices = e.gather(e.reshape(order, (pairs, count)), chosen, axis=1, batch_dims=1)
    owners = np.stack(np.divmod(np.repeat(np.arange(pairs), most), classes), 1).astype(np.int64)
    rows = e.concat([e.constant(owners), e.cast(e.reshape(indices, (pairs * most, 1)), "int64")], 1)
    taken = e.reshape(e.less(np.arange(most, dtype=np.int32)[None, :], lengths), (pairs * most,))
    places = e.call("WHERE", [taken], (pairs * most, 1), "int64", options_of("Where"))
    e.into(target.name, e.call("GATHER_ND", [rows, places], target.shape, "int64", options_of("GatherNd")))
    e.draft.tensors[target.name] = replace(target, bounded=True)


def _least_overlap(e: Emitter) -> float:
    """The overlap from which on TFLite drops a box: the next float32 above ONNX's, which has to be exceeded."""
    found = e.array(3, "iou_threshold") if e.has(3) else np.zeros(1, np.float32)
    threshold = np.float32(found.reshape(-1)[0] if found.size else 0.0)
    if not 0 <= threshold < 1:
        raise NotLowerableError(f"iou_threshold={threshold}")
    return float(np.nextafter(threshold, np.float32(1)))


def _ranked(e: Emitter) -> tuple[Tensor, Tensor]:
    """Positions of the boxes by falling score, and falling numbers for these, 0 where the score is too low.

    The kernel leaves open which of two equal scores comes first; in ONNX the first box does, as in TOPK_V2.
    """
    scores = e.input(1)
    count = scores.shape[2]
    ordered, order = e.top_k(scores, count)
    ranks = np.broadcast_to(np.arange(count, 0, -1, dtype=np.float32), scores.shape)
    if not e.has(4) or not math.prod(e.input(4).shape):
        return order, e.constant(ranks, role="ranks")
    above = e.greater(ordered, e.reshape(e.input(4), (1, 1, 1)))
    return order, e.select(above, e.constant(ranks[:1, :1], role="ranks"), 0.0)


def _corners(node: Node, e: Emitter) -> Tensor:
    """Two diagonal corners of each box, in any order, as TFLite takes them too.

    LiteRT 2.3 selects a box again and again that does not overlap itself, because it has no surface or an endless
    one. ONNX lets such boxes overlap nothing, so each is moved to a place of its own, far from all others.
    """
    corners = e.input(0)
    if node.integer("center_point_box", 0):
        # In this form a negative side is as good as none.
        centers, sides = e.split(corners, 2, (2, 2))
        halves = e.mul(e.maximum(sides, 0.0), 0.5)
        corners = e.concat([e.sub(centers, halves), e.add(centers, halves)], 2)
    one, other = e.split(corners, 2, (2, 2))
    rows, columns = e.split(e.sub(other, one), 2, (1, 1))
    surface = e.abs(e.mul(rows, columns))
    proper = e.logical_and(e.greater(surface, 0.0), e.less(surface, _ENDLESS))
    return e.select(proper, corners, _apart(corners.shape[1]))


def _apart(count: int) -> Array:
    """Boxes [1, count, 4] that overlap neither one another nor any that a model would make."""
    starts = 2.0**100 + np.arange(count) * 2.0**78
    corners = starts, np.zeros(count), starts + 2.0**77, np.ones(count)
    return np.stack(corners, 1).astype(np.float32)[None]


def _suppressed(e: Emitter, boxes: Tensor, ranks: Tensor, part: range, most: int, least: float) -> list[Tensor]:
    """Positions [most] of the boxes kept for one image and class, best first, and how many they are, a scalar."""
    inputs = [
        e.slice(boxes, (part.start, 0), (len(part), 4)),
        e.slice(ranks, (part.start,), (len(part),)),
        e.constant(np.array(most, np.int32), role="most"),
        e.constant(np.array(least, np.float32), role="overlap"),
        e.constant(np.array(0.5, np.float32), role="rank"),
    ]
    results = [((most,), "int32"), ((), "int32")]
    return e.calls("NON_MAX_SUPPRESSION_V4", inputs, results, options_of("NonMaxSuppressionV4"))


OPERATORS: dict[str, Lowering] = {"NonMaxSuppression": non_max_suppression, "RoiAlign": roi_align}
