# SPDX-License-Identifier: MIT
"""The oracles. Each is a plain function of what was seen, so that tests can feed it lies.

On the spot (called by the workers): `expected`, for a name whose state the worker knows because
nobody else may change it: its own private name, or a name whose lock it holds.
Afterwards (called by the parent): `conservation`, `aims_missed`.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable, Mapping, Sequence

from .scenario import Aim
from .worklog import WorkLog

ABSENT, FILE, DIRECTORY = "nothing", "file", "directory"

_EMPTY_OR_NOT = frozenset({0, errno.ENOTEMPTY})

# What a call must answer, by what the name is. From mkdir(2), open(2), unlink(2), rmdir(2).
_EXPECTED: Mapping[tuple[str, str], frozenset[int]] = {
    ("create", ABSENT): frozenset({0}),
    ("create", FILE): frozenset({errno.EEXIST}),
    ("create", DIRECTORY): frozenset({errno.EEXIST}),
    ("mkdir", ABSENT): frozenset({0}),
    ("mkdir", FILE): frozenset({errno.EEXIST}),
    ("mkdir", DIRECTORY): frozenset({errno.EEXIST}),
    ("unlink", ABSENT): frozenset({errno.ENOENT}),
    ("unlink", FILE): frozenset({0}),
    ("unlink", DIRECTORY): frozenset({errno.EISDIR}),
    ("rmdir", ABSENT): frozenset({errno.ENOENT}),
    ("rmdir", FILE): frozenset({errno.ENOTDIR}),
    ("rmdir", DIRECTORY): frozenset({0}),
}

_AFTER: Mapping[str, str] = {
    "create": FILE,
    "mkdir": DIRECTORY,
    "unlink": ABSENT,
    "rmdir": ABSENT,
}


def expected(op: str, kind: str, *, childless: bool = True) -> frozenset[int]:
    """Errnos (0: success) that `op` may give on a name that is `kind` and stays so.

    `childless` False: others may have made entries in the directory.
    """
    if op == "rmdir" and kind == DIRECTORY and not childless:
        return _EMPTY_OR_NOT
    return _EXPECTED[op, kind]


def after(op: str, kind: str, outcome: int) -> str:
    """What the name is after `op` ended with `outcome`."""
    return kind if outcome else _AFTER[op]


# Where Linux has two names for a number, Python's errno.errorcode has the less usual one.
_USUAL = {errno.EAGAIN: "EAGAIN", errno.EDEADLK: "EDEADLK", errno.EOPNOTSUPP: "EOPNOTSUPP"}


def name_of(number: int) -> str:
    """ENOENT for 2 and so on; "success" for 0."""
    if not number:
        return "success"
    return _USUAL.get(number) or errno.errorcode.get(number, str(number))


def names_of(numbers: Collection[int]) -> str:
    """Several errnos in words, as in "ENOENT or ENOTEMPTY"."""
    return " or ".join(name_of(number) for number in sorted(numbers))


def listing(seen: Sequence[str], lasting: Collection[str], absent: Collection[str]) -> list[str]:
    """Judge a listing: `lasting` entries exactly once, `absent` ones not at all.

    Both are names that nobody but the judge's worker changes, and it was listing.
    """
    faults = []
    for name in lasting:
        times = seen.count(name)
        if times != 1:
            faults.append(f"listed {times} times, was there throughout: {name}")
    present = set(seen)
    faults += [f"listed, but was not there: {name}" for name in absent if name in present]
    return faults


def conservation(logs: Iterable[WorkLog], tree: Mapping[str, str]) -> list[str]:
    """What was made minus what was removed must be what is left.

    Over all processes, successful makes minus successful removals of one path are 0 or 1 for
    each kind, and `tree` (path to FILE or DIRECTORY) has exactly the ones.
    """
    sums: dict[tuple[str, str], list[int]] = {}
    for log in logs:
        for kind, came, went in (
            (FILE, log.created, log.unlinked),
            (DIRECTORY, log.made, log.removed),
        ):
            for path, n in came.items():
                sums.setdefault((path, kind), [0, 0])[0] += n
            for path, n in went.items():
                sums.setdefault((path, kind), [0, 0])[1] += n

    faults = []
    for (path, kind), (makes, removals) in sorted(sums.items()):
        left = 1 if tree.get(path) == kind else 0
        if makes - removals != left:
            verbs = ("create", "unlink") if kind == FILE else ("mkdir", "rmdir")
            faults.append(
                f"{path}: {makes} {verbs[0]} and {removals} {verbs[1]} succeeded, "
                f"yet {left} {kind} is left"
            )
    faults += [
        f"{path}: a {kind} is left that nobody made"
        for path, kind in sorted(tree.items())
        if (path, kind) not in sums
    ]
    return faults


def aims_missed(aims: Iterable[Aim], coverage: Mapping[str, int], ops: int) -> list[str]:
    """Aims of a run that was long enough to reach them and did not."""
    return [
        f"aim not reached: {aim.counter} is still 0 after {ops} operations "
        f"(a run that never was where it was sent proves nothing)"
        for aim in aims
        if ops >= aim.from_ops and coverage.get(aim.counter, 0) <= 0
    ]


def aims_not_judged(aims: Iterable[Aim], coverage: Mapping[str, int], ops: int) -> list[str]:
    """Aims that were not reached by a run too short to be blamed for it."""
    return [
        f"{aim.counter} is 0, not judged below {aim.from_ops} operations"
        for aim in aims
        if ops < aim.from_ops and coverage.get(aim.counter, 0) <= 0
    ]
