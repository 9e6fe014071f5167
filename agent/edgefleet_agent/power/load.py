"""How hard the processors work: the busy share of their time, each weighted by its clock against its highest.

What that means in watts is the model's business. Sources: proc(5), the kernel's Documentation/admin-guide/pm/cpufreq.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgefleet_agent.power import sysfs

STAT_BYTES = 1 << 20
# Fields of a cpu line that are idle time: idle and iowait. Guests' time, after the eighth, is in user time already.
IDLE_FIELDS = (3, 4)
FIELDS = 8
POLICIES = "sys/devices/system/cpu/cpufreq/policy*"


@dataclass(frozen=True, slots=True)
class Times:
    """Jiffies of one processor since boot."""

    busy: int
    total: int


@dataclass(frozen=True, slots=True)
class Policy:
    """Processors that share a clock: the file that tells it in kHz, and the highest that it reaches."""

    clock: Path
    highest_khz: int
    cpus: frozenset[int]


def read_times(root: Path) -> dict[int, Times]:
    """Processor → its times, of those that are online; raises UnreadableError, ValueError for what is no /proc/stat."""
    times: dict[int, Times] = {}
    for line in sysfs.read_text(root / "proc/stat", STAT_BYTES).splitlines():
        name, *values = line.split() or [""]
        if name[:3] == "cpu" and name[3:].isdecimal():
            fields = [int(value) for value in values[:FIELDS]]
            if len(fields) <= max(IDLE_FIELDS):
                raise ValueError(f"{name} has {len(fields)} fields")
            times[int(name[3:])] = Times(sum(fields) - sum(fields[index] for index in IDLE_FIELDS), sum(fields))
    if not times:
        raise ValueError("it names no processor")
    return times


def find_policies(root: Path) -> list[Policy]:
    """Clocks below `root` that are told; none on most virtual machines."""
    policies: list[Policy] = []
    for folder in sysfs.find(root, POLICIES):
        highest_khz = sysfs.number_or_none(folder / "cpuinfo_max_freq")
        cpus = (sysfs.text_or_none(folder / "related_cpus") or "").split()
        if highest_khz is not None and highest_khz > 0:
            of = frozenset(int(cpu) for cpu in cpus if cpu.isdecimal())
            policies.append(Policy(folder / "scaling_cur_freq", highest_khz, of))
    return policies


def clock_ratios(policies: Sequence[Policy]) -> dict[int, float]:
    """Processor → its clock against its highest, 0 to 1; without those whose driver does not tell."""
    ratios: dict[int, float] = {}
    for policy in policies:
        now_khz = sysfs.number_or_none(policy.clock)
        if now_khz is not None and now_khz > 0:
            ratios.update(dict.fromkeys(policy.cpus, min(1.0, now_khz / policy.highest_khz)))
    return ratios


def share(before: dict[int, Times], after: dict[int, Times], ratios: dict[int, float]) -> float | None:
    """Utilisation · f/f_max between two readings, 0 to 1; None where no time went by on any processor.

    f/f_max is taken as 1 where it is not told.
    """
    worked, total = 0.0, 0
    for cpu in before.keys() & after.keys():
        busy, spent = after[cpu].busy - before[cpu].busy, after[cpu].total - before[cpu].total
        # A processor that was taken offline and back may count anew.
        if spent > 0:
            worked += min(max(busy, 0), spent) * ratios.get(cpu, 1.0)
            total += spent
    return worked / total if total else None
