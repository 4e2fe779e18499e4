# SPDX-License-Identifier: MIT
"""Two names, and everybody wants them.

Attacked: P1, one operation per name at a time, and the lock word itself: WAITER set by a
compare-and-swap, unlock clears LOCK and WAITER in one step and then wakes all.

A broken lock shows as two creates of one name without an unlink between, or as two holders; a
lost wake-up shows as a worker that hangs.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errnos import FIXED
from ..names import HeldNames, SharedNames
from ..scenario import Aim, Scenario, Step
from ..worker import Worker

_TOP = "/storm"
_NAMES = [f"{_TOP}/one", f"{_TOP}/two"]


def _setup(worker: Worker) -> None:
    worker.mkdir(_TOP)


def _worker(worker: Worker) -> Sequence[tuple[int, Step]]:
    names = SharedNames(worker, _NAMES)
    held = HeldNames(worker, _NAMES)
    return [
        (10, names.create),
        (10, names.unlink),
        (5, names.mkdir),
        (5, names.rmdir),
        (3, names.look),
        (4, lambda: held.hold(held.pick(), held.change)),
        (2, lambda: held.hold(held.pick(), held.linger)),
        (2, lambda: held.try_hold(held.pick(), held.linger)),
    ]


SCENARIO = Scenario(
    name="same-name-storm",
    rule="P1: one operation per name at a time; no wake-up is lost",
    shared="two names",
    setup=_setup,
    worker=_worker,
    allowed_errnos=FIXED,
    aims=(Aim("holds"), Aim("locks_contended"), Aim("sleeps")),
    marks=len(_NAMES),
    spin_us=1.0,
)
