"""``shmlock locks``: who holds and who waits for what, in the manner of lslocks(8)."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from . import _marks, _output, _process

if TYPE_CHECKING:
    from shmlock.inspect import Snapshot, Task

_COLUMNS = ("COMMAND", "PID", "TID", "STATE", "WHAT", "PATH", "AGE", "WAITERS", "HOLDER")
_NUMBERS = ("PID", "TID", "AGE", "WAITERS", "HOLDER")


def add_parser(subparsers: Any) -> None:
    """Add this command."""
    parser = subparsers.add_parser(
        "locks",
        help="who holds and who waits for what",
        description="List the locks that are held in an arena and the tasks that wait for one. "
        "WHAT: operation or person (who holds a name), i_rwsem, S_DYING (a directory being "
        "removed); of a waiting task, the kind of its wait. HOLDER: the pid it waits for.",
    )
    parser.add_argument("arena", metavar="ARENA")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the locks."""
    import shmlock
    from shmlock import inspect

    if not args.json:
        _output.need_tables()
    with shmlock.attach(args.arena, readonly=True) as arena:
        seen = inspect.snapshot(arena)
    if args.json:
        _output.print_json(_as_json(seen))
    else:
        _print_text(seen)
    return 0


def _as_json(seen: Snapshot) -> dict[str, Any]:
    circling = {task.task for circle in seen.circles for task in circle}
    return {
        "arena": seen.arena,
        "held": [_marks.record(mark) for mark in _marks.of(seen)],
        "waiting": [
            {
                **_marks.holder(task.task, task),
                "what": task.waits.kind,
                "path": task.waits.path,
                **_marks.when(task.waits.since),
                "holder": _holder(seen, task),
                "on_circle": task.task in circling,
            }
            for task in seen.tasks
            if task.waits
        ],
        "circles": [
            [
                {
                    "task": task.task,
                    "pid": task.pid,
                    "tid": task.tid,
                    "waits_for": task.waits.path if task.waits else None,
                }
                for task in circle
            ]
            for circle in seen.circles
        ],
    }


def _holder(seen: Snapshot, task: Task) -> dict[str, Any] | None:
    number = task.waits.holder if task.waits else 0
    if not number:
        return None
    holder = next((other for other in seen.tasks if other.task == number), None)
    return _marks.holder(number, holder)


def _print_text(seen: Snapshot) -> None:
    rows: list[tuple[object, ...]] = []
    for mark in _marks.of(seen):
        task, hold = mark.task, mark.hold
        age = _output.age(_marks.when(hold.since)["age"])
        state = "dead" if task and task.state == "dead" else "held"
        rows.append((*_who(task), state, hold.kind, hold.path, age, hold.waiters, None))
    for task in seen.tasks:
        if not task.waits:
            continue
        age = _output.age(_marks.when(task.waits.since)["age"])
        holder = (_holder(seen, task) or {}).get("pid")
        rows.append((*_who(task), "waits", task.waits.kind, task.waits.path, age, None, holder))
    _output.print_table(_COLUMNS, rows, right=_NUMBERS)
    for circle in seen.circles:
        steps = [
            f"pid {task.pid} tid {task.tid} waits for {task.waits.path if task.waits else '?'}, "
            "held by"
            for task in circle
        ]
        print(_output.printable(f"circle: {' '.join(steps)} pid {circle[0].pid}"))


def _who(task: Task | None) -> tuple[object, ...]:
    if task is None:
        return (None, None, None)
    return (_process.command(task.pid), task.pid, task.tid)
