"""Who holds and who waits for what, as records for ``locks`` and as marks for ``tree``."""

from __future__ import annotations

import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from . import _process

if TYPE_CHECKING:
    from shmlock import Arena, Entry
    from shmlock.inspect import Hold, Snapshot, Task

DYING = "S_DYING"


@dataclass(frozen=True)
class Mark:
    """A lock and the task that holds it."""

    hold: Hold
    task: Task | None  # None: its slot was free again when it was looked at


Marks: TypeAlias = Mapping[str, Sequence[Mark]]


def of(seen: Snapshot) -> list[Mark]:
    """Return every lock with its holder, sorted by path."""
    tasks = {task.task: task for task in seen.tasks}
    return [
        Mark(hold, tasks.get(hold.task))
        for hold in sorted(seen.holds, key=lambda hold: (hold.path, hold.kind))
    ]


def by_path(arena: Arena) -> Marks:
    """Return the locks of an arena by the path of what is locked."""
    from shmlock import inspect

    marks: dict[str, list[Mark]] = {}
    for mark in of(inspect.snapshot(arena)):
        marks.setdefault("/" + mark.hold.path.lstrip("/"), []).append(mark)
    return marks


def text(mark: Mark) -> str:
    """Return a mark as ``locked by pid 12 (make)``."""
    if mark.task is None:
        who = f"task {mark.hold.task}"
    elif mark.task.state == "dead":
        who = f"pid {mark.task.pid}, which is dead"
    else:
        who = _process.named(mark.task.pid)
    if mark.hold.kind == DYING:
        return f"{DYING}: being removed by {who}"
    if mark.hold.kind == "i_rwsem":
        return f"i_rwsem held by {who}"
    return f"locked by {who}" + (" for an operation" if mark.hold.kind == "operation" else "")


def record(mark: Mark) -> dict[str, Any]:
    """Return a lock as a JSON object."""
    return {
        "path": mark.hold.path,
        "what": mark.hold.kind,
        "waiters": mark.hold.waiters,
        **holder(mark.hold.task, mark.task),
        **when(mark.hold.since),
    }


def holder(number: int, task: Task | None) -> dict[str, Any]:
    """Return a task as members of a JSON object; what is not known is None."""
    return {
        "task": number,
        "pid": task.pid if task else None,
        "tid": task.tid if task else None,
        "command": _process.command(task.pid) if task else None,
        "alive": task.state == "live" if task else None,
    }


def when(since: float | None) -> dict[str, Any]:
    """Return a moment as members of a JSON object: seconds since the epoch, and seconds ago."""
    return {"since": since, "age": None if since is None else max(0.0, time.time() - since)}


def kind(mode: int) -> str:
    """Return what a mode (stat(2)) says that something is."""
    if stat.S_ISDIR(mode):
        return "directory"
    return "symlink" if stat.S_ISLNK(mode) else "file"


def kind_of(entry: Entry[str]) -> str:
    """Return what an entry of a directory is."""
    if entry.is_symlink():
        return "symlink"
    return "directory" if entry.is_dir(follow_symlinks=False) else "file"
