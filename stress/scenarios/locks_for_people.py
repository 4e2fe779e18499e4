# SPDX-License-Identifier: MIT
"""People hold names: with patience and without, two at a time, and in circles made on purpose.

Attacked: a NameLock excludes every change of its name and every other NameLock of it, in every
process, and nothing else; a wait that could never end is found and broken (DeadlockError); a wait
with a timeout ends; a directory with a held name in it cannot be removed (EBUSY), not even frozen.

A broken lock shows as two holders of one name, as a held name that was changed by somebody else,
as an owner that is somebody else, or as workers that wait for one another for ever.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Sequence

import shmlock

from ..errnos import CIRCLES, DOOMED, FIXED, HELD_CHILD, IMPATIENT, allow
from ..judge import DIRECTORY
from ..names import HeldNames
from ..scenario import Aim, Scenario, Step
from ..worker import Worker

_TOP = "/people"
_NAMES = [f"{_TOP}/{n}" for n in "abcd"]
_HOUSE = f"{_TOP}/house"
_DOOR = f"{_HOUSE}/door"
_ALL = [*_NAMES, _DOOR]
_DOOR_NUMBER = len(_NAMES)

_PATIENCE_S = 0.0003
_LONG_S = 0.001


class _Person:
    """One worker's ways with locks."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._held = HeldNames(worker, _ALL)
        # The same names through other objects: it is the name that is locked, not the object.
        self._again = [worker.arena.lock(path) for path in _ALL]

    def _name(self) -> int:
        """A name that is not in the house."""
        return int(self._worker.random() * _DOOR_NUMBER)

    def hold(self) -> None:
        """Hold a name and change it."""
        self._held.hold(self._held.pick(), self._held.change)

    def hold_impatiently(self) -> None:
        """Wait a little, or not at all."""
        patience = _PATIENCE_S if self._worker.random() < 0.5 else 0.0
        self._held.try_hold(self._held.pick(), self._held.linger, patience)

    def hold_long(self) -> None:
        """Hold a name while the others lose their patience."""

        def inside(n: int) -> None:
            time.sleep(_LONG_S)
            self._held.linger(n)

        self._held.hold(self._name(), inside)

    def hold_two(self) -> None:
        """Hold two names, in any order: circles."""

        def first(n: int) -> None:
            os.sched_yield()
            other = (n + 1 + int(self._worker.random() * (_DOOR_NUMBER - 1))) % _DOOR_NUMBER
            self._held.hold(other, self._held.linger)
            self._held.linger(n)

        self._held.hold(self._name(), first)

    def hold_and_change_another(self) -> None:
        """Hold a name and change one that somebody else may hold: circles, too."""

        def inside(n: int) -> None:
            os.sched_yield()
            self._held.linger(n)
            self.change((n + 1) % _DOOR_NUMBER)
            self._held.linger(n)

        self._held.hold(self._name(), inside)

    def change(self, n: int | None = None) -> None:
        """Change a name that anybody may hold, half of the time with little patience."""
        worker = self._worker
        path = _NAMES[self._name() if n is None else n]
        change = worker.create if worker.random() < 0.5 else worker.unlink
        if worker.random() < 0.5:
            change(path)
        elif change(path, timeout=_PATIENCE_S) == errno.ETIMEDOUT:
            worker.cover("call_timeouts")

    def ask(self) -> None:
        """Hold a name and ask whose it is, through another object."""
        self._held.hold(self._held.pick(), self._whose)

    def _whose(self, n: int) -> None:
        worker, lock, path = self._worker, self._again[n], _ALL[n]
        if not lock.locked():
            worker.violation(f"{path}: held by this worker, and locked() is False")
        owner = lock.owner()
        if owner is None or (owner.pid, owner.tid) != (os.getpid(), threading.get_native_id()):
            worker.violation(f"{path}: held by this worker, and its owner is {owner}")
        if lock.acquire(blocking=False):
            worker.violation(f"{path}: held by this worker, and locked once more")
            lock.release()
        try:
            lock.release()
        except RuntimeError:
            worker.cover("foreign_releases_refused")
        else:
            worker.violation(f"{path}: released through an object that did not hold it")
        self._held.linger(n)

    def wait_for_oneself(self) -> None:
        """The smallest circle: it must be found, and the lock must stay held."""
        self._held.hold(self._name(), self._oneself)

    def _oneself(self, n: int) -> None:
        worker, lock = self._worker, self._again[n]
        worker.log.by_op["lock"] += 1
        try:
            lock.acquire()
        except shmlock.DeadlockError as error:
            worker.refused("lock", _ALL[n], error)
            worker.cover("own_lock_refused")
        else:
            worker.violation(f"{_ALL[n]}: locked twice by this worker")
            lock.release()
        self._held.linger(n)

    def guard_the_house(self) -> None:
        """A directory with a held name in it stays."""
        self._held.hold(_DOOR_NUMBER, self._guard)

    def _guard(self, n: int) -> None:
        worker = self._worker
        before = worker.look(_HOUSE)
        worker.expect("rmdir", _HOUSE, frozenset({errno.EBUSY}), f"this worker holds {_DOOR}")
        os.sched_yield()
        now = worker.look(_HOUSE)
        if before[0] != DIRECTORY or now != before:
            worker.violation(f"{_HOUSE}: was {before}, is {now}, while this worker held {_DOOR}")
        self._held.linger(n)

    def build(self) -> None:
        """Make the house."""
        self._worker.mkdir(_HOUSE)

    def raze(self) -> None:
        """Remove the house, when nobody is at the door."""
        if self._worker.rmdir(_HOUSE) == errno.EBUSY:
            self._worker.cover("rmdirs_refused_for_a_person")


def _setup(worker: Worker) -> None:
    worker.mkdir(_TOP)


def _worker(worker: Worker) -> Sequence[tuple[int, Step]]:
    person = _Person(worker)
    return [
        (6, person.hold),
        (6, person.hold_impatiently),
        (1, person.hold_long),
        (4, person.hold_two),
        (3, person.hold_and_change_another),
        (6, person.change),
        (2, person.ask),
        (1, person.wait_for_oneself),
        (3, person.guard_the_house),
        (4, person.build),
        (4, person.raze),
    ]


SCENARIO = Scenario(
    name="locks-for-people",
    rule="a held name has one holder and changes only by that holder; circles are broken",
    shared="four names, and a directory that comes and goes with one name in it",
    setup=_setup,
    worker=_worker,
    allowed_errnos=allow(FIXED, DOOMED, HELD_CHILD, IMPATIENT, CIRCLES),
    aims=(
        Aim("holds", 1000),
        Aim("deadlocks", 3000),
        Aim("own_lock_refused", 3000),
        Aim("lock_timeouts", 3000),
        Aim("call_timeouts", 5000),
        Aim("rmdirs_refused_for_a_person", 5000),
    ),
    marks=len(_ALL),
)
