# SPDX-License-Identifier: MIT
"""Run one scenario on N real processes: spawn, start together, watch, collect, reap, judge.

A worker that dies or hangs is a violation, and its text says who waits for what. Whatever happens,
no worker and no arena stays behind (the kernel ends the workers should this process be killed).
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import signal
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Protocol, TypeVar

import shmlock
from shmlock import debug, inspect

from . import judge, process
from .plan import Plan
from .process import Failed, Ready
from .result import Result
from .scenario import Scenario
from .table import SharedFd, Table
from .worker import Worker
from .worklog import WorkLog

_K = TypeVar("_K")

_SPAWN = multiprocessing.get_context("spawn")

# Guards against hangs, none is a measure of speed. Seconds.
_START_S = 60.0  # a Python start can take long on a busy machine
_STALL_S = 15.0  # no worker's single step takes that long
_REAP_S = 5.0

_SAMPLE_S = 0.005  # about 200 looks a second at what is in flight
_CHECK_S = 0.5  # between two walks through the whole arena, at least
_LOOKS = 3  # more, at what a walk of a live arena found
# The walks must not take the processors from the workers.
_CHECK_SHARE = 0.05
_STUTTER_S, _STUTTER_ON_S = 0.4, 0.1  # scenario.stutter: the whole turn, and the slow part of it
_SPARE_TASKS = 16


class CouldNotRunError(Exception):
    """The run could not be made; says nothing about the locks."""


class Progress(Protocol):
    """Told now and then how a run is going."""

    def __call__(self, seconds: float, ops: int, in_flight: int) -> None:
        """So many seconds since the start, calls made, names locked in one directory now."""


@dataclass
class _Process:
    """One worker, as the parent sees it."""

    number: int
    process: SpawnProcess
    pipe: Connection
    log: WorkLog | None = None
    lost: bool = False  # dead, or killed because it hung

    @property
    def working(self) -> bool:
        return self.log is None and not self.lost


def run(
    plan: Plan, scenario: Scenario, progress: Progress | None = None, *, keep: bool = False
) -> Result:
    """Run a scenario and judge it.

    Args:
        plan: what to do.
        scenario: the one that plan names.
        progress: called about ten times a second.
        keep: leave the arena behind, for `shmlock check` and `shmlock tree`.

    Raises:
        CouldNotRunError: no arena, or the workers did not get ready.
        KeyboardInterrupt: workers are ended and the arena is removed all the same.
    """
    name = f"stress-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        arena = shmlock.create(
            name,
            dentries=scenario.dentries,
            tasks=plan.procs + _SPARE_TASKS,
            locking=plan.locking,
            debug=plan.debug,
        )
    except (OSError, ValueError) as error:
        raise CouldNotRunError(f"cannot create an arena: {error}") from error
    try:
        result = _Run(plan, scenario, arena).go(progress or _silent)
        if keep:
            result.notes.append(f"the arena is kept: {name}")
        return result
    finally:
        arena.close()
        if not keep:
            # Killed workers are attached no longer, but may not yet be known to be dead.
            with suppress(FileNotFoundError):  # somebody else has removed it
                shmlock.unlink(name, force=True)


def _silent(seconds: float, ops: int, in_flight: int) -> None:
    pass


class _Run:
    """The state of one run."""

    def __init__(self, plan: Plan, scenario: Scenario, arena: shmlock.Arena) -> None:
        self._plan = plan
        self._scenario = scenario
        self._arena = arena
        self._result = Result(plan)
        self._workers: list[_Process] = []
        self._max_in_flight = self._samples = self._in_parallel = 0
        self._latency_on = False

    def go(self, progress: Progress) -> Result:
        """All of it; workers are gone when this returns or raises."""
        plan, scenario = self._plan, self._scenario
        fd = Table.make(plan.procs, scenario.marks)
        try:
            table = Table(fd, plan.procs, scenario.marks)
            try:
                builder = Worker(self._arena, plan, 0, scenario.allowed_errnos, table.marks)
                scenario.setup(builder)
                self._arrange()
                try:
                    self._spawn(fd)
                    deadline = self._start()
                    self._watch(table, deadline, progress)
                finally:
                    table.stop()
                    self._reap()
                self._judge(builder.log)
            finally:
                table.close()
        finally:
            os.close(fd)
        return self._result

    # ---- Before ------------------------------------------------------------------------------

    def _arrange(self) -> None:
        """Latency and, in a debug arena, delays and the rule that is to be broken."""
        plan = self._plan
        if plan.latency_us is None:
            self._set_own_latency()
        else:
            self._arena.set_latency(sleep=plan.latency_us / 1e6)
        if plan.perturb_ppm:
            # Seed 0 means no delays.
            debug.perturb(self._arena, plan.seed or 1, plan.perturb_ppm)
        if plan.break_rule is not None:
            debug.break_rule(self._arena, plan.break_rule)

    def _set_own_latency(self, at: float = 0.0) -> None:
        """That of the scenario, `at` seconds after the start; called again and again."""
        scenario = self._scenario
        on = not scenario.stutter or at % _STUTTER_S < _STUTTER_ON_S
        if on != self._latency_on:
            self._latency_on = on
            self._arena.set_latency(
                sleep=scenario.sleep_us / 1e6 if on else 0, spin=scenario.spin_us / 1e6 if on else 0
            )

    def _spawn(self, fd: int) -> None:
        with _children_ignore_interrupts():
            for number in range(1, self._plan.procs + 1):
                ours, theirs = _SPAWN.Pipe()
                child = _SPAWN.Process(
                    target=process.main,
                    args=(
                        self._plan,
                        number,
                        self._arena.name,
                        SharedFd(fd),
                        theirs,
                        os.getpid(),
                    ),
                    name=f"shmlock-stress-{number}",
                    daemon=True,
                )
                child.start()
                theirs.close()
                self._workers.append(_Process(number, child, ours))

    def _start(self) -> float:
        """Wait until all are ready, and start them together; returns the end."""
        patience = time.monotonic() + _START_S
        for worker in self._workers:
            if not worker.pipe.poll(max(0.0, patience - time.monotonic())):
                raise CouldNotRunError(f"worker {worker.number} was not ready in {_START_S:g} s")
            try:
                message = worker.pipe.recv()
            except EOFError:
                worker.process.join(_REAP_S)
                raise CouldNotRunError(
                    f"worker {worker.number} {_end_of(worker.process)} before the start"
                ) from None
            if isinstance(message, Failed):
                raise CouldNotRunError(f"worker {worker.number}: {message.text}")
            assert isinstance(message, Ready)
        deadline = time.monotonic() + self._plan.seconds
        for worker in self._workers:
            with suppress(OSError):  # it has died since; _collect() will say so
                worker.pipe.send(deadline)
        return deadline

    # ---- While it runs -----------------------------------------------------------------------

    def _watch(self, table: Table, deadline: float, progress: Progress) -> None:
        """Sample, check, tell and collect until every worker has reported or is lost."""
        start = time.monotonic()
        stall = _Stall(table)
        next_check, next_progress = start + _CHECK_S, start
        while any(worker.working for worker in self._workers):
            self._collect(_SAMPLE_S)
            now = time.monotonic()
            in_flight = self._sample() if now < deadline else 0
            if self._plan.latency_us is None:
                self._set_own_latency(now - start)
            if now >= next_progress:
                progress(now - start, sum(table.beats()), in_flight)
                next_progress = now + 0.1
            if now >= next_check and now < deadline:
                self._check_live()
                took = time.monotonic() - now
                next_check = now + took + max(_CHECK_S, took / _CHECK_SHARE)
            if self._result.violations:
                table.stop()
            hanging = stall.hanging(now, [w.number for w in self._workers if w.working])
            if hanging:
                self._give_up(hanging)
        self._result.took = time.monotonic() - start

    def _sample(self) -> int:
        try:
            in_flight = inspect.in_flight(self._arena)
        except OSError as error:
            self._result.violations.append(f"the arena cannot be looked at: {error!r}")
            return 0
        self._samples += 1
        self._in_parallel += in_flight > 1
        self._max_in_flight = max(self._max_in_flight, in_flight)
        return in_flight

    def _collect(self, timeout: float) -> None:
        """Take the logs of those that have finished, and notice those that have died."""
        working = {worker.pipe: worker for worker in self._workers if worker.working}
        for pipe in wait(list(working), timeout):
            assert isinstance(pipe, Connection)
            worker = working[pipe]
            try:
                worker.log = pipe.recv()
            except (EOFError, OSError):  # the pipe closes with the process
                worker.process.join(_REAP_S)
                worker.lost = True
                self._result.violations.append(
                    f"worker {worker.number} (pid {worker.process.pid}) "
                    f"{_end_of(worker.process)} without a report\n{self._who_waits()}"
                )

    def _give_up(self, hanging: list[int]) -> None:
        """Say who waits for what, then kill all that have not reported."""
        who = ", ".join(
            f"{worker.number} (pid {worker.process.pid})"
            for worker in self._workers
            if worker.number in hanging
        )
        self._result.violations.append(
            f"no progress in {_STALL_S:g} s by worker {who}\n{self._who_waits()}"
        )
        for worker in self._workers:
            if worker.working:
                worker.process.kill()
                worker.lost = True

    def _who_waits(self) -> str:
        return inspect.describe(self._arena)

    def _check_live(self) -> None:
        """Walk the arena under way; what is broken there stays broken, so it is looked at again.

        A name that is busy nearly all the time can look the same wrong way twice by chance.
        """
        faults = self._check("while it ran", quiescent=False)
        for _ in range(_LOOKS if faults else 0):
            time.sleep(_SAMPLE_S)
            again = self._check("while it ran", quiescent=False)
            faults = [fault for fault in faults if fault in again]
        self._result.violations += [f"found while it ran: {fault}" for fault in faults]

    def _check(self, when: str, *, quiescent: bool) -> list[shmlock.Fault]:
        """The broken invariants; that the walk itself fails is a violation."""
        try:
            return self._arena.check(quiescent=quiescent)
        except OSError as error:
            self._result.violations.append(f"check {when} failed: {error!r}")
            return []

    # ---- After -------------------------------------------------------------------------------

    def _reap(self) -> None:
        """No worker stays: those that do not end by themselves are killed."""
        patience = time.monotonic() + _REAP_S
        for worker in self._workers:
            worker.pipe.close()  # one that still waits for the start ends with that
            if worker.working:
                worker.process.terminate()
        for worker in self._workers:
            worker.process.join(max(0.0, patience - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.process.close()

    def _judge(self, built: WorkLog) -> None:
        result, scenario = self._result, self._scenario
        logs = [built, *(worker.log for worker in self._workers if worker.log is not None)]
        for log in logs:
            result.violations += log.told()
        result.by_op = _sum(log.by_op for log in logs)
        result.by_errno = _sum(log.by_errno for log in logs)
        result.worker_ops = [log.ops for log in logs[1:]]
        self._judge_arena(logs, complete=not any(worker.lost for worker in self._workers))

        counters = dict(self._arena.stats().counters)
        result.max_in_flight = self._max_in_flight
        result.recoveries = counters.get("recoveries", 0)
        result.coverage = {
            **counters,
            **_sum(log.coverage for log in logs),
            "samples": self._samples,
            "samples_in_parallel": self._in_parallel,
            "worker_ops_min": min(result.worker_ops, default=0),
            "worker_ops_max": max(result.worker_ops, default=0),
        }
        if not result.violations:
            aims = (scenario.aims, result.coverage, result.ops)
            result.missed = judge.aims_missed(*aims)
            result.notes += judge.aims_not_judged(*aims)

    def _judge_arena(self, logs: list[WorkLog], *, complete: bool) -> None:
        result = self._result
        if self._plan.debug:
            entered = debug.violations(self._arena)
            if entered:
                result.violations.append(
                    f"the core saw two tasks in one name's critical section {entered} times"
                )
        faults = self._check("at the end", quiescent=complete)
        result.violations += [f"found at the end: {fault}" for fault in faults]
        if not complete:
            result.notes.append("a worker's log is lost: makes and removals are not added up")
            return
        try:
            tree = dict(_walk(self._arena, ""))
        except OSError as error:
            result.violations.append(f"the tree cannot be walked at the end: {error!r}")
            return
        result.violations += judge.conservation(logs, tree)


class _Stall:
    """Notices workers whose heartbeat stands still."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._beats = table.beats()
        self._since = [time.monotonic()] * len(self._beats)

    def hanging(self, now: float, working: list[int]) -> list[int]:
        """Those of the working ones that have not moved for too long."""
        beats = self._table.beats()
        for n, (before, beat) in enumerate(zip(self._beats, beats, strict=True)):
            if beat != before:
                self._since[n] = now
        self._beats = beats
        return [number for number in working if now - self._since[number - 1] > _STALL_S]


def _walk(arena: shmlock.Arena, top: str) -> Iterator[tuple[str, str]]:
    """Every path below top, with what it is."""
    for name in arena.listdir(top or "/"):
        path = f"{top}/{name}"
        if stat.S_ISDIR(arena.lstat(path).st_mode):
            yield path, judge.DIRECTORY
            yield from _walk(arena, path)
        else:
            yield path, judge.FILE


def _sum(counts: Iterator[Mapping[_K, int]]) -> Mapping[_K, int]:
    total: Counter[_K] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)


def _end_of(child: SpawnProcess) -> str:
    code = child.exitcode
    if code is None:
        return "closed its pipe and lives on"
    if code >= 0:
        return f"ended with status {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


@contextmanager
def _children_ignore_interrupts() -> Iterator[None]:
    """A Ctrl-C during the first moments of a child's Python would print a traceback each.

    Only the main thread may do that; for any other, the children's own SIG_IGN has to do.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: Callable[..., object] | int | None = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
