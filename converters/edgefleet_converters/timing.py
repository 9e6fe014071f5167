"""The last, exclusive stage: latencies of the variants that may ship, all measured together on this host.

Kept in the cache under the host's fingerprint, so that no figure is ever shown for another host.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter

from edgefleet_converters.cache import Cache, Entry
from edgefleet_converters.cache_key import latency_key
from edgefleet_converters.score.host import Host
from edgefleet_converters.score.latency import Latency, measure_latencies
from edgefleet_converters.score.latency_child import LatencyJob

_FOUND: TypeAdapter[dict[str, Latency | str]] = TypeAdapter(dict[str, Latency | str])


def time_variants(
    jobs: Mapping[str, LatencyJob], host: Host, cache: Cache | None, work: Path
) -> dict[str, Latency | str]:
    """Latency by variant, or one line on why there is none; all of a set are kept or measured together.

    `work` is a folder for what comes out of the cache.
    """
    key = latency_key(jobs, host) if cache else ""
    if cache and (kept := cache.get(key, work / "latencies")):
        return _FOUND.validate_json(kept.facts)
    found = measure_latencies(jobs, host)
    if cache:
        cache.put(key, Entry(_FOUND.dump_json(found).decode(), {}))
    return found
