# SPDX-License-Identifier: MIT
"""A bit of everything: one shared directory, a few levels, changes, lookups, listings, locks.

Attacked: P1 (one operation per name at a time), P2 (nothing happens in a directory that is being
removed) and P4 (different names do not disturb each other), all at once.

A broken lock shows as a name made twice, as a private name that changed by itself, as a held
name that has two holders, as a file left in a directory that was removed, or as broken
invariants at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errnos import DOOMED, FIXED, HELD_CHILD, allow
from ..names import HeldNames, PrivateNames, SharedNames
from ..scenario import Aim, Scenario, Step
from ..worker import Worker

_TOP = "/mixed"
_LEAVES = [f"{_TOP}/{n}" for n in "abcd"]
# Directories in directories, all of which are removed again and again.
_DOOMED = [f"{_TOP}/{n}" for n in ("x", "y", "x/sub", "y/sub")]
_DEEP = [f"{directory}/{n}" for directory in _DOOMED for n in "ab"]
_HELD_LEAVES = [*_LEAVES[:2], f"{_TOP}/x/a", f"{_TOP}/y/sub/a"]


def _setup(worker: Worker) -> None:
    worker.mkdir(_TOP)


def _worker(worker: Worker) -> Sequence[tuple[int, Step]]:
    private = PrivateNames(worker, _TOP, 24)
    leaves = SharedNames(worker, _LEAVES)
    doomed = SharedNames(worker, _DOOMED)
    deep = SharedNames(worker, _DEEP)
    held = HeldNames(worker, _HELD_LEAVES)
    return [
        (12, private.change),
        (6, private.look),
        (1, private.list),
        (8, leaves.create),
        (3, leaves.mkdir),
        (8, leaves.unlink),
        (3, leaves.rmdir),
        (4, leaves.look),
        (6, doomed.mkdir),
        (8, doomed.rmdir),
        (2, doomed.look),
        (2, doomed.list),
        (8, deep.create),
        (2, deep.mkdir),
        (10, deep.unlink),
        (3, deep.rmdir),
        (3, deep.look),
        (6, lambda: held.hold(held.pick(), held.change)),
        (2, lambda: held.try_hold(held.pick(), held.linger)),
    ]


SCENARIO = Scenario(
    name="everything-mixed",
    rule="P1, P2 and P4 together: every call and every kind of lock on one small tree",
    shared="one directory, two levels of directories that come and go, four leaf names",
    setup=_setup,
    worker=_worker,
    allowed_errnos=allow(FIXED, DOOMED, HELD_CHILD),
    aims=(
        Aim("holds"),
        Aim("locks_contended"),
        Aim("sleeps"),
        Aim("drains_waited", 100_000),
        Aim("dying_waits", 100_000),
    ),
    marks=len(_HELD_LEAVES),
    sleep_us=2.0,
    stutter=True,
)
