"""The namespace of an arena: the calls that make, remove and look at names, as ``os`` has them."""

import errno
import os
import posixpath
import stat
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, overload

from shmlock import _lib, listing
from shmlock._lib import StrPath
from shmlock.listing import Entry, Scan
from shmlock.stats import StatResult

if TYPE_CHECKING:
    from shmlock._lib import Build, CData, Lib

# What stat() may say about a path that simply is not there, as for os.path.exists().
_ABSENT = (-errno.ENOENT, -errno.ENOTDIR, -errno.ELOOP, -errno.ENAMETOOLONG)


class Namespace:
    """The part of ``Arena`` that takes paths.

    Paths are ``str``, ``bytes`` or ``os.PathLike``, from the root, with or without a leading
    ``/``; a NUL is a ValueError.  Every call that can wait takes ``timeout``: seconds, None for
    ``Arena.timeout``; it raises TimeoutError with nothing done.
    """

    _name: str
    _build: "Build"
    _lib: "Lib"
    _pointer: "CData"
    _wait: int  # nanoseconds that a call waits when it is not told otherwise

    # ---- Changing the namespace ----------------------------------------------------------------

    def mkdir(self, path: StrPath, *, timeout: float | None = None) -> None:
        """Make a directory, as mkdir(2).

        Raises:
            FileExistsError, FileNotFoundError, NotADirectoryError, TimeoutError, DeadlockError.
            OSError: ENOSPC (arena full), EROFS, ESTALE (arena unlinked), ENAMETOOLONG, ELOOP.
        """
        raw = _lib.encode(path)
        limit = self._wait if timeout is None else _lib.nanoseconds(timeout)
        rc = self._lib.shmlock_mkdir(self._pointer, raw, limit if limit < 0 else 0)
        if rc:
            self._settle(self._lib.shmlock_mkdir, rc, raw, limit, path)

    def create(
        self, path: StrPath, *, exist_ok: bool = False, timeout: float | None = None
    ) -> None:
        """Make an empty regular file, as open(2) with O_CREAT | O_EXCL.

        Args:
            path: where.
            exist_ok: as without O_EXCL: a file that is there already will do.
            timeout: seconds to wait for the name.

        Raises:
            FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError,
            TimeoutError, DeadlockError.
            OSError: as for ``mkdir()``.
        """
        raw = _lib.encode(path)
        limit = self._wait if timeout is None else _lib.nanoseconds(timeout)
        rc = self._lib.shmlock_create(self._pointer, raw, limit if limit < 0 else 0)
        if not rc:
            return
        left = _deadline(limit)
        while True:
            try:
                return self._settle(self._lib.shmlock_create, rc, raw, left(), path)
            except FileExistsError:
                if not exist_ok:
                    raise
            if self._is_there(path, raw):
                return None
            rc = _lib.EINTR  # it has gone since: try again

    def _is_there(self, path: StrPath, raw: bytes) -> bool:
        """Whether what open(2) with O_CREAT would open is there; IsADirectoryError."""
        found = self._build.ffi.new("struct shmlock_stat *")
        rc = self._lib.shmlock_stat(self._pointer, raw, 1, found)
        if rc == -errno.ENOENT:
            return False
        if rc < 0 or stat.S_ISDIR(found.st_mode):
            raise self._failure(rc if rc < 0 else -errno.EISDIR, path)
        return True

    def unlink(self, path: StrPath, *, timeout: float | None = None) -> None:
        """Remove a file's name, as unlink(2).

        Raises:
            FileNotFoundError, IsADirectoryError, NotADirectoryError, TimeoutError, DeadlockError.
        """
        raw = _lib.encode(path)
        limit = self._wait if timeout is None else _lib.nanoseconds(timeout)
        rc = self._lib.shmlock_unlink(self._pointer, raw, limit if limit < 0 else 0)
        if rc:
            self._settle(self._lib.shmlock_unlink, rc, raw, limit, path)

    def rmdir(self, path: StrPath, *, timeout: float | None = None) -> None:
        """Remove an empty directory, as rmdir(2).

        Raises:
            FileNotFoundError, NotADirectoryError, TimeoutError, DeadlockError.
            OSError: ENOTEMPTY; EBUSY: a name in it is locked by a NameLock, or it is the root;
                EINVAL: the path ends in ``.``.
        """
        raw = _lib.encode(path)
        limit = self._wait if timeout is None else _lib.nanoseconds(timeout)
        rc = self._lib.shmlock_rmdir(self._pointer, raw, limit if limit < 0 else 0)
        if rc:
            self._settle(self._lib.shmlock_rmdir, rc, raw, limit, path)

    def makedirs(
        self, path: StrPath, exist_ok: bool = False, *, timeout: float | None = None
    ) -> None:
        """Make a directory and all missing ones above it, as ``os.makedirs()``.

        Args:
            path: where.
            exist_ok: a directory that is there already will do.
            timeout: seconds for all of it; what was made before it ran out, stays.
        """
        left = _deadline(self._wait if timeout is None else _lib.nanoseconds(timeout))
        self._makedirs(_lib.encode(path), path, exist_ok, left)

    def _makedirs(self, raw: bytes, path: StrPath, exist_ok: bool, left: Callable[[], int]) -> None:
        mkdir = self._lib.shmlock_mkdir
        try:
            return self._settle(mkdir, _lib.EINTR, raw, left(), path)
        except FileNotFoundError:
            head, tail = posixpath.split(raw.rstrip(b"/"))
            if not head.strip(b"/"):
                raise
        except OSError:
            # Not only FileExistsError: whatever mkdir has against it, a directory is there.
            if not exist_ok or not self.is_dir(raw):
                raise
            return None
        self._makedirs(head, head if isinstance(path, bytes) else os.fsdecode(head), True, left)
        if tail == b".":  # new/. is there as soon as new is
            return None
        try:
            return self._settle(mkdir, _lib.EINTR, raw, left(), path)
        except FileExistsError:  # by somebody else
            if not exist_ok or not self.is_dir(raw):
                raise
            return None

    def _settle(
        self,
        call: Callable[["CData", bytes, int], int],
        rc: int,
        raw: bytes,
        limit: int,
        path: StrPath,
    ) -> None:
        """What a changing call still has to do when the first try failed.

        Args:
            call: the C function.
            rc: what it returned; EINTR: try (again), whatever the limit.
            raw: its path.
            limit: nanoseconds, FOREVER; 0: do not wait.
            path: as the user passed it.
        """
        if rc == _lib.EINTR or (rc == -errno.ETIMEDOUT and limit):
            rc = _lib.wait(lambda timeout: call(self._pointer, raw, timeout), limit)
        if rc < 0:
            raise self._failure(rc, path)

    # ---- Looking: takes no lock and waits for nothing -------------------------------------------

    def stat(self, path: StrPath) -> StatResult:
        """What the path leads to, as stat(2).

        Raises:
            FileNotFoundError, NotADirectoryError.
            OSError: ELOOP, ENAMETOOLONG.
        """
        return self._stat(path, 1)

    def lstat(self, path: StrPath) -> StatResult:
        """As ``stat()``, of the symlink itself if it is one."""
        return self._stat(path, 0)

    def _stat(self, path: StrPath, follow: int) -> StatResult:
        found = self._build.ffi.new("struct shmlock_stat *")
        rc = self._lib.shmlock_stat(self._pointer, _lib.encode(path), follow, found)
        if rc < 0:
            raise self._failure(rc, path)
        return StatResult(found.st_mode, found.st_ino, found.st_nlink, found.st_size)

    def _mode(self, path: StrPath) -> int:
        """Mode of what the path leads to; 0: it leads nowhere."""
        found = self._build.ffi.new("struct shmlock_stat *")
        rc = self._lib.shmlock_stat(self._pointer, _lib.encode(path), 1, found)
        if rc == 0:
            return int(found.st_mode)
        if rc in _ABSENT:
            return 0
        raise self._failure(rc, path)

    def exists(self, path: StrPath) -> bool:
        """Whether the path leads to something, as ``os.path.exists()``."""
        return self._mode(path) != 0

    def is_dir(self, path: StrPath) -> bool:
        """Whether the path leads to a directory, as ``os.path.isdir()``."""
        return stat.S_ISDIR(self._mode(path))

    @overload
    def listdir(self, path: "str | os.PathLike[str]" = "/") -> list[str]: ...
    @overload
    def listdir(self, path: "bytes | os.PathLike[bytes]") -> list[bytes]: ...
    def listdir(self, path: StrPath = "/") -> list[str] | list[bytes]:
        """Names in a directory, in no particular order; bytes if the path is.

        A name that is there throughout appears exactly once; one that comes or goes meanwhile
        may or may not.

        Raises:
            FileNotFoundError, NotADirectoryError.
        """
        names = self._list(path)
        if isinstance(os.fspath(path), bytes):
            return list(names)
        return [os.fsdecode(name) for name in names]

    @overload
    def scandir(self, path: "str | os.PathLike[str]" = "/") -> Scan[str]: ...
    @overload
    def scandir(self, path: "bytes | os.PathLike[bytes]") -> Scan[bytes]: ...
    def scandir(self, path: StrPath = "/") -> Scan[str] | Scan[bytes]:
        """Entries of a directory, with the manners of ``os.scandir()``.

        Raises:
            FileNotFoundError, NotADirectoryError: at once, not at the first entry.
        """
        found = self._list(path).items()
        top = os.fspath(path)
        if isinstance(top, bytes):
            return Scan(Entry(self, name, posixpath.join(top, name), raw) for name, raw in found)
        names = ((os.fsdecode(name), raw) for name, raw in found)
        return Scan(Entry(self, name, posixpath.join(top, name), raw) for name, raw in names)

    def _list(self, path: StrPath) -> dict[bytes, listing.RawEntry]:
        found = listing.read(self._build, self._pointer, _lib.encode(path))
        if isinstance(found, int):
            raise self._failure(found, path)
        return found

    def _failure(self, rc: int, path: StrPath | None = None) -> OSError | ValueError:
        """The exception for -errno of a C call."""
        return _lib.failure(self._build, self._pointer, self._name, rc, path)


def _deadline(limit: int) -> Callable[[], int]:
    """Nanoseconds that are left of a limit for several calls."""
    if limit <= 0:
        return lambda: limit
    end = time.monotonic_ns() + limit
    return lambda: max(0, end - time.monotonic_ns())
