"""What is in /dev/shm: arenas, things that only look like arenas, leftovers of dead creators."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from pathlib import Path
from typing import Any

_DIRECTORY = Path("/dev/shm")
_PREFIX = "shmlock."
_TEMPORARY = "shmlock-new."

# What an ArenaMismatch is about, as its message has it; anything else is a matter of layout.
_ABOUT = re.compile(r"Cannot use this arena: ([^:]+):")
_DAMAGED = frozenset({"magic", "length", "sizes and offsets", "build and locking"})
_OTHER_NAMESPACE = frozenset({"pid namespace dev", "pid namespace ino"})


def arenas() -> list[dict[str, Any]]:
    """Return a record for each arena, whether it can be used from here or not.

    ``state`` is ``ok``, ``unlinked``, ``poisoned``, ``damaged``, ``foreign layout``, ``other pid
    namespace`` or ``not permitted``; ``detail`` says more. What is not known is None.
    """
    import shmlock

    return [found for name in shmlock.arenas() if (found := _arena(name)) is not None]


def _arena(name: str) -> dict[str, Any] | None:
    import shmlock

    record: dict[str, Any] = dict.fromkeys(
        ("name", "size", "dentries", "used", "tasks", "live_tasks", "locking", "build")
    )
    record |= {"name": name, "state": "ok", "detail": ""}
    try:
        found = (_DIRECTORY / f"{_PREFIX}{name}").lstat()
    except FileNotFoundError:
        return None  # removed meanwhile
    record |= {"size": found.st_size, "uid": found.st_uid}
    if not stat.S_ISREG(found.st_mode):  # opening a pipe, say, would never end
        record |= {"state": "damaged", "detail": "it is not even a regular file"}
        return record
    try:
        with shmlock.attach(name, readonly=True) as arena:
            record["locking"] = arena.locking
            record["build"] = "debug" if arena.debug else "release"
            stats = arena.stats()
    except FileNotFoundError:
        return None
    except OSError as error:
        record["state"], record["detail"] = _state(error), error.strerror or str(error)
        return record
    for field in ("size", "dentries", "used", "tasks", "live_tasks"):
        record[field] = getattr(stats, field)
    return record


def _state(error: OSError) -> str:
    import shmlock

    if isinstance(error, PermissionError):
        return "not permitted"
    if isinstance(error, shmlock.ArenaMismatch):
        about = _ABOUT.match(error.strerror or "")
        if about and about[1] in _DAMAGED:
            return "damaged"
        return "other pid namespace" if about and about[1] in _OTHER_NAMESPACE else "foreign layout"
    if error.errno == errno.ENOTRECOVERABLE:
        return "poisoned"
    return "damaged"


def leftovers() -> list[dict[str, Any]]:
    """Return a record for each half-made arena whose creator is dead.

    The creator's file lock tells: it is held until the arena has its name.
    """
    found = []
    for path in sorted(_DIRECTORY.glob(f"{_TEMPORARY}*")):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue  # gone, or somebody else's
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            found.append({"name": path.name, "size": os.fstat(fd).st_size})
        except BlockingIOError:
            pass  # in the making
        finally:
            os.close(fd)
    return found
