# SPDX-License-Identifier: MIT
"""Many names in one directory: everybody works there, nearly always on names of their own.

Attacked: P4, the point of per-dentry locks: operations on different names of one directory hold
no lock in common, and still none is lost, doubled or mixed up with its neighbour in the
directory's list of names or in a hash chain. Filesystem operations take a while here, with their
names locked, so that many are in flight in the one directory.

A broken lock (or list) shows as a private name with an outcome that its owner's history does not
explain, as a listing that misses a lasting name or shows it twice, or as a sum of makes and
removals that does not fit what is left.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errnos import FIXED
from ..names import PrivateNames, SharedNames
from ..scenario import Aim, Scenario, Step
from ..worker import Worker

_TOP = "/all"
_SHARED = [f"{_TOP}/shared-{n}" for n in range(32)]


def _setup(worker: Worker) -> None:
    worker.mkdir(_TOP)


def _worker(worker: Worker) -> Sequence[tuple[int, Step]]:
    private = PrivateNames(worker, _TOP, 64)
    shared = SharedNames(worker, _SHARED)
    return [
        (40, private.change),
        (12, private.look),
        (2, private.list),
        (8, shared.create),
        (3, shared.mkdir),
        (8, shared.unlink),
        (3, shared.rmdir),
        (6, shared.look),
    ]


SCENARIO = Scenario(
    name="one-directory-many-names",
    rule="P4: operations on different names of one directory run in parallel and undisturbed",
    shared="one directory with 64 private names for each worker and 32 shared ones",
    setup=_setup,
    worker=_worker,
    allowed_errnos=FIXED,
    aims=(Aim("samples_in_parallel", 5000),),
    sleep_us=10.0,
)
