"""Which Arena objects this process has for each attachment, and what becomes of dropped ones.

Sets of tokens instead of counts: a finalizer or a signal handler may run between any two lines
here, on the same thread, and adding and removing come out right in any order.
"""

import atexit
import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shmlock._lib import Build, CData

_mutex = threading.RLock()
_tokens: dict[tuple[bool, int], set[object]] = {}
_attached: dict[tuple[bool, int], "tuple[Build, CData]"] = {}


def add(build: "Build", pointer: "CData", token: object) -> None:
    """An Arena object stands for one more shmlock_attach()."""
    key = _key(build, pointer)
    with _mutex:
        _attached[key] = (build, pointer)
        _tokens.setdefault(key, set()).add(token)


def remove(build: "Build", pointer: "CData", token: object) -> bool:
    """It does so no longer. True: it was the last one."""
    key = _key(build, pointer)
    with _mutex:
        tokens = _tokens.get(key, set())
        tokens.discard(token)
        if tokens:
            return False
        _tokens.pop(key, None)
        _attached.pop(key, None)
        return True


def give_back(build: "Build", pointer: "CData", token: object) -> None:
    """An Arena object was dropped without close().

    A task that holds locks does not end because an object was dropped; its attachment then stays
    for the life of the process.
    """
    if remove(build, pointer, token):
        if _locks_held(build, pointer):
            return
        build.lib.shmlock_leave(pointer)
    build.lib.shmlock_close(pointer)


def _locks_held(build: "Build", pointer: "CData") -> int:
    """Locks for people that the calling thread's task holds."""
    me = build.lib.shmlock_task_id(pointer)
    if not me:
        return 0
    info = build.ffi.new("struct shmlock_info *")
    build.lib.shmlock_info(pointer, info)
    tasks = build.ffi.new("struct shmlock_task_info[]", info.tasks)
    count = build.lib.shmlock_tasks(pointer, tasks, info.tasks)
    return sum(
        task.persons for task in tasks[0 : max(0, min(count, info.tasks))] if task.task == me
    )


@atexit.register
def _leave_all() -> None:
    """Orderly exit of the main thread: its slots are free at once, nobody needs to recover them.

    A task that still holds a lock is left to the kernel, as if it had been killed: the next
    owner has to be told.
    """
    for build, pointer in list(_attached.values()):
        if not _locks_held(build, pointer):
            build.lib.shmlock_leave(pointer)


def _after_fork() -> None:
    global _mutex  # noqa: PLW0603 - whoever held the old one is not in this process
    _mutex = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)


def _key(build: "Build", pointer: "CData") -> tuple[bool, int]:
    return build.debug, int(build.ffi.cast("uintptr_t", pointer))
