# SPDX-License-Identifier: MIT
"""A small table that the workers share beside the arena: stop word, heartbeats, marks.

It is a memfd handed to each worker, so it has no name and nothing of it can stay behind. It
uses nothing of shmlock, so that a broken lock cannot break its own witness.
"""

from __future__ import annotations

import mmap
import os
from multiprocessing import reduction
from typing import Any

_WORD = 8
# A cache line each, so that a heartbeat does not slow its neighbours.
_STRIDE = 8


class Table:
    """Words of 64 bits. Word stores are plain: each word has one writer at a time, by the rules."""

    def __init__(self, fd: int, workers: int, marks: int) -> None:
        """Map the table behind fd, which stays the caller's."""
        self._workers = workers
        self._map = mmap.mmap(fd, self.size(workers, marks))
        whole = memoryview(self._map)
        self._words = whole.cast("Q")
        whole.release()
        #: Occupancy marks by name number: the worker that holds the name, 0 nobody.
        self.marks = self._words[_STRIDE * (workers + 1) :]

    @staticmethod
    def size(workers: int, marks: int) -> int:
        """Bytes of a table for so many workers and names."""
        return _WORD * (_STRIDE * (workers + 1) + max(marks, 1))

    @staticmethod
    def make(workers: int, marks: int) -> int:
        """A new table of zeroes; returns its file descriptor."""
        fd = os.memfd_create("shmlock-stress")
        os.ftruncate(fd, Table.size(workers, marks))
        return fd

    @property
    def stopped(self) -> bool:
        """True once anybody has asked all workers to stop."""
        return bool(self._words[0])

    def stop(self) -> None:
        """Ask all workers to stop after the step they are in."""
        self._words[0] = 1

    def beat(self, worker: int, ops: int) -> None:
        """Worker (1 to workers) is alive and has made so many calls."""
        self._words[_STRIDE * worker] = ops

    def beats(self) -> list[int]:
        """The last heartbeat of each worker, in order."""
        return [self._words[_STRIDE * (n + 1)] for n in range(self._workers)]

    def close(self) -> None:
        """Unmap."""
        self.marks.release()
        self._words.release()
        self._map.close()


class SharedFd:
    """A file descriptor that goes along as an argument of a spawned process."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __reduce__(self) -> tuple[Any, ...]:
        """Only while a process is being spawned, as for everything in that module."""
        return _take, (reduction.DupFd(self.fd),)


def _take(duplicate: Any) -> SharedFd:
    return SharedFd(duplicate.detach())
