"""Who holds and who waits for what, in one arena: records for tools, and text for people.

Works on a read-only attachment and takes no lock, so it may be used on an arena in which
everything hangs.  What is seen is not one instant: a lock may be seen held by two tasks if it
changed hands meanwhile.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from shmlock.arena import Arena
from shmlock.attach import attach
from shmlock.locks import wall_clock

if TYPE_CHECKING:
    from shmlock._lib import CData

Record = TypeVar("Record")

_PATH_BYTES = 4096 + 256
_HOLDS = 1024


@dataclass(frozen=True)
class Wait:
    """What a task waits for."""

    kind: str
    """``"name"``, ``"dying"`` and so on: shmlock_wait_name()."""
    path: str
    """The name or the directory."""
    holder: int
    """Task that holds it; 0: nobody any more."""
    since: float | None
    """When the wait began, as ``time.time()``."""


@dataclass(frozen=True)
class Task:
    """A thread that is attached, or was and has not been cleaned up."""

    task: int
    """Number of its slot."""
    state: str
    """``"live"`` or ``"dead"``."""
    pid: int
    tid: int
    command: str
    """Command line of the process; empty when it is gone."""
    persons: int
    """Locks for people that it holds."""
    attached: float | None
    """When, as ``time.time()``."""
    waits: Wait | None

    def __str__(self) -> str:
        """Number, pid, tid and command, for a listing."""
        dead = ", DEAD" if self.state == "dead" else ""
        return f"task {self.task} (pid {self.pid}, tid {self.tid}{dead}) {self.command}".rstrip()


@dataclass(frozen=True)
class Hold:
    """A lock that is held."""

    kind: str
    """``"operation"``, ``"person"`` (a NameLock), ``"i_rwsem"`` or ``"S_DYING"``."""
    path: str
    """The name, or the directory."""
    task: int
    waiters: int
    """Whether somebody waits; how many, as far as known."""
    since: float | None
    """When it was taken, as ``time.time()``; not known for operations."""


@dataclass(frozen=True)
class Snapshot:
    """All of it."""

    arena: str
    tasks: tuple[Task, ...]
    holds: tuple[Hold, ...]
    circles: tuple[tuple[Task, ...], ...]
    """Each a closed chain: every task waits for the next one, the last one for the first."""

    def __str__(self) -> str:
        """As text for a message about a hang."""
        return "\n".join(_lines(self))


def snapshot(arena: Arena) -> Snapshot:
    """Look at an arena, which may be attached read-only.

    Raises:
        ValueError: it is closed.
        ArenaDamaged: its bytes make no sense.
    """
    lib = arena._lib
    tasks = _records(arena, "struct shmlock_task_info[]", lib.shmlock_tasks, arena._tasks, _task)
    holds = _records(arena, "struct shmlock_hold_info[]", lib.shmlock_holds, _HOLDS, _hold)
    return Snapshot(arena.name, tasks, holds, _circles(tasks))


def describe(arena: Arena | str) -> str:
    """Who holds and who waits for what, as text; for messages about hangs.

    Never raises: of an arena that cannot be looked at, it says why.

    Args:
        arena: it, or its name.
    """
    try:
        if isinstance(arena, Arena):
            return str(snapshot(arena))
        with attach(arena, any_owner=True, readonly=True) as attached:
            return str(snapshot(attached))
    except Exception as error:
        name = arena.name if isinstance(arena, Arena) else arena
        return f"arena {name}: cannot be looked at: {error}"


def in_flight(arena: Arena) -> int:
    """Most names locked at this instant in one directory."""
    count = arena._lib.shmlock_in_flight(arena._pointer)
    if count < 0:
        raise arena._failure(count)
    return count


# ---- Records ------------------------------------------------------------------------------------


def _records(
    arena: Arena,
    kind: str,
    call: "Callable[[CData, CData, int], int]",
    room: int,
    convert: "Callable[[Arena, CData], Record]",
) -> tuple[Record, ...]:
    while True:
        out = arena._build.ffi.new(kind, room)
        count = call(arena._pointer, out, room)
        if count < 0:
            raise arena._failure(count)
        if count <= room:
            # Converted here: the structs are gone when `out` is.
            return tuple(convert(arena, out[i]) for i in range(count))
        room = count + count // 4


def _task(arena: Arena, found: "CData") -> Task:
    lib = arena._lib
    waits = None
    if found.wait_kind:
        waits = Wait(
            kind=arena._build.ffi.string(lib.shmlock_wait_name(found.wait_kind)).decode(),
            path=_path(arena, found.wait_cell),
            holder=int(found.wait_owner),
            since=wall_clock(found.wait_since),
        )
    return Task(
        task=int(found.task),
        state="dead" if found.state == lib.SHMLOCK_TASK_DEAD else "live",
        pid=int(found.pid),
        tid=int(found.tid),
        command=_command(int(found.pid)),
        persons=int(found.persons),
        attached=wall_clock(found.attached_at),
        waits=waits,
    )


def _hold(arena: Arena, found: "CData") -> Hold:
    lib = arena._lib
    kinds = {
        lib.SHMLOCK_HOLD_NAME: "operation",
        lib.SHMLOCK_HOLD_PERSON: "person",
        lib.SHMLOCK_HOLD_RWSEM: "i_rwsem",
        lib.SHMLOCK_HOLD_DYING: "S_DYING",
    }
    return Hold(
        kind=kinds.get(found.kind, f"kind {found.kind}"),
        path=_path(arena, found.cell),
        task=int(found.task),
        waiters=int(found.waiters),
        since=wall_clock(found.since),
    )


def _path(arena: Arena, cell: int) -> str:
    buffer = arena._build.ffi.new("char[]", _PATH_BYTES)
    length = arena._lib.shmlock_path_of(arena._pointer, cell, buffer, _PATH_BYTES)
    if length < 0:  # it has gone, or cannot be told
        return f"(cell {cell})"
    return os.fsdecode(arena._build.ffi.string(buffer, _PATH_BYTES))


def _command(pid: int) -> str:
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return os.fsdecode(raw.rstrip(b"\0").replace(b"\0", b" "))


def _circles(tasks: tuple[Task, ...]) -> tuple[tuple[Task, ...], ...]:
    """Closed chains of waits, each once, from its lowest task on."""
    by_number = {task.task: task for task in tasks}
    waits_for = {task.task: task.waits.holder for task in tasks if task.waits}
    circles = []
    done: set[int] = set()
    for start in sorted(waits_for):
        chain: list[int] = []
        at = start
        while at in waits_for and at not in done and at not in chain:
            chain.append(at)
            at = waits_for[at]
        if at in chain:
            circles.append(tuple(by_number[number] for number in chain[chain.index(at) :]))
        done.update(chain)
    return tuple(circles)


# ---- Text ---------------------------------------------------------------------------------------


def _lines(seen: Snapshot) -> list[str]:
    by_number = {task.task: task for task in seen.tasks}
    lines = [f"arena {seen.arena}: {len(seen.tasks)} task(s), {len(seen.holds)} lock(s) held"]
    for task in seen.tasks:
        lines.append(f"  {task}")
        lines += [
            f"    holds {hold.path} ({hold.kind}){', waited for' if hold.waiters else ''}"
            for hold in seen.holds
            if hold.task == task.task
        ]
        if task.waits:
            wait = task.waits
            lines.append(f"    waits for {wait.path} ({wait.kind}), {_holder(wait, by_number)}")
    lines += [
        f"  orphaned: {hold.path} ({hold.kind}) by task {hold.task}"
        for hold in seen.holds
        if hold.task not in by_number
    ]
    for circle in seen.circles:
        chain = " -> ".join(
            f"task {task.task} (pid {task.pid}, tid {task.tid}) waits for "
            f"{task.waits.path if task.waits else '?'}"
            for task in circle
        )
        lines.append(f"  CIRCLE: {chain} -> task {circle[0].task}")
    return lines


def _holder(wait: Wait, by_number: dict[int, Task]) -> str:
    if not wait.holder:
        return "held by nobody now"
    holder = by_number.get(wait.holder)
    return f"held by task {wait.holder}" + (
        f" (pid {holder.pid}, tid {holder.tid})" if holder else ""
    )
