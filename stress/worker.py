# SPDX-License-Identifier: MIT
"""One worker: the arena's calls, each counted, logged and judged by its errno.

A call gives 0 or the errno, so that steps read like the table in `judge.py`.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, MutableSequence
from typing import Any

import shmlock

from .errnos import Errnos
from .judge import ABSENT, DIRECTORY, FILE, name_of, names_of
from .plan import Plan
from .worklog import WorkLog

_NONE: frozenset[int] = frozenset()


class Worker:
    """What the steps of a scenario work with.

    Attributes:
        arena: the arena under test.
        plan: what the run was asked to do.
        number: 1 to `plan.procs`; 0 is the parent, which builds what must be there.
        log: counts so far; only to be read by the judges.
        marks: occupancy by name number, shared with the other workers.
        random: 0 <= x < 1, from the worker's own seeded stream.
        create, mkdir, unlink, rmdir: the arena's call of that name; give 0 or the errno.
            They pass `timeout=` on.
    """

    def __init__(
        self,
        arena: shmlock.Arena,
        plan: Plan,
        number: int,
        allowed_errnos: Errnos,
        marks: MutableSequence[int] | memoryview,
    ) -> None:
        self.arena = arena
        self.plan = plan
        self.number = number
        self.marks = marks
        self.log = log = WorkLog(number)
        self.rng = plan.random(number)
        self.random = self.rng.random
        self._allowed = allowed_errnos
        self._exists, self._stat, self._listdir = arena.exists, arena.stat, arena.listdir
        self.create = self._change("create", arena.create, log.created)
        self.mkdir = self._change("mkdir", arena.mkdir, log.made)
        self.unlink = self._change("unlink", arena.unlink, log.unlinked)
        self.rmdir = self._change("rmdir", arena.rmdir, log.removed)
        self.changes = {
            "create": self.create,
            "mkdir": self.mkdir,
            "unlink": self.unlink,
            "rmdir": self.rmdir,
        }

    def _change(
        self, op: str, call: Callable[..., Any], successes: dict[str, int]
    ) -> Callable[..., int]:
        by_op, refused = self.log.by_op, self.refused

        def change(path: str, **options: float) -> int:
            by_op[op] += 1
            try:
                call(path, **options)
            except OSError as error:
                return refused(op, path, error)
            successes[path] += 1
            return 0

        return change

    def refused(self, op: str, path: str, error: OSError) -> int:
        """Count and judge the error that a call ended with; gives its errno."""
        number = error.errno
        if number is None:
            self.violation(f"{op}({path}): {error!r} has no errno")
            return errno.EIO
        self.log.by_errno[number] += 1
        allowed = self._allowed.get(op, _NONE)
        if number not in allowed:
            self.violation(
                f"{op}({path}) ended with {error!r}; allowed here: {names_of(allowed) or 'none'}"
            )
        return number

    def exists(self, path: str) -> bool:
        """Whether something has that name."""
        self.log.by_op["exists"] += 1
        try:
            return bool(self._exists(path))
        except OSError as error:
            self.refused("exists", path, error)
            return False

    def look(self, path: str) -> tuple[str, int]:
        """What has that name, and its inode number: (ABSENT, 0) for nothing."""
        self.log.by_op["stat"] += 1
        try:
            seen = self._stat(path)
        except OSError as error:
            self.refused("stat", path, error)
            return ABSENT, 0
        return DIRECTORY if stat.S_ISDIR(seen.st_mode) else FILE, seen.st_ino

    def listdir(self, path: str) -> list[str] | None:
        """The names in a directory; None when it cannot be listed."""
        self.log.by_op["listdir"] += 1
        try:
            return list(self._listdir(path))
        except OSError as error:
            self.refused("listdir", path, error)
            return None

    def violation(self, text: str) -> None:
        """A rule is broken."""
        self.log.violation(text)

    def cover(self, counter: str) -> None:
        """Count that the run has been somewhere."""
        self.log.coverage[counter] += 1

    def expect(
        self, op: str, path: str, allowed: frozenset[int], why: str, **options: float
    ) -> int:
        """Make a change whose outcome is known beforehand; any other outcome is a violation."""
        outcome = self.changes[op](path, **options)
        if outcome not in allowed:
            self.violation(
                f"{op}({path}) gave {name_of(outcome)}, must give {names_of(allowed)}: {why}"
            )
        return outcome
