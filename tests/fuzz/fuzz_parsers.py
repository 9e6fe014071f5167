"""Coverage-guided fuzzing of every parser of foreign bytes, with atheris: `python tests/fuzz/fuzz_parsers.py 30`.

The argument is the time in seconds, divided among the parsers. It ends with status 0 and a line per parser, or shows
the first input that breaks a promise. pydantic's own code is not instrumented: each input of the fuzzer is parsed as it
is, and steers the damage that Hypothesis does to a valid example, so that what lies behind the first check is reached.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import atheris
from hypothesis import HealthCheck, given, settings

sys.path.insert(0, str(Path(__file__).parents[1]))
with atheris.instrument_imports(include=["edgefleet", "edgefleet_agent"]):
    from fuzz.mutations import hostile
    from fuzz.targets import TARGETS, check

MAX_INPUT_BYTES = 32 * 1024


class BrokenPromiseError(Exception):
    """A parser did with some input what it says that it never does."""


def fuzz_one(name: str, arguments: list[str]) -> None:
    """Fuzz one parser with libFuzzer's own arguments; ends the process."""
    target = TARGETS[name]

    def parse(data: bytes) -> None:
        if (problem := check(target, data)) is not None:
            raise BrokenPromiseError(f"{name}: {data[:500]!r}: {problem}")

    @settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(hostile(target.examples))
    def parse_damaged(data: bytes) -> None:
        parse(data)

    def run(data: bytes) -> None:
        parse(data)
        parse_damaged.hypothesis.fuzz_one_input(data)  # type: ignore[attr-defined]

    atheris.Setup([sys.argv[0], *arguments], run)
    atheris.Fuzz()


def main(total_s: float) -> int:
    """Each parser in a process of its own (libFuzzer ends it); returns the exit status."""
    share_s = max(1, round(total_s / len(TARGETS)))
    for name, target in TARGETS.items():
        with tempfile.TemporaryDirectory() as corpus:
            for number, example in enumerate(target.examples):
                (Path(corpus) / str(number)).write_bytes(example)
            options = [f"-max_total_time={share_s}", f"-max_len={MAX_INPUT_BYTES}", "-rss_limit_mb=1024", "-timeout=5"]
            options += ["-verbosity=0", "-print_final_stats=1", f"-artifact_prefix={corpus}/"]
            command = [sys.executable, __file__, "--one", name, *options, corpus]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        runs = [line.split()[-1] for line in done.stderr.splitlines() if "number_of_executed_units" in line]
        if done.returncode or not runs:
            said = (done.stdout[-3000:], done.stderr[-3000:])
            print(f"{name}: status {done.returncode} after {share_s} s", *said, sep="\n", file=sys.stderr)
            return 1
        print(f"{name}: {runs[0]} inputs", flush=True)
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "--one":
        fuzz_one(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main(float(sys.argv[1])))
