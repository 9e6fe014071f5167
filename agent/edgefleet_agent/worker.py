"""The worker: a child process that opens one variant and tests it, measures it, or infers with it.

It speaks JSON lines over inherited pipes and ends when that closes, so it never outlives its agent. It decides
nothing: a crash or hang of a runtime stays in here.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from edgefleet import log_lines
from edgefleet.errors import EdgefleetError
from edgefleet_agent import golden, runtimes
from edgefleet_agent.channel import Channel, Message
from edgefleet_agent.runtimes import Options
from edgefleet_agent.serving import Samples, Serving, one_line_of
from edgefleet_agent.shared_arrays import SharedArrays
from edgefleet_agent.sinks import Results
from edgefleet_agent.sources import open_source
from edgefleet_agent.standing_clients import StandingClients
from edgefleet_agent.tensors import Region
from edgefleet_agent.variant import Array, Arrays, Variant

PR_SET_PDEATHSIG = 1
BYTES_PER_MB = 1_000_000
OOM_SCORE_ADJ = "500"


def _self_test(channel: Channel, variant: Variant, plan: Message) -> None:
    channel.send({"kind": "self_test", **golden.self_test(variant, Path(plan["slot"], plan["golden_file"]))})


def _benchmark(channel: Channel, variant: Variant, plan: Message) -> None:
    """Run the golden inputs as often as the agent says, each time that it says so."""
    samples = _warmed_up(variant, plan)
    channel.send({"kind": "ready"})
    while True:
        message = channel.receive(None)
        if message is not None:
            channel.send({"kind": "ran", **_measured(variant, samples, message)})


def _measured(variant: Variant, samples: Sequence[Arrays], asked: Message) -> Message:
    """At least `runs` inferences, and at least `seconds`: of each the runtime's call, and that with its borders.

    Told are twice `most` of them or fewer, evenly spread, from the first on; `runs` is how many there were.
    """
    runs, inference_s, end_to_end_s = asked["runs"], array("d"), array("d")
    until_s = time.perf_counter() + asked["seconds"]
    while len(inference_s) < runs or time.perf_counter() < until_s:
        began_s = time.perf_counter()
        prepared = variant.prepared(samples[len(inference_s) % len(samples)])
        prepared_s = time.perf_counter()
        outputs = variant.infer_prepared(prepared)
        inferred_s = time.perf_counter()
        variant.restored(outputs)
        inference_s.append(round(inferred_s - prepared_s, 9))
        end_to_end_s.append(round(time.perf_counter() - began_s, 9))
    step = max(1, len(inference_s) // asked["most"])
    told = {"seconds": list(inference_s[::step]), "end_to_end_s": list(end_to_end_s[::step])}
    return {**told, "runs": len(inference_s)}


def _run(channel: Channel, variant: Variant, plan: Message) -> None:
    """Serve requests, and a source where there is one."""
    region = Region(plan["memory"])
    arrays = SharedArrays(region, variant.spec)
    clients = StandingClients(socket.socket(fileno=plan["clients"]), region, channel)
    _warmed_up(variant, plan)
    channel.send({"kind": "ready"})
    source = plan["source"]

    def samples() -> Samples:
        return Samples(lambda: open_source(source, variant.spec), source["rate_per_s"])

    results = Results(plan["sinks"], variant.spec, plan["digest"])
    opens = None if source is None else samples
    Serving(channel, variant, arrays, opens, plan["window_s"], results, clients).run()


def _warmed_up(variant: Variant, plan: Message) -> list[dict[str, Array]]:
    """The golden inputs, the first of which was inferred on: a runtime packs its weights at the first inference."""
    samples = golden.inputs(golden.load(Path(plan["slot"], plan["golden_file"])), variant)
    variant.infer(samples[0])
    return samples


MODES: dict[str, Callable[[Channel, Variant, Message], None]] = {
    "self_test": _self_test,
    "benchmark": _benchmark,
    "run": _run,
}


def work(channel: Channel, clients: int) -> None:
    """Receive a plan, open its variant, and do what its mode says; raises EOFError when the agent is gone.

    `clients`: the descriptor through which connections come.
    """
    while (plan := channel.receive(None)) is None:
        pass
    if plan["memory_mb"] is not None:
        _limit_memory(plan["memory_mb"] * BYTES_PER_MB)
    options = Options(**{**plan["options"], "providers": tuple(plan["options"]["providers"])})
    MODES[plan["mode"]](channel, Variant(Path(plan["slot"]), plan["spec"], options), {**plan, "clients": clients})


def _limit_memory(limit_bytes: int) -> None:
    """Have the kernel refuse this process more than that, before a board's own memory is gone (setrlimit(2)).

    Writable private memory is what counts: the files that a runtime maps may be many times as large.
    """
    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))


def _end_before_the_agent() -> None:
    """Have the kernel end this process rather than its agent where memory is gone, or a cgroup's limit is reached.

    See oom_score_adj in proc(5).
    """
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE_ADJ, encoding="ascii")


def _end_with_the_agent() -> None:
    """Have the kernel kill this process when its agent dies, also in the middle of a runtime's call (prctl(2))."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    """Entry point: `python -m edgefleet_agent.worker READS WRITES CLIENTS [RUNTIME]`: two pipes and a socket.

    RUNTIME, one of `runtimes.RUNTIMES`, is loaded before there is a plan.
    """
    _end_with_the_agent()
    _end_before_the_agent()
    log_lines.to_stderr()
    channel = Channel(int(sys.argv[1]), int(sys.argv[2]))
    try:
        for runtime in sys.argv[4:]:
            runtimes.load(runtime)
        work(channel, int(sys.argv[3]))
    except (EOFError, ConnectionError):
        return 0
    except EdgefleetError as error:
        channel.send({"kind": "failed", "reason": str(error)})
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - whatever a runtime raises becomes one line for the agent
        channel.send({"kind": "failed", "reason": one_line_of(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
