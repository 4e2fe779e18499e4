# SPDX-License-Identifier: MIT
"""What one worker did, kept in its memory while it runs and sent to the judges at the end."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

# A broken lock can break thousands of times a second; the first few tell the story.
_MOST_VIOLATIONS = 20


def _counts() -> defaultdict[str, int]:
    return defaultdict(int)


@dataclass
class WorkLog:
    """Counts of one worker. The four dicts count SUCCESSFUL calls, per path."""

    worker: int
    by_op: defaultdict[str, int] = field(default_factory=_counts)
    by_errno: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    coverage: defaultdict[str, int] = field(default_factory=_counts)
    created: defaultdict[str, int] = field(default_factory=_counts)
    unlinked: defaultdict[str, int] = field(default_factory=_counts)
    made: defaultdict[str, int] = field(default_factory=_counts)
    removed: defaultdict[str, int] = field(default_factory=_counts)
    violations: list[str] = field(default_factory=list)
    violation_count: int = 0

    @property
    def ops(self) -> int:
        """Calls made, whatever came of them."""
        return sum(self.by_op.values())

    def violation(self, text: str) -> None:
        """Note a broken rule; beyond the first few only the count is kept."""
        self.violation_count += 1
        if len(self.violations) < _MOST_VIOLATIONS:
            self.violations.append(f"worker {self.worker}: {text}")

    def told(self) -> list[str]:
        """The violations, and how many more there were."""
        more = self.violation_count - len(self.violations)
        return self.violations + ([f"worker {self.worker}: and {more} more"] if more else [])
