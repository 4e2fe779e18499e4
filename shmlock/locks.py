"""``NameLock``: a person's lock on one name.

The C type ``LockBase`` does what an undisturbed ``with lock:`` needs, because a method written in
Python can be hit by a signal before its first line, and would leave the lock held.  Everything
else is here.
"""

import errno
import functools
import os
import time
from types import TracebackType
from typing import TYPE_CHECKING

from shmlock import _lib
from shmlock.stats import Owner

if TYPE_CHECKING:
    from typing_extensions import Self

    from shmlock._lib import Build, CData, StrPath
    from shmlock.arena import Arena

_NO_SUCH_NAME = (-errno.ENOENT, -errno.ENOTDIR)


class NameLock:
    """A lock on a name, with ``threading.Lock``'s manners; made by ``Arena.lock()``, not yet held.

    It is the *name* that is locked, whether or not anything has it: no other task in any process
    can make, remove, rename or lock it.  The holding task itself may do all that.  The path is
    resolved at each ``acquire()``.

    If its holder dies, a waiter gets the lock at once, with ``recovered`` True.

    Usable by any number of threads; each is a task of its own, and only the one that acquired it
    can release it.  Pickles as (arena, path), not held.
    """

    if not TYPE_CHECKING:
        __slots__ = ()

    # What _concrete() adds, and the methods that LockBase has in C.
    if TYPE_CHECKING:
        _arena: Arena
        _given: str | bytes
        _parents: bool
        _address: int
        _path: bytes

        @property
        def recovered(self) -> bool:
            """The previous holder died while holding; set by ``acquire()``."""

        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            """Lock the name; see ``threading.Lock.acquire``.

            Args:
                blocking: False: do not wait.
                timeout: seconds; -1: ``arena.timeout``, which by default is for ever.

            Returns:
                True: this task holds the lock. False: not to be had (in time).

            Raises:
                DeadlockError: waiting would never end; also when this very task holds it.
                FileNotFoundError: the parent directory does not exist, or was removed meanwhile.
                OSError: EBUSY (``/``, ``.`` and ``..`` cannot be locked), ENOLCK (too many held),
                    ENOSPC, ESTALE (arena unlinked), EROFS.
                ValueError, TypeError, OverflowError: as ``threading.Lock``.
            """

        def release(self) -> None:
            """Unlock the name and wake those who wait for it.

            Raises:
                RuntimeError: this task (thread of this process) does not hold it.
            """

        def __enter__(self) -> Self: ...
        def __exit__(
            self,
            kind: type[BaseException] | None,
            error: BaseException | None,
            traceback: TracebackType | None,
            /,
        ) -> None: ...

    @property
    def path(self) -> str | bytes:
        """As given to ``Arena.lock()``."""
        return self._given

    @property
    def arena(self) -> "Arena":
        """The arena that the name is in."""
        return self._arena

    def locked(self) -> bool:
        """Whether anybody, in any process, holds the lock on the name now."""
        arena = self._arena
        if self._is_mine(self._state()):
            return True
        rc = arena._lib.shmlock_name_owner(arena._pointer, self._path, _new_owner(arena._build))
        if rc in _NO_SUCH_NAME:
            return False
        if rc < 0:
            raise arena._failure(rc, self._given)
        return bool(rc > 0)

    def owner(self) -> Owner | None:
        """Who holds the lock on the name now: pid, tid and since when; None: nobody."""
        arena = self._arena
        found = _new_owner(arena._build)
        rc = arena._lib.shmlock_name_owner(arena._pointer, self._path, found)
        if rc in _NO_SUCH_NAME:
            return None
        if rc < 0:
            raise arena._failure(rc, self._given)
        if rc == 0:
            return None
        return Owner(found.pid, found.tid, wall_clock(found.since))

    # ---- Called by LockBase -------------------------------------------------------------------

    def _acquire_slow(self, blocking: bool, timeout: float) -> bool:
        """The rest of ``acquire()``: the first try failed, for whatever reason."""
        if not blocking:
            nanoseconds = 0
        elif timeout < 0:
            nanoseconds = self._arena._wait
        else:
            nanoseconds = _lib.nanoseconds(timeout)
        state = self._state()
        mine = self._is_mine(state)
        try:
            rc = self._wait_for(state, nanoseconds)
            if rc == 0:
                if state.recovered:
                    self._log_recovered()
                return True
        except BaseException:
            # A signal handler raised. Without effect if the lock was not yet ours; what this
            # task held before the call, it keeps.
            if not mine:
                self._arena._lib.shmlock_name_abandon(state)
            raise
        if rc == -errno.ETIMEDOUT:
            return False
        raise self._arena._failure(rc, self._given)

    def _enter_slow(self) -> None:
        """The rest of ``with lock:``, which cannot say False."""
        if not self._acquire_slow(True, -1.0):
            raise self._arena._failure(-errno.ETIMEDOUT, self._given)

    def _release_failed(self, rc: int) -> None:
        """Say why ``release()`` did not."""
        if rc != -errno.EPERM:
            raise self._arena._failure(rc, self._given)
        owner = self.owner()
        if owner is None:
            raise RuntimeError("release unlocked lock")
        raise RuntimeError(
            f"cannot release the lock on {self._given!r}: "
            f"it is held by pid {owner.pid}, tid {owner.tid}"
        )

    def _log_recovered(self) -> None:
        _lib.logger.warning(
            "arena %s: the holder of the lock on %r died; lock recovered",
            self._arena.name,
            self._given,
        )

    # ---- Inside -------------------------------------------------------------------------------

    def _state(self) -> "CData":
        """The struct shmlock_name inside this object."""
        return self._arena._build.ffi.cast("struct shmlock_name *", self._address)

    def _is_mine(self, state: "CData") -> bool:
        """Whether the calling task holds it, through this object."""
        arena = self._arena
        return bool(
            state.task != 0
            and state.process == os.getpid()
            and state.task == arena._lib.shmlock_task_id(arena._pointer)
        )

    def _wait_for(self, state: "CData", timeout: int) -> int:
        acquire = functools.partial(self._arena._lib.shmlock_name_acquire, state)
        rc = _lib.wait(acquire, timeout)
        while rc == -errno.ENOENT and self._parents and self._make_parents():
            rc = _lib.wait(acquire, timeout)
        return rc

    def _make_parents(self) -> bool:
        """Make the missing parents; False: it has none."""
        parent = os.path.dirname(self._path.rstrip(b"/"))
        if not parent.strip(b"/"):
            return False
        self._arena.makedirs(parent, exist_ok=True)
        return True

    def __reduce__(self) -> tuple[object, ...]:
        """As (arena, path), not held."""
        return _remake, (self._arena, self._given, self._parents)

    def __repr__(self) -> str:
        """As ``threading.Lock``, with the path; asks the arena who holds it."""
        try:
            owner = self.owner()
            state = f"locked by pid {owner.pid}, tid {owner.tid}" if owner else "unlocked"
        except (OSError, ValueError) as error:
            state = f"state unknown: {error}"
        return f"<shmlock.NameLock {self._given!r} in {self._arena.name!r}, {state}>"


def new(arena: "Arena", path: "StrPath", *, parents: bool) -> NameLock:
    """A lock on a name, not held; ValueError for a NUL."""
    lock: NameLock = _concrete(arena._build)(arena._address, _lib.encode(path))
    lock._arena = arena
    lock._given = os.fspath(path)
    lock._parents = parents
    return lock


def wall_clock(monotonic_ns: int) -> float | None:
    """What ``time.time()`` was at a CLOCK_MONOTONIC moment of the arena; None for 0."""
    if not monotonic_ns:
        return None
    return time.time() - (time.monotonic_ns() - monotonic_ns) / 1e9


def _remake(arena: "Arena", path: "StrPath", parents: bool) -> NameLock:
    return arena.lock(path, parents=parents)


def _new_owner(build: "Build") -> "CData":
    return build.ffi.new("struct shmlock_owner *")


@functools.cache
def _concrete(build: "Build") -> type:
    """The class over the build's own LockBase; both are NameLocks to the user."""
    return type(
        "NameLock",
        (NameLock, build.lock_base),
        {
            "__slots__": ("__weakref__", "_arena", "_given", "_parents"),
            "__module__": "shmlock",
            "__doc__": NameLock.__doc__,
        },
    )
