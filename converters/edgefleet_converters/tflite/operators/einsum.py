"""Einsum: any equation of any number of operands, two at a time, as one batched matrix product each.

Labels that repeat within an operand are its diagonal; letters broadcast only through an ellipsis.
"""

from __future__ import annotations

import math
import string
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Tensor
from edgefleet_converters.tflite.graph import Node, NotLowerableError
from edgefleet_converters.tflite.operators.contract import Lowering
from edgefleet_converters.tflite.operators.dense import product
from edgefleet_converters.tflite.operators.reduction import sum_over

_ELLIPSIS = "..."


@dataclass(frozen=True, slots=True)
class _Term:
    """A tensor and the label of each of its axes."""

    value: Tensor
    labels: str


def einsum(node: Node, e: Emitter) -> None:
    """Einsum of float32, float16 and 32- or 64-bit integers; implicit output labels are in alphabetical order."""
    values = e.inputs()
    sources, result = _labels(node.text("equation", "").replace(" ", ""), [value.rank for value in values])
    terms = [_diagonal(e, _Term(value, labels)) for value, labels in zip(values, sources, strict=True)]
    made, *others = terms
    for position, other in enumerate(others):
        wanted = set(result).union(*(term.labels for term in others[position + 1 :]))
        made = _contracted(e, _summed(e, made, wanted | set(other.labels)), other, wanted)
    made = _summed(e, made, set(result))
    e.into(node.outputs[0], _arranged(e, made, result))


def _labels(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Labels of the operands and of the result, one letter an axis; an ellipsis gets free letters."""
    sources, arrow, result = equation.partition("->")
    operands = sources.split(",")
    if len(operands) != len(ranks):
        raise NotLowerableError(f"the equation {equation!r} of {len(ranks)} operands")
    free = [letter for letter in string.ascii_letters if letter not in equation]
    hidden = [rank - len(term.replace(_ELLIPSIS, "")) for term, rank in zip(operands, ranks, strict=True)]
    hidden = [count if _ELLIPSIS in term else 0 for term, count in zip(operands, hidden, strict=True)]
    dots = "".join(free[: max(hidden)])
    named = [term.replace(_ELLIPSIS, dots[len(dots) - count :]) for term, count in zip(operands, hidden, strict=True)]
    if [len(term) for term in named] != list(ranks):
        raise NotLowerableError(f"the equation {equation!r} of operands of ranks {list(ranks)}")
    if not arrow:
        letters = sources.replace(_ELLIPSIS, "").replace(",", "")
        return named, dots + "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
    return named, result.replace(_ELLIPSIS, dots)


def _diagonal(e: Emitter, term: _Term) -> _Term:
    """Without repeated labels: all but the elements of equal positions become 0, and are summed away."""
    value, labels = term.value, term.labels
    for axis in reversed(range(len(labels))):
        first = labels.index(labels[axis])
        if first == axis:
            continue
        size = value.shape[axis]
        shape = [size if position in (first, axis) else 1 for position in range(value.rank)]
        equal = e.constant(np.eye(size, dtype=np.bool_).reshape(shape), role="diagonal")
        kept = e.select(equal, value, np.zeros((), value.dtype))
        value = e.reshape(sum_over(e, kept, [axis]), (*value.shape[:axis], *value.shape[axis + 1 :]))
        labels = labels[:axis] + labels[axis + 1 :]
    return _Term(value, labels)


def _summed(e: Emitter, term: _Term, wanted: Collection[str]) -> _Term:
    """Without the axes that nothing later needs."""
    axes = [axis for axis, label in enumerate(term.labels) if label not in wanted]
    if not axes:
        return term
    kept = [size for axis, size in enumerate(term.value.shape) if axis not in axes]
    labels = "".join(label for label in term.labels if label in wanted)
    return _Term(e.reshape(sum_over(e, term.value, axes), kept), labels)


def _arranged(e: Emitter, term: _Term, labels: str) -> Tensor:
    if sorted(labels) != sorted(term.labels):
        raise NotLowerableError(f"axes {labels!r} of a result that has {term.labels!r}")
    return e.transpose(term.value, [term.labels.index(label) for label in labels])


def _contracted(e: Emitter, left: _Term, right: _Term, wanted: Collection[str]) -> _Term:
    """The product of two terms, summed over the labels that both have and nothing later needs."""
    right = _summed(e, right, {*wanted, *left.labels})
    both = [label for label in left.labels if label in right.labels]
    batch = "".join(label for label in both if label in wanted)
    inner = "".join(label for label in both if label not in wanted)
    rows = "".join(label for label in left.labels if label not in both)
    columns = "".join(label for label in right.labels if label not in both)
    sizes = _sizes(left, right)
    a = _matrix(e, left, (batch, rows, inner), sizes)
    b = _matrix(e, right, (batch, inner, columns), sizes)
    made = product(e, a, b) if inner else e.mul(a, b)
    labels = batch + rows + columns
    return _Term(e.reshape(made, [sizes[label] for label in labels]), labels)


def _sizes(left: _Term, right: _Term) -> dict[str, int]:
    """Length of each label's axis; an axis of length 1 broadcasts."""
    sizes: dict[str, int] = {}
    for term in (left, right):
        for label, size in zip(term.labels, term.value.shape, strict=True):
            if min(size, sizes.get(label, 1)) > 1 and size != sizes[label]:
                raise NotLowerableError(f"axes {label!r} of {sizes[label]} and {size} elements")
            sizes[label] = max(size, sizes.get(label, 1))
    return sizes


def _matrix(e: Emitter, term: _Term, groups: tuple[str, str, str], sizes: dict[str, int]) -> Tensor:
    """The term as [batch, rows, columns], each a group of labels."""
    whole = e.broadcast_to(term.value, [sizes[label] for label in term.labels])
    turned = _arranged(e, _Term(whole, term.labels), "".join(groups))
    return e.reshape(turned, [math.prod(sizes[label] for label in group) for group in groups])


OPERATORS: dict[str, Lowering] = {"Einsum": einsum}
