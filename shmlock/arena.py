"""``Arena``: this process's attachment to an arena.

Attachments are shared within a process: however many ``Arena`` objects there are for one arena,
there is one mapping, and a thread has one task slot.
"""

import errno
import os
import warnings
import weakref
from types import TracebackType
from typing import TYPE_CHECKING

from shmlock import _attachments, _lib, locks
from shmlock._lib import FOREVER, StrPath
from shmlock.namespace import Namespace
from shmlock.stats import Fault, Stats

if TYPE_CHECKING:
    from typing_extensions import Self

    from shmlock._lib import Build, CData

LOCKINGS = ("dentry", "inode", "both")  # by enum shmlock_locking
_FAULTS = 256
_COUNTERS = 64


class Arena(Namespace):
    """An attachment to an arena; made by ``create()``, ``attach()`` and ``open()``.

    A context manager that closes it.  Any number of threads may use it, each is a task of its
    own; so may a forked child, which gets tasks of its own and holds nothing.  Pickles as its
    name, and attaches anew when unpickled.

    Any call raises ValueError once the arena is closed.
    """

    def __init__(
        self,
        name: str,
        build: "Build",
        pointer: "CData",
        info: "CData",
        *,
        any_owner: bool = False,
        readonly: bool = False,
    ) -> None:
        """Take over one shmlock_attach(); use ``create()``, ``attach()`` or ``open()``."""
        self._name = name
        self._build = build
        self._lib = build.lib
        self._pointer = pointer
        self._box = build.ffi.new("struct shmlock_arena *[1]", [pointer])
        self._address = int(build.ffi.cast("uintptr_t", self._box))
        self._locking = LOCKINGS[info.locking]
        self._size = int(info.length)
        self._tasks = int(info.tasks)
        self._any_owner = any_owner
        self._readonly = readonly
        self._timeout: float | None = None
        self._wait = FOREVER
        self._locks: weakref.WeakSet[locks.NameLock] = weakref.WeakSet()
        token = object()
        _attachments.add(build, pointer, token)
        self._token = token
        # Should it be dropped without close(). At exit others do it, see _attachments.py.
        self._finalizer = weakref.finalize(self, _attachments.give_back, build, pointer, token)
        self._finalizer.atexit = False

    # ---- The attachment ----------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The arena's name."""
        return self._name

    @property
    def locking(self) -> str:
        """``"dentry"``, ``"inode"`` or ``"both"``; chosen by who created the arena."""
        return self._locking

    @property
    def debug(self) -> bool:
        """Whether it is an arena of the debug build."""
        return self._build.debug

    @property
    def readonly(self) -> bool:
        """Whether it is mapped read-only."""
        return self._readonly

    @property
    def closed(self) -> bool:
        """Whether ``close()`` was called on this object."""
        return not self._pointer

    @property
    def timeout(self) -> float | None:
        """Seconds that a call waits when it is not told otherwise; None (at first): for ever.

        Belongs to this object, not to the arena.  ``acquire()`` of a NameLock then returns False,
        ``with lock:`` raises TimeoutError.
        """
        return self._timeout

    @timeout.setter
    def timeout(self, seconds: float | None) -> None:
        self._wait = _lib.nanoseconds(seconds)
        self._timeout = seconds

    def close(self) -> None:
        """Give this attachment back; does nothing the second time.

        When it is this process's last one to the arena, the calling thread's task ends, and what
        it still holds is released, with a ResourceWarning.  Other threads' next call is a
        ValueError; the mapping goes when the last of them has ended.  When there is another
        attachment, what the calling thread holds through locks of this object is released.
        """
        if self._finalizer.detach() is None:
            return
        pointer = self._pointer
        last = _attachments.remove(self._build, pointer, self._token)
        dropped = 0 if last else self._release_locks()
        self._box[0] = self._pointer = self._build.ffi.NULL
        if last:
            dropped = self._lib.shmlock_leave(pointer)
        self._lib.shmlock_close(pointer)
        if dropped > 0:
            warnings.warn(
                f"arena {self._name!r} closed while holding {dropped} lock(s)",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    def _release_locks(self) -> int:
        mine = [lock for lock in self._locks.copy() if lock._is_mine(lock._state())]
        for lock in mine:
            lock.release()
        return len(mine)

    def __enter__(self) -> "Self":
        """The arena."""
        if not self._pointer:
            raise _lib.closed()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def __repr__(self) -> str:
        """Name and locking."""
        state = " closed" if self.closed else " readonly" if self._readonly else ""
        return f"<shmlock.Arena {self._name!r} locking={self._locking!r}{state}>"

    def set_latency(self, sleep: float = 0.0, spin: float = 0.0) -> None:
        """Make each filesystem operation take that long while its locks are held.

        Stored in the arena: it concerns all who use it.  Experiments only.

        Args:
            sleep: seconds to sleep, at most 10.
            spin: seconds to keep the processor busy, at most 10.

        Raises:
            ValueError: negative, or over 10 seconds.
        """
        sleep_ns, spin_ns = _lib.nanoseconds(sleep, "sleep"), _lib.nanoseconds(spin, "spin")
        if FOREVER in (sleep_ns, spin_ns):
            raise TypeError("sleep and spin must be numbers, not None")
        rc = self._lib.shmlock_set_latency(self._pointer, sleep_ns, spin_ns)
        if rc == -errno.EINVAL:
            raise ValueError("sleep and spin are at most 10 seconds")
        if rc < 0:
            raise self._failure(rc)

    # ---- Locks for people ----------------------------------------------------------------------

    def lock(self, path: StrPath, *, parents: bool = False) -> locks.NameLock:
        """A lock on a name, not yet held.

        Args:
            path: the name; nothing needs to have it. Its last component is not followed if it is
                a symlink.
            parents: make missing parent directories when acquiring.

        Raises:
            OSError: EOPNOTSUPP: the arena's ``locking`` is not ``"dentry"``.
        """
        if not self._pointer:
            raise _lib.closed()
        if self._locking != "dentry":
            raise OSError(
                errno.EOPNOTSUPP,
                f"A lock on a name needs an arena with locking='dentry', not {self._locking!r}",
                os.fspath(path),
            )
        lock = locks.new(self, path, parents=parents)
        self._locks.add(lock)
        return lock

    # ---- About the arena ------------------------------------------------------------------------

    def stats(self) -> Stats:
        """Sizes, what is in use, and the counters."""
        usage = self._build.ffi.new("struct shmlock_usage *")
        rc = self._lib.shmlock_usage(self._pointer, usage)
        live = self._lib.shmlock_live_tasks(self._pointer) if rc >= 0 else rc
        if live < 0:
            raise self._failure(live)
        return Stats(
            name=self._name,
            locking=self._locking,
            size=self._size,
            tasks=self._tasks,
            live_tasks=live,
            dentries=usage.dentries,
            used=usage.used,
            positive=usage.positive,
            negative=usage.negative,
            locked=usage.locked,
            blocks=usage.blocks,
            texts=usage.texts,
            stock=usage.stock,
            inodes=usage.inodes,
            directories=usage.directories,
            counters=self._counters(),
        )

    def _counters(self) -> dict[str, int]:
        values = self._build.ffi.new("uint64_t[]", _COUNTERS)
        count = self._lib.shmlock_counters(self._pointer, values, _COUNTERS)
        if count < 0:
            raise self._failure(count)
        names = (
            self._build.ffi.string(self._lib.shmlock_counter_name(i)).decode()
            for i in range(min(count, _COUNTERS))
        )
        return {name: int(values[i]) for i, name in enumerate(names)}

    def check(self, quiescent: bool = False) -> list[Fault]:
        """Walk every structure and return the broken invariants, as lines of text.

        On a live arena things change underfoot: only what was seen twice, unchanged, counts.
        What dead tasks have left behind is put in order first, unless attached read-only.

        Args:
            quiescent: nobody is using the arena: also no name may be locked, no directory be
                S_DYING, and every task slot must be accounted for.
        """
        if not self._readonly:
            swept = self._lib.shmlock_sweep(self._pointer)
            if swept < 0:
                raise self._failure(swept)
        faults = self._faults(quiescent)
        if faults and not quiescent:
            again = set(self._faults(quiescent))
            faults = [fault for fault in faults if fault in again]
        return faults

    def _faults(self, quiescent: bool) -> list[Fault]:
        room = _FAULTS
        while True:
            out = self._build.ffi.new("struct shmlock_fault[]", room)
            count = self._lib.shmlock_check(self._pointer, quiescent, out, room)
            if count < 0:
                raise self._failure(count)
            if count <= room:
                break
            room = 2 * count
        return [
            Fault(
                fault.invariant,
                fault.cell,
                fault.found,
                fault.expected,
                self._build.ffi.string(self._lib.shmlock_invariant(fault.invariant)).decode(),
            )
            for fault in out[0:count]
        ]
