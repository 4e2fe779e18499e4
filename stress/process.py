# SPDX-License-Identifier: MIT
"""What runs in a worker's process: attach, wait for the start, work until told to stop, report."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from multiprocessing.connection import Connection

import shmlock

from . import scenario as scenarios
from .plan import Plan
from .scenario import Step
from .table import SharedFd, Table
from .worker import Worker
from .worklog import WorkLog

_PR_SET_PDEATHSIG = 1  # prctl(2)

# Steps between two looks at the clock and the stop word.
_STRIDE = 16
_BATCH = 16 * _STRIDE


@dataclass(frozen=True)
class Ready:
    """Worker to parent: attached and waiting for the start."""


@dataclass(frozen=True)
class Failed:
    """Worker to parent: could not get ready."""

    text: str


def main(
    plan: Plan, number: int, arena_name: str, table_fd: SharedFd, pipe: Connection, parent: int
) -> None:
    """Work as worker `number` in a process of its own.

    Args:
        plan: the run.
        number: 1 to plan.procs.
        arena_name: what to attach to.
        table_fd: the shared table.
        pipe: sends Ready or Failed, gets the deadline (time.monotonic()), sends the WorkLog.
        parent: pid of the harness.
    """
    _die_with(parent)
    # Ctrl-C goes to the whole process group; it is the parent that ends a run in good order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Circles are made by the thousand here; each would be a line on stderr.
    logging.getLogger("shmlock").setLevel(logging.ERROR)
    try:
        scenario = scenarios.load()[plan.scenario]
        arena = shmlock.attach(arena_name)
        table = Table(table_fd.fd, plan.procs, scenario.marks)
        worker = Worker(arena, plan, number, scenario.allowed_errnos, table.marks)
        steps = scenario.worker(worker)
    except Exception:
        pipe.send(Failed(traceback.format_exc()))
        return
    pipe.send(Ready())
    try:
        deadline = pipe.recv()
    except EOFError:
        return  # the run was called off
    try:
        drive(worker, steps, table, deadline)
    except Exception:
        worker.violation(f"ended with an exception:\n{traceback.format_exc()}")
    if worker.log.violation_count:
        table.stop()
    log = worker.log
    arena.close()
    pipe.send(log)


def drive(
    worker: Worker, steps: Sequence[tuple[int, Step]], table: Table, deadline: float
) -> WorkLog:
    """Take random steps until the deadline (time.monotonic()), or until the first violation."""
    log = worker.log
    weights = list(accumulate(weight for weight, _ in steps))
    functions = [step for _, step in steps]
    choices, clock, counts = worker.rng.choices, time.monotonic, log.by_op
    while True:
        batch = choices(functions, cum_weights=weights, k=_BATCH)
        for start in range(0, _BATCH, _STRIDE):
            for step in batch[start : start + _STRIDE]:
                step()
            table.beat(worker.number, sum(counts.values()))
            if log.violation_count or table.stopped or clock() >= deadline:
                return log


def _die_with(parent: int) -> None:
    """No orphans: the kernel kills this process when the thread that started it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that call
        os._exit(1)
