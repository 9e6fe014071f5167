"""Choosing one option for every variable so that a sum of small cost tables is least: exact variable elimination.

Knows nothing of graphs or layouts. Where a table would grow too large, one variable is decided by what is known of it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Costs = NDArray[np.float64]
_LARGEST_TABLE = 1 << 16


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Cost of each combination of options of some variables: one array axis each, in the order of `variables`."""

    variables: tuple[int, ...]
    costs: Costs


def choose(options: Sequence[int], tables: Sequence[Table]) -> list[int]:
    """For each variable, which has `options[i]` of them, the option of a cheapest choice; the first one on a tie."""
    state = _Elimination(options)
    for table in tables:
        state.add(table)
    queue = [(state.reach(variable), variable) for variable, count in enumerate(options) if count > 1]
    heapq.heapify(queue)
    while queue:
        reach, variable = heapq.heappop(queue)
        popped = variable
        if variable in state.done or reach != state.reach(variable):
            continue
        if reach > _LARGEST_TABLE:
            variable = max(state.waiting(), key=lambda item: len(state.touching[item]))
            near = state.decide(variable)
        else:
            near = state.eliminate(variable)
        # The one that was too large need not be a neighbour of the one that was decided in its place.
        for other in near | ({popped} - state.done):
            heapq.heappush(queue, (state.reach(other), other))
    return state.chosen()


@dataclass(slots=True)
class _Elimination:
    """The tables that are left, by the variables they touch, and what was decided of those that are gone."""

    options: Sequence[int]
    touching: list[list[Table]] = field(init=False)
    done: set[int] = field(default_factory=set)
    _decisions: list[tuple[int, Table]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.touching = [[] for _ in self.options]

    def add(self, table: Table) -> None:
        """Take a table in; a variable with one option only has no say."""
        single = tuple(at for at, variable in enumerate(table.variables) if self.options[variable] == 1)
        kept = tuple(variable for variable in table.variables if self.options[variable] > 1)
        if kept:
            smaller = Table(kept, table.costs.squeeze(single))
            for variable in kept:
                self.touching[variable].append(smaller)

    def waiting(self) -> list[int]:
        """The variables that are still open."""
        return [item for item, count in enumerate(self.options) if count > 1 and item not in self.done]

    def reach(self, variable: int) -> int:
        """Size of the table that eliminating a variable makes."""
        return math.prod(self.options[other] for other in self._near(variable) | {variable})

    def _near(self, variable: int) -> set[int]:
        return {other for table in self.touching[variable] for other in table.variables} - {variable}

    def eliminate(self, variable: int) -> set[int]:
        """Replace all tables of a variable by one of its neighbours, which are returned."""
        near = self._near(variable)
        others = tuple(sorted(near))
        axes = (*others, variable)
        total = np.zeros([self.options[axis] for axis in axes])
        for table in self.touching[variable]:
            total = total + _spread(table, axes, self.options)
        self._close(variable, Table(others, total))
        if others:
            self.add(Table(others, total.min(axis=-1)))
        return near

    def decide(self, variable: int) -> set[int]:
        """Fix a variable by the least that each of its tables could still cost; returns its neighbours."""
        near, tables = self._near(variable), self.touching[variable]
        bound = np.zeros(self.options[variable])
        for table in tables:
            axis = table.variables.index(variable)
            bound += table.costs.min(axis=tuple(other for other in range(table.costs.ndim) if other != axis))
        option = int(np.argmin(bound))
        fixed = np.full(self.options[variable], np.inf)
        fixed[option] = 0.0
        self._close(variable, Table((), fixed))
        for table in tables:
            rest = tuple(other for other in table.variables if other != variable)
            if rest:
                self.add(Table(rest, np.take(table.costs, option, axis=table.variables.index(variable))))
        return near

    def _close(self, variable: int, table: Table) -> None:
        """Take the variable's tables out; `table` has the variable's own axis last, and says what to pick."""
        for old in self.touching[variable]:
            for other in old.variables:
                if other != variable:
                    self.touching[other].remove(old)
        self.touching[variable] = []
        self.done.add(variable)
        self._decisions.append((variable, table))

    def chosen(self) -> list[int]:
        """The option of each variable, the last decided first."""
        found = [0] * len(self.options)
        for variable, table in reversed(self._decisions):
            found[variable] = int(np.argmin(table.costs[tuple(found[other] for other in table.variables)]))
        return found


def _spread(table: Table, axes: Sequence[int], options: Sequence[int]) -> Costs:
    """The table's costs with the axes of a larger one, of length 1 where it has none."""
    order = sorted(range(len(table.variables)), key=lambda item: axes.index(table.variables[item]))
    present = set(table.variables)
    return table.costs.transpose(order).reshape([options[axis] if axis in present else 1 for axis in axes])
