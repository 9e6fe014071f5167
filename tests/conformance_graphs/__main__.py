"""`python -m conformance_graphs`: judge every graph, print one table, write build/conformance-graphs.json.

Exits with 1 when a graph is wrong, has more transposes than allowed, or crashes, and when int8 loses too much.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from conformance.verdicts import Outcome, Verdict
from conformance.workers import judge_all
from conformance_graphs.judge import Graph, judge
from conformance_graphs.networks import NETWORKS
from conformance_graphs.quantized import WITHIN_DB, judge_int8
from conformance_graphs.random_graphs import random_graph
from conformance_graphs.real import real_graphs
from conformance_graphs.small import fewest_transposes, small_graph

_RESULT = Path(__file__).parents[2] / "build" / "conformance-graphs.json"
_BAD = (Verdict.WRONG, Verdict.CRASHED)
_UNCOMPARED = (Verdict.REFUSED, Verdict.CRASHED)
_INT8, _INT8_RANDOM = "int8", "int8 random"
_JUDGES = {_INT8: judge_int8, _INT8_RANDOM: judge_int8}


def main(arguments: Sequence[str]) -> int:
    """Judge the families that were asked for; only a run of all of them is written."""
    parser = argparse.ArgumentParser(prog="conformance_graphs", description="Whole graphs through the TFLite lowering.")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="graphs with this in their family or name")
    parser.add_argument("--random", default=400, type=int, metavar="N", help="random graphs")
    parser.add_argument("--workers", default=2, type=int)
    parser.add_argument("--timeout", default=120.0, type=float, metavar="SECONDS", help="for one graph")
    asked = parser.parse_args(arguments)
    started = time.monotonic()
    graphs = [graph for graph in _graphs(asked.random) if asked.only in f"{graph.family}: {graph.name}"]
    jobs = [partial(_JUDGES.get(graph.family, judge), graph) for graph in graphs]
    pairs = list(zip(graphs, judge_all(jobs, asked.workers, asked.timeout), strict=True))
    seconds = time.monotonic() - started
    for graph, outcome in pairs:
        _print_notable(graph, outcome)
    _print_table(pairs)
    print(f"{len(pairs)} graphs: {_summary(pairs)}; {seconds:.0f} s")
    if not asked.only:
        _write(pairs, seconds)
    return 1 if any(outcome.verdict in _BAD for _, outcome in pairs) else 0


def _graphs(count: int) -> list[Graph]:
    return [
        *real_graphs(),
        *(Graph(name, _INT8, make) for name, make in NETWORKS.items()),
        *(Graph(f"random {seed}", _INT8_RANDOM, partial(random_graph, seed)) for seed in range(count)),
        *(Graph(f"random {seed}", "random", partial(random_graph, seed)) for seed in range(count)),
        *(Graph(f"small {seed}", "small", partial(small_graph, seed), 1, fewest_transposes) for seed in range(200)),
    ]


def _print_notable(graph: Graph, outcome: Outcome) -> None:
    """Every real graph and every int8 network, and of the random ones what did not pass."""
    told = outcome.measured
    if outcome.verdict is not Verdict.PASSED:
        print(f"{graph.name:28} {outcome.verdict}: {outcome.reason[:300]}")
    elif graph.family == _INT8:
        print(f"{graph.name:28} int8 {told['sqnr_db']:6.1f} dB, fake quantisation {told['fake_db']:6.1f} dB")
    elif graph.seeds > 1:
        added = told["transposes"] - told["own"]
        print(f"{graph.name:28} {told['transposes']:3.0f} transposes ({added:+.0f}), off by {told['distance']:.1e}")


def _summary(pairs: Sequence[tuple[Graph, Outcome]]) -> str:
    int8 = sum(graph.family in _JUDGES for graph, _ in pairs)
    counts = Counter(outcome.verdict for _, outcome in pairs)
    return f"float {len(pairs) - int8}, int8 {int8}, wrong {counts[Verdict.WRONG]}, crashed {counts[Verdict.CRASHED]}"


def _families(pairs: Sequence[tuple[Graph, Outcome]]) -> dict[str, list[Outcome]]:
    found: dict[str, list[Outcome]] = {}
    for graph, outcome in pairs:
        found.setdefault(graph.family, []).append(outcome)
    return found


def _print_table(pairs: Sequence[tuple[Graph, Outcome]]) -> None:
    print(f"{'family':16}" + "".join(f"{verdict:>9}" for verdict in Verdict) + "  transposes      own  optimum")
    for family, outcomes in _families(pairs).items():
        row = _row(outcomes)
        counts = "".join(f"{row[verdict.value] or '':>9}" for verdict in Verdict)
        print(f"{family:16}{counts}{row['transposes']:12}{row['own']:9}{row.get('optimum', ''):>9}")
        if "within_1_db" in row:
            constant = len(outcomes) - row["compared"] - sum(row[verdict.value] for verdict in _UNCOMPARED)
            print(
                f"{'':16}{row['within_1_db']} of {row['compared']} within {WITHIN_DB:g} dB of fake quantisation;"
                f" {constant} with constant outputs only"
            )


def _row(outcomes: Sequence[Outcome]) -> dict[str, int]:
    counts = Counter(outcome.verdict for outcome in outcomes)
    row = {verdict.value: counts[verdict] for verdict in Verdict}
    row["transposes"], row["own"] = _total(outcomes, "transposes"), _total(outcomes, "own")
    if any("optimum" in outcome.measured for outcome in outcomes):
        row["optimum"] = _total(outcomes, "optimum")
    told = [outcome.measured for outcome in outcomes if "sqnr_db" in outcome.measured]
    if told:
        row["compared"] = len(told)
        row["within_1_db"] = sum(item["sqnr_db"] >= item["fake_db"] - WITHIN_DB for item in told)
    return row


def _total(outcomes: Sequence[Outcome], what: str) -> int:
    return int(sum(outcome.measured.get(what, 0) for outcome in outcomes))


def _write(pairs: Sequence[tuple[Graph, Outcome]], seconds: float) -> None:
    counts = Counter(outcome.verdict for _, outcome in pairs)
    content = {
        "graphs": len(pairs),
        **{verdict.value: counts[verdict] for verdict in Verdict},
        "seconds": round(seconds, 1),
        "by_family": {family: _row(outcomes) for family, outcomes in _families(pairs).items()},
        "real": {
            graph.name: {"verdict": outcome.verdict.value, "reason": outcome.reason, **outcome.measured}
            for graph, outcome in pairs
            if graph.seeds > 1 or graph.family == _INT8
        },
    }
    _RESULT.parent.mkdir(exist_ok=True)
    _RESULT.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
