# SPDX-License-Identifier: MIT
"""Which errnos a call may end with, by what the scenario does round it. Others are violations.

Start from `FIXED` and `allow` more, never the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping
from errno import EBUSY, EDEADLK, EEXIST, EISDIR, ENOENT, ENOTDIR, ENOTEMPTY, ETIMEDOUT

Errnos = Mapping[str, frozenset[int]]


def _sets(**errnos: set[int]) -> Errnos:
    return {op: frozenset(numbers) for op, numbers in errnos.items()}


def allow(*parts: Errnos) -> Errnos:
    """The union, per operation."""
    ops = {op for part in parts for op in part}
    return {op: frozenset().union(*(part.get(op, frozenset()) for part in parts)) for op in ops}


#: The directory stays; its names come and go as files and as empty directories.
FIXED = _sets(
    create={EEXIST},
    mkdir={EEXIST},
    unlink={ENOENT, EISDIR},
    rmdir={ENOENT, ENOTDIR},
    stat={ENOENT},
    exists=set(),
    listdir={ENOENT, ENOTDIR},
    lock=set(),
)

#: The directory, too, comes and goes while others work in it.
DOOMED = _sets(
    create={ENOENT},
    mkdir={ENOENT},
    rmdir={ENOTEMPTY},
    lock={ENOENT},
)

#: What is to be removed may have a child that a person holds.
HELD_CHILD = _sets(rmdir={EBUSY})

#: People hold names for long, and the callers give up waiting.
IMPATIENT = _sets(create={ETIMEDOUT}, mkdir={ETIMEDOUT}, unlink={ETIMEDOUT}, rmdir={ETIMEDOUT})

#: Tasks that hold a name wait for another one: circles.
CIRCLES = _sets(
    create={EDEADLK}, mkdir={EDEADLK}, unlink={EDEADLK}, rmdir={EDEADLK}, lock={EDEADLK}
)
