# SPDX-License-Identifier: MIT
"""Closed loops over the operations, run inside the C helper: what a call costs without Python."""

import os

from shmlock.arena import Arena


def loops(arena: Arena) -> dict[str, int]:
    """Names of the loops, and their numbers."""
    found: dict[str, int] = {}
    while name := arena._build.ffi.string(arena._lib.shmlock_bench_name(len(found))):
        found[os.fsdecode(name)] = len(found)
    return found


def run(arena: Arena, loop: str, path: str, prefix: str, ops: int) -> int:
    """Run a loop on 64 names of directory ``path`` that begin with ``prefix``.

    Takes and releases locks, holds none on return.  For the loops whose names begin with
    ``tmpfs-``, ``path`` is a directory of the real filesystem.

    Returns:
        Nanoseconds of wall time for all ``ops`` operations.

    Raises:
        KeyError: There is no such loop.
        OSError: An operation failed; the names must not exist before.
    """
    number = loops(arena)[loop]
    nanoseconds = arena._lib.shmlock_bench(
        arena._pointer, number, os.fsencode(path), os.fsencode(prefix), ops
    )
    if nanoseconds < 0:
        raise arena._failure(nanoseconds, path)
    return int(nanoseconds)
