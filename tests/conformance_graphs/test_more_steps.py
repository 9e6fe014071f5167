"""Random graphs with products, blocks, regions and slopes beside convolutions: right, whatever is folded or moved."""

from __future__ import annotations

from functools import partial

import pytest

from conformance.verdicts import Verdict
from conformance_graphs.judge import Graph, judge
from conformance_graphs.random_graphs import random_graph
from conformance_graphs.random_steps import MORE


@pytest.mark.parametrize("seed", range(100))
def test_random_graphs_of_more_operators(seed: int) -> None:
    found = judge(Graph("", "", partial(random_graph, seed, MORE)))
    assert found.verdict is Verdict.PASSED, found.reason
