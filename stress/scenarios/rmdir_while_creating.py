# SPDX-License-Identifier: MIT
"""Directories are removed while others create in them.

Attacked: P2, no operation in a directory that is being removed: rmdir sets S_DYING, waits for the
operations in flight there (the drain), looks once more whether the directory is empty, and only
then sets S_DEAD; an operation that meets S_DYING waits with empty hands, for the removal may
still fail.

A broken lock shows as a file that was created in a directory that is gone, as a directory removed
although a worker's own file lay in it, or as a create that failed with ENOENT although the
creator's own file kept the directory alive.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from ..errnos import DOOMED, FIXED, allow
from ..judge import ABSENT, DIRECTORY, listing
from ..names import SharedNames
from ..scenario import Aim, Scenario, Step
from ..worker import Worker

_TOP = "/doomed"
_DIRECTORIES = [f"{_TOP}/{n}" for n in "abc"]
_SHARED = [f"{directory}/shared" for directory in _DIRECTORIES]


class _Tenant:
    """A private file in a directory that everybody tries to remove: it must keep it alive."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._name = f"w{worker.number}"
        self._inside = [False] * len(_DIRECTORIES)

    def move(self) -> None:
        """Move in if there is a directory, or check that the house stands, and move out."""
        worker = self._worker
        n = int(worker.random() * len(_DIRECTORIES))
        path = f"{_DIRECTORIES[n]}/{self._name}"
        if not self._inside[n]:
            outcome = worker.create(path)
            self._inside[n] = outcome == 0
            if outcome:
                worker.cover("creates_without_directory")
            if outcome == errno.EEXIST:
                worker.violation(f"create({path}) gave EEXIST: a private name, nothing so far")
            return
        self._stands(n, path)
        worker.expect("unlink", path, frozenset({0}), "a private file, made before")
        self._inside[n] = False

    def _stands(self, n: int, path: str) -> None:
        worker, directory = self._worker, _DIRECTORIES[n]
        kind, _ = worker.look(directory)
        if kind != DIRECTORY:
            worker.violation(f"{directory}: {kind}, though {path} was made in it and not removed")
        if worker.look(path)[0] == ABSENT:
            worker.violation(f"{path}: vanished from its directory")
        for fault in listing(worker.listdir(directory) or [], [self._name], []):
            worker.violation(f"listdir({directory}): {fault}")

    def besiege(self) -> None:
        """Rmdir a directory in which the worker's own file lies: it must refuse."""
        worker = self._worker
        n = int(worker.random() * len(_DIRECTORIES))
        directory = _DIRECTORIES[n]
        if self._inside[n]:
            refusal = frozenset({errno.ENOTEMPTY})
            worker.expect("rmdir", directory, refusal, "a private file is in it")
        elif worker.rmdir(directory) == 0:
            worker.cover("rmdir_done")


def _setup(worker: Worker) -> None:
    worker.mkdir(_TOP)


def _worker(worker: Worker) -> Sequence[tuple[int, Step]]:
    tenant = _Tenant(worker)
    directories = SharedNames(worker, _DIRECTORIES)
    files = SharedNames(worker, _SHARED)
    return [
        (10, tenant.move),
        (8, tenant.besiege),
        (8, directories.mkdir),
        (2, directories.list),
        (1, directories.look),
        (6, files.create),
        (8, files.unlink),
        (1, files.look),
    ]


SCENARIO = Scenario(
    name="rmdir-while-creating",
    rule="P2: no operation in a directory that is being removed (S_DYING, drain, S_DEAD)",
    shared="three directories that come and go, with one shared file and private ones in each",
    setup=_setup,
    worker=_worker,
    allowed_errnos=allow(FIXED, DOOMED),
    aims=(
        Aim("rmdir_done"),
        Aim("creates_without_directory"),
        Aim("drains_waited"),
        Aim("dying_waits"),
    ),
    sleep_us=5.0,
)
