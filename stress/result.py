# SPDX-License-Identifier: MIT
"""What came of a run, and how it is written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .judge import name_of
from .plan import Plan

PASS, BROKEN, NOT_REACHED, INTERRUPTED = 0, 1, 3, 130

_MOST_VIOLATIONS = 50


@dataclass
class Result:
    """One run.

    `violations` are broken rules, `missed` aims that were not reached, `notes` what people may
    want to know besides.
    """

    plan: Plan
    took: float = 0.0
    violations: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    by_op: Mapping[str, int] = field(default_factory=dict)
    by_errno: Mapping[int, int] = field(default_factory=dict)
    coverage: Mapping[str, int] = field(default_factory=dict)
    worker_ops: Sequence[int] = ()
    max_in_flight: int = 0
    recoveries: int = 0

    @property
    def ops(self) -> int:
        """Calls of all workers, whatever came of them."""
        return sum(self.by_op.values())

    @property
    def ops_per_s(self) -> float:
        """Over the time from the common start to the end of the last worker."""
        return self.ops / self.took if self.took > 0 else 0.0

    @property
    def passed(self) -> bool:
        """No rule broken and no aim missed."""
        return not self.violations and not self.missed

    @property
    def status(self) -> int:
        """Exit status of this run."""
        return BROKEN if self.violations else NOT_REACHED if self.missed else PASS

    def as_json(self) -> dict[str, Any]:
        """The object that api.md describes."""
        errors = {name_of(number): n for number, n in self.by_errno.items()}
        violations = shortened([*self.violations, *self.missed])
        return {
            "verdict": verdict(self.passed),
            "violations": violations,
            "ops": self.ops,
            "ops_per_s": round(self.ops_per_s, 1),
            "by_op": dict(sorted(self.by_op.items())),
            "by_errno": dict(sorted(errors.items())),
            "max_in_flight_one_dir": self.max_in_flight,
            "kills": 0,
            "recoveries": self.recoveries,
            "coverage": dict(sorted(self.coverage.items())),
            "procs": self.plan.procs,
            "seconds": self.plan.seconds,
            "seed": self.plan.seed,
            "locking": self.plan.locking,
            "scenario": self.plan.scenario,
        }


def verdict(passed: bool) -> str:
    """The word for it."""
    return "pass" if passed else "fail"


def shortened(violations: list[str]) -> list[str]:
    """The first ones, and how many more."""
    if len(violations) <= _MOST_VIOLATIONS:
        return violations
    more = len(violations) - _MOST_VIOLATIONS
    return [*violations[:_MOST_VIOLATIONS], f"and {more} more"]


def status_of(results: Sequence[Result]) -> int:
    """Exit status of several runs: a broken rule counts before an aim that was missed."""
    statuses = {result.status for result in results}
    return BROKEN if BROKEN in statuses else NOT_REACHED if NOT_REACHED in statuses else PASS
