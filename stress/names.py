# SPDX-License-Identifier: MIT
"""Three ways for a worker to use names, each with its judge: private, shared, held."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from . import judge
from .judge import ABSENT, DIRECTORY, FILE
from .worker import Worker

_OPS = ("create", "mkdir", "unlink", "rmdir")
# A change that is going to succeed, by what the name is.
_SENSIBLE = {ABSENT: ("create", "mkdir"), FILE: ("unlink",), DIRECTORY: ("rmdir",)}
_SENSIBLE_SHARE = 0.75


class PrivateNames:
    """Names in a shared, lasting directory that only this worker touches.

    Neighbours must not be felt: every outcome follows from what this worker did before.
    """

    def __init__(self, worker: Worker, directory: str, count: int) -> None:
        self._worker = worker
        self._directory = directory
        self._names = [f"w{worker.number}-{n}" for n in range(count)]
        self._paths = [f"{directory}/{name}" for name in self._names]
        self._kinds = [ABSENT] * count
        self._inodes = [0] * count

    def change(self) -> None:
        """Make or remove one name."""
        worker = self._worker
        random = worker.random
        n = int(random() * len(self._paths))
        kind = self._kinds[n]
        ops = _SENSIBLE[kind] if random() < _SENSIBLE_SHARE else _OPS
        op = ops[int(random() * len(ops))]
        allowed = judge.expected(op, kind)
        outcome = worker.expect(op, self._paths[n], allowed, f"a private name, {kind} so far")
        self._kinds[n] = now = judge.after(op, kind, outcome)
        if now != kind:
            self._inodes[n] = 0

    def look(self) -> None:
        """Stat one name: kind as left, and the inode number that it had before."""
        worker = self._worker
        n = int(worker.random() * len(self._paths))
        kind, inode = worker.look(self._paths[n])
        if kind != self._kinds[n]:
            worker.violation(
                f"stat({self._paths[n]}) sees {kind}, a private name, {self._kinds[n]} so far"
            )
        elif self._inodes[n] not in (0, inode):
            worker.violation(
                f"stat({self._paths[n]}) sees inode {inode:#x}, was {self._inodes[n]:#x}"
            )
        else:
            self._inodes[n] = inode

    def list(self) -> None:
        """List the directory: own names that are there exactly once, others not at all."""
        worker = self._worker
        seen = worker.listdir(self._directory)
        if seen is None:
            worker.violation(f"listdir({self._directory}) failed, the directory is lasting")
            return
        there = [
            name for name, kind in zip(self._names, self._kinds, strict=True) if kind != ABSENT
        ]
        gone = [name for name, kind in zip(self._names, self._kinds, strict=True) if kind == ABSENT]
        for fault in judge.listing(seen, there, gone):
            worker.violation(f"listdir({self._directory}): {fault}")


class SharedNames:
    """Names that all workers change as they like; judged by errno, and added up afterwards."""

    def __init__(self, worker: Worker, paths: Sequence[str]) -> None:
        self._worker = worker
        self._paths = list(paths)

    def _pick(self) -> str:
        return self._paths[int(self._worker.random() * len(self._paths))]

    def create(self) -> None:
        """Make a file."""
        self._worker.create(self._pick())

    def mkdir(self) -> None:
        """Make a directory."""
        self._worker.mkdir(self._pick())

    def unlink(self) -> None:
        """Remove a file."""
        self._worker.unlink(self._pick())

    def rmdir(self) -> None:
        """Remove a directory."""
        self._worker.rmdir(self._pick())

    def look(self) -> None:
        """Look one up, in either way."""
        if self._worker.random() < 0.5:
            self._worker.exists(self._pick())
        else:
            self._worker.look(self._pick())

    def list(self) -> None:
        """List one, if it is a directory."""
        self._worker.listdir(self._pick())


class HeldNames:
    """Names held for people; each has a mark in the table that all workers share.

    While a worker holds a name, its mark must stay the worker's own, and what has the name must
    not change unless the worker changes it.
    """

    def __init__(self, worker: Worker, paths: Sequence[str], *, childless: bool = True) -> None:
        self._worker = worker
        self._childless = childless
        self.paths = list(paths)
        self.locks = [worker.arena.lock(path) for path in self.paths]

    def pick(self) -> int:
        """Number of a random name."""
        return int(self._worker.random() * len(self.paths))

    def hold(self, n: int, inside: Callable[[int], object]) -> bool:
        """Run `inside(n)` while name n is held, waiting for it as long as it takes."""
        worker, lock = self._worker, self.locks[n]
        worker.log.by_op["lock"] += 1
        try:
            with lock:
                self._enter(n)
                inside(n)
                self._leave(n)
        except OSError as error:
            worker.refused("lock", self.paths[n], error)
            return False
        except RuntimeError as error:
            self._not_released(n, error)
        return True

    def try_hold(self, n: int, inside: Callable[[int], object], timeout: float = 0.0) -> bool:
        """Like hold(), but give up after `timeout` seconds; 0: do not wait at all."""
        worker, lock = self._worker, self.locks[n]
        worker.log.by_op["lock"] += 1
        try:
            got = lock.acquire(timeout=timeout) if timeout else lock.acquire(blocking=False)
        except OSError as error:
            worker.refused("lock", self.paths[n], error)
            return False
        if not got:
            worker.cover("lock_timeouts" if timeout else "lock_busy")
            return False
        try:
            self._enter(n)
            inside(n)
            self._leave(n)
        finally:
            try:
                lock.release()
            except RuntimeError as error:
                self._not_released(n, error)
        return True

    def _not_released(self, n: int, error: RuntimeError) -> None:
        self._worker.violation(
            f"{self.paths[n]}: held by this worker, and cannot be released: {error}"
        )

    def _enter(self, n: int) -> None:
        worker = self._worker
        seen = worker.marks[n]
        if seen:
            worker.violation(f"{self.paths[n]}: just locked, and worker {seen} holds it, too")
        worker.marks[n] = worker.number
        worker.cover("holds")

    def _leave(self, n: int) -> None:
        worker = self._worker
        seen = worker.marks[n]
        if seen != worker.number:
            worker.violation(
                f"{self.paths[n]}: locked by this worker all the time, and the mark was changed "
                + (f"by worker {seen}" if seen else "to nobody by another holder")
            )
        worker.marks[n] = 0

    def linger(self, n: int) -> None:
        """Hold, let others run, and look whether anything changed."""
        before = self._worker.look(self.paths[n])
        os.sched_yield()
        self._same(n, before)

    def change(self, n: int) -> None:
        """Change a held name, let others run, and look whether it is as left."""
        worker, path = self._worker, self.paths[n]
        kind, _ = worker.look(path)
        ops = _SENSIBLE[kind]
        op = ops[int(worker.random() * len(ops))]
        allowed = judge.expected(op, kind, childless=self._childless)
        outcome = worker.expect(op, path, allowed, f"this worker holds the name, {kind} so far")
        left = judge.after(op, kind, outcome)
        before = worker.look(path)
        if before[0] != left:
            worker.violation(
                f"{path}: {before[0]}, though this worker holds the name and left {left}"
            )
        os.sched_yield()
        self._same(n, before)

    def _same(self, n: int, before: tuple[str, int]) -> None:
        now = self._worker.look(self.paths[n])
        if now != before:
            self._worker.violation(
                f"{self.paths[n]}: was {before[0]} (inode {before[1]:#x}), "
                f"is {now[0]} (inode {now[1]:#x}), while this worker held the name"
            )
