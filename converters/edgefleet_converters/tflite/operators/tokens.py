"""Features of token sequences: TfIdfVectorizer on tokens that are numbers.

Tokens that are text are refused.
"""

from __future__ import annotations

import numpy as np

from edgefleet_converters.tflite.emitter import Emitter
from edgefleet_converters.tflite.file import Tensor
from edgefleet_converters.tflite.graph import Array, Node, NotLowerableError
from edgefleet_converters.tflite.operators.contract import Lowering
from edgefleet_converters.tflite.operators.dense import connected


def tf_idf(node: Node, e: Emitter) -> None:
    """TfIdfVectorizer of int32 or int64 tokens [L] or [N, L]: every n-gram of the pool is compared everywhere.

    `weights` are refused where an n-gram's column differs from its place in the pool.
    """
    tokens = e.reshape(e.input(0), (-1, e.input(0).shape[-1]))
    columns = np.array(node.integers("ngram_indexes", ()))
    if "pool_strings" in node.attributes or tokens.dtype not in ("int32", "int64"):
        raise NotLowerableError("tokens that are text")
    if len(columns) != sum(len(grams) for grams in _grams(node)):
        raise NotLowerableError(f"{len(columns)} ngram_indexes for another number of n-grams")
    counts = [
        _occurrences(node, e, tokens, grams)
        for length, grams in enumerate(_grams(node), 1)
        if len(grams) and node.integer("min_gram_length", 1) <= length <= node.integer("max_gram_length", 1)
    ]
    first = sum(len(grams) for grams in _grams(node)[: node.integer("min_gram_length", 1) - 1])
    used = columns[first : first + sum(count.shape[1] for count in counts)]
    place = (np.arange(columns.max() + 1)[:, None] == used).astype(np.float32)
    found = connected(e, e.concat(counts, 1), e.constant(place, role="columns"), None)
    e.into(node.outputs[0], e.reshape(_weighed(node, e, found, columns), e.output().shape))


def _grams(node: Node) -> list[Array]:
    """The pool's n-grams: for each n an array [number, n]."""
    pool, starts = node.integers("pool_int64s", ()), node.integers("ngram_counts", ())
    ends = (*starts[1:], len(pool))
    parts: list[Array] = [
        np.array(pool[start:end], np.int64).reshape(-1, length)
        for length, (start, end) in enumerate(zip(starts, ends, strict=True), 1)
    ]
    return parts


def _occurrences(node: Node, e: Emitter, tokens: Tensor, grams: Array) -> Tensor:
    """How often each n-gram occurs in each row, over all distances between its tokens: [rows, n-grams]."""
    rows, size = tokens.shape
    number, length = grams.shape
    total = e.constant(np.zeros((rows, number), np.float32), role="none")
    # A single token has no distances.
    for step in range(1, 2 + (node.integer("max_skip_count", 0) if length > 1 else 0)):
        starts = size - step * (length - 1)
        if starts < 1:
            break
        hit: Tensor | None = None
        for position in range(length):
            seen = e.reshape(e.slice(tokens, [0, position * step], [rows, starts]), (rows, starts, 1))
            same = e.equal(seen, grams[:, position].reshape(1, 1, -1).astype(tokens.dtype))
            hit = same if hit is None else e.logical_and(hit, same)
        if hit is not None:
            total = e.add(total, e.reduce_sum(e.cast(hit, "float32"), [1], keepdims=False))
    return total


def _weighed(node: Node, e: Emitter, found: Tensor, columns: Array) -> Tensor:
    """Counts (TF), weights of what occurs (IDF), or their product (TFIDF)."""
    mode = node.text("mode", "TF")
    weights = np.array(node.numbers("weights", (1.0,) * len(columns)), np.float32)
    if mode == "TF":
        return found
    if mode not in ("IDF", "TFIDF") or not np.array_equal(columns, np.arange(len(weights))):
        raise NotLowerableError(f"mode {mode!r} with columns that are not in the pool's order")
    counted = found if mode == "TFIDF" else e.cast(e.greater(found, 0.0), "float32")
    return e.mul(counted, weights)


OPERATORS: dict[str, Lowering] = {"TfIdfVectorizer": tf_idf}
