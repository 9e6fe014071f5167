"""`python -m conformance`: judge every case, print the table by operator, write build/conformance.json.

Exits with 1 when a case is wrong or crashed, or fewer pass than the committed floor.
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

from conformance.cases import Case, load
from conformance.judge import judge
from conformance.verdicts import Outcome, Verdict
from conformance.workers import judge_all

_FLOOR = Path(__file__).with_name("floor.json")
_RESULT = Path(__file__).parents[2] / "build" / "conformance.json"


def main(arguments: Sequence[str]) -> int:
    """Judge the cases that were asked for; only a run of all of them is written and held against the floor."""
    parser = argparse.ArgumentParser(prog="conformance", description="ONNX node tests through the TFLite lowering.")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="cases with this in their name")
    parser.add_argument("--list", default="", choices=[item.value for item in Verdict], help="name these, with reasons")
    parser.add_argument("--workers", default=2, type=int)
    parser.add_argument("--timeout", default=10.0, type=float, metavar="SECONDS", help="for one case")
    asked = parser.parse_args(arguments)
    started = time.monotonic()
    cases = load(asked.only)
    outcomes = judge_all([partial(judge, case) for case in cases], asked.workers, asked.timeout)
    seconds = time.monotonic() - started
    pairs = list(zip(cases, outcomes, strict=True))
    _print_table(pairs)
    for case, outcome in pairs:
        bad = outcome.verdict in (Verdict.WRONG, Verdict.CRASHED)
        if outcome.verdict == asked.list or (bad and not asked.list):
            print(f"{outcome.verdict}: {case.name}: {outcome.reason}")
    counts = Counter(outcome.verdict for outcome in outcomes)
    print(f"{len(cases)} cases: {_line(counts)}; {seconds:.1f} s")
    if asked.only:
        return 0
    _write(pairs, counts)
    return _against_floor(counts)


def _line(counts: Counter[Verdict]) -> str:
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict)


def _by_operator(pairs: Sequence[tuple[Case, Outcome]]) -> dict[str, Counter[Verdict]]:
    table: dict[str, Counter[Verdict]] = {}
    for case, outcome in pairs:
        table.setdefault(case.operator, Counter())[outcome.verdict] += 1
    return dict(sorted(table.items()))


def _print_table(pairs: Sequence[tuple[Case, Outcome]]) -> None:
    print(f"{'operator':28}" + "".join(f"{verdict:>9}" for verdict in Verdict))
    for operator, counts in _by_operator(pairs).items():
        print(f"{operator:28}" + "".join(f"{counts[verdict] or '':>9}" for verdict in Verdict))


def _write(pairs: Sequence[tuple[Case, Outcome]], counts: Counter[Verdict]) -> None:
    content = {
        "cases": len(pairs),
        **{verdict.value: counts[verdict] for verdict in Verdict},
        "by_operator": {
            operator: {verdict.value: found[verdict] for verdict in Verdict}
            for operator, found in _by_operator(pairs).items()
        },
    }
    _RESULT.parent.mkdir(exist_ok=True)
    _RESULT.write_text(json.dumps(content, indent=1) + "\n")


def _against_floor(counts: Counter[Verdict]) -> int:
    """0 when nothing is wrong or crashed and as many pass as ever did; raises nothing."""
    floor = int(json.loads(_FLOOR.read_text())["passed"])
    passed = counts[Verdict.PASSED]
    if passed < floor:
        print(f"fewer cases pass than the floor in {_FLOOR.name}: {passed} < {floor}")
        return 1
    if passed > floor:
        print(f"more cases pass than the floor: raise {_FLOOR.name} to {passed}")
    return 1 if counts[Verdict.WRONG] or counts[Verdict.CRASHED] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
