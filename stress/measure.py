# SPDX-License-Identifier: MIT
"""The numbers of docs/performance.md, each beside its rival, measured in the same run.

    python -m shmlock.stress.measure [--rounds N] [--json]

Run by hand, on a machine with nothing else to do; no test asserts a time.  Every figure is the
median over rounds that take turns, so that a slow minute of the machine hits all alike.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import timeit
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import shmlock
from shmlock import bench

_OPS = 100_000
_TMPFS_OPS = 4_000
_LOOPS = (
    "two-cas",
    "lock-handle",
    "lock",
    "create-unlink",
    "create-unlink-fresh",
    "mkdir-rmdir",
    "stat",
)


def _median(values: list[float]) -> float:
    return round(statistics.median(values), 1)


def _c_loops(arena: shmlock.Arena, tmpfs: str, rounds: int) -> dict[str, tuple[float, float]]:
    """Nanoseconds per operation of each closed loop in C: median and best round."""
    plan = [(name, "d", _OPS) for name in _LOOPS]
    plan += [("tmpfs-create-unlink", tmpfs, _TMPFS_OPS), ("system-call", "d", _OPS)]
    found: dict[str, list[float]] = {name: [] for name, _, _ in plan}
    for _ in range(rounds):
        for name, path, ops in plan:
            found[name].append(bench.run(arena, name, path, "abcdefgh", ops) / ops)
    return {name: (_median(values), round(min(values), 1)) for name, values in found.items()}


def _python_locks(arena: shmlock.Arena, rounds: int) -> dict[str, float]:
    """Nanoseconds of `with lock: pass`, the loop's own cost taken off."""

    def with_lock(lock: Any) -> Callable[[], None]:
        def body() -> None:
            with lock:
                pass

        return body

    def empty() -> None:
        pass

    bodies = {
        "empty call": empty,
        "with NameLock": with_lock(arena.lock("d/name")),
        "with multiprocessing.Lock": with_lock(multiprocessing.Lock()),
    }
    found: dict[str, list[float]] = {name: [] for name in bodies}
    for _ in range(rounds):
        for name, body in bodies.items():
            found[name].append(timeit.timeit(body, number=_OPS) / _OPS * 1e9)
    base = statistics.median(found.pop("empty call"))
    return {name: _median([value - base for value in values]) for name, values in found.items()}


def _worker(name: str, cpu: int, pipe: Connection) -> None:
    """Run the loops that are asked for, pinned, until told to stop."""
    os.sched_setaffinity(0, {cpu})
    with shmlock.attach(name) as arena:
        while (order := pipe.recv()) is not None:
            loop, path, prefix, ops = order
            pipe.send(bench.run(arena, loop, path, prefix, ops))


def _scaling(arena: shmlock.Arena, tmpfs: str, rounds: int) -> dict[str, float]:
    """Throughput of two pinned processes on names of their own in ONE directory, over that of one.

    The control computes and touches no memory: what the machine itself makes of a second process.
    """
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        return {}
    spawn = multiprocessing.get_context("spawn")
    pipes, workers = [], []
    for cpu in cpus:
        ours, theirs = spawn.Pipe()
        workers.append(spawn.Process(target=_worker, args=(arena.name, cpu, theirs)))
        pipes.append(ours)
        workers[-1].start()
    plan = [
        ("control", "d", 4 * _OPS),
        ("lock", "d", _OPS),
        ("create-unlink", "d", _OPS),
        ("create-unlink-fresh", "d", _OPS),
        ("mkdir-rmdir", "d", _OPS),
        ("stat", "d", 2 * _OPS),
        ("tmpfs-create-unlink", tmpfs, _TMPFS_OPS),
    ]
    found: dict[str, list[float]] = {name: [] for name, _, _ in plan}
    for _ in range(rounds):
        for name, path, ops in plan:
            one = 0.0
            for number, pipe in enumerate(pipes):
                pipe.send((name, path, f"worker{number}-", ops))
                one += pipe.recv()
            for number, pipe in enumerate(pipes):
                pipe.send((name, path, f"worker{number}-", ops))
            both = sum(pipe.recv() for pipe in pipes)
            found[name].append(2 * one / both)
    for pipe in pipes:
        pipe.send(None)
    for worker in workers:
        worker.join()
    return {name: round(statistics.median(values), 2) for name, values in found.items()}


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def measure(rounds: int) -> dict[str, Any]:
    """All figures of one run."""
    with shmlock.temporary() as arena, tempfile.TemporaryDirectory(dir="/dev/shm") as tmpfs:
        arena.mkdir("d")
        assert set(_LOOPS) <= set(bench.loops(arena))
        return {
            "environment": {
                "cpu": _cpu(),
                "cores": os.cpu_count(),
                "kernel": platform.release(),
                "python": platform.python_version(),
                "version": shmlock.__version__,
            },
            "rounds": rounds,
            "ns_per_op": _c_loops(arena, tmpfs, rounds),
            "python_ns": _python_locks(arena, rounds),
            "two_over_one": _scaling(arena, tmpfs, rounds),
        }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m shmlock.stress.measure", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    figures = measure(args.rounds)
    if args.json:
        print(json.dumps(figures, indent=2))
        return 0
    print(" ".join(f"{key}={value}" for key, value in figures["environment"].items()))
    base, best_base = figures["ns_per_op"]["two-cas"]
    for name, (value, best) in figures["ns_per_op"].items():
        print(
            f"{name:28}{value:10.1f} ns {value / base:8.1f} x two-cas"
            f"   best round {best:10.1f} ns {best / best_base:8.1f} x"
        )
    for name, value in figures["python_ns"].items():
        print(f"{name:28}{value:10.1f} ns")
    for name, value in figures["two_over_one"].items():
        print(f"{name:28}{value:10.2f} two processes over one")
    return 0


if __name__ == "__main__":
    sys.exit(main())
