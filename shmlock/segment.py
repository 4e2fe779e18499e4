"""The objects in /dev/shm that arenas live in: names, making, opening, listing, removing.

Nothing here knows what is inside an object.  Two rules make names safe:

- an object is built under a temporary name and gets its arena's name by link(2), complete or not
  at all; its creator holds a file lock (flock) on it meanwhile, which a dead creator does not,
  so that leftovers can be told from work in progress;
- whoever attaches holds that file lock shared while doing so, whoever removes holds it exclusive,
  so that an arena with nobody in it stays so until its name is gone.
"""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import posix_ipc

DIRECTORY = "/dev/shm"
PREFIX = "shmlock."
_TEMPORARY = "shmlock-new."
_STALE_SECONDS = 60.0
_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")
_MODE_MAX = 0o777


def check_name(name: str) -> str:
    """The name, if an arena can have it.

    Raises:
        ValueError: it is not 1 to 200 of ``A-Z a-z 0-9 . _ -``.
    """
    if not isinstance(name, str):
        raise TypeError(f"arena name must be str, not {type(name).__name__}")
    if not _NAME.fullmatch(name):
        raise ValueError(f"arena name must be 1 to 200 of A-Z a-z 0-9 . _ -, not {name!r}")
    return name


def check_mode(mode: int) -> int:
    """The permission bits, if a file can have them; else ValueError."""
    if not 0 <= mode <= _MODE_MAX:
        raise ValueError(f"mode must be 0 to 0o777, not {oct(mode)}")
    return mode


def names() -> list[str]:
    """Names of all arenas on this machine, sorted, whatever is in them."""
    found = (entry.removeprefix(PREFIX) for entry in _entries(PREFIX))
    return sorted(name for name in found if _NAME.fullmatch(name))


def open_object(name: str, *, readonly: bool = False) -> int:
    """Open the object of an arena, by posix_ipc.

    Returns:
        A file descriptor, which the caller closes.

    Raises:
        FileNotFoundError, PermissionError.
    """
    return _shm_open(PREFIX + name, name, readonly=readonly)


def still_named(fd: int, name: str) -> bool:
    """Whether the open object is the one that has the name now."""
    mine = os.fstat(fd)
    try:
        theirs = os.stat(f"{DIRECTORY}/{PREFIX}{name}", follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (mine.st_dev, mine.st_ino) == (theirs.st_dev, theirs.st_ino)


@contextlib.contextmanager
def attaching(fd: int) -> Iterator[None]:
    """Hold off removal of the open object; waits while one is in progress."""
    fcntl.flock(fd, fcntl.LOCK_SH)
    try:
        yield
    finally:
        # Explicitly: a duplicate of the descriptor would keep the lock.
        fcntl.flock(fd, fcntl.LOCK_UN)


@contextlib.contextmanager
def removing(fd: int, patience: float = 2.0) -> Iterator[bool]:
    """Hold off attachment to the open object.

    Yields:
        True; False when somebody was still busy attaching after `patience` seconds (attaching
        takes microseconds, unless it was stopped in the middle).
    """
    deadline = time.monotonic() + patience
    while not (held := _try_lock(fd)) and time.monotonic() < deadline:
        time.sleep(0.001)
    try:
        yield held
    finally:
        if held:
            fcntl.flock(fd, fcntl.LOCK_UN)


@contextlib.contextmanager
def new_object(name: str, size: int, mode: int, build: Callable[[int], None]) -> Iterator[int]:
    """Make an object of `size` bytes that holds what `build` puts in; its name comes last.

    Args:
        name: of the arena.
        size: bytes; reserved at once.
        mode: permission bits, whatever the umask.
        build: gets a file descriptor; when it raises, nothing is left.

    Yields:
        The file descriptor, closed afterwards; inside the block the object has its name and
        cannot be removed.

    Raises:
        FileExistsError: the name is taken.
        OSError: ENOSPC, ENOMEM: /dev/shm cannot hold it.
    """
    remove_leftovers()
    temporary = f"{_TEMPORARY}{os.getpid()}.{secrets.token_hex(8)}"
    fd = _shm_create(temporary)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            _reserve(fd, size, name)
            os.fchmod(fd, mode)
            build(fd)
            # Those who attach may come in as soon as it has its name, those who remove not yet.
            fcntl.flock(fd, fcntl.LOCK_SH)
            _link(temporary, name)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{DIRECTORY}/{temporary}")
        yield fd
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


def remove_object(name: str) -> None:
    """Take the arena's name away; FileNotFoundError, PermissionError."""
    try:
        posix_ipc.unlink_shared_memory(f"/{PREFIX}{name}")
    except posix_ipc.ExistentialError:
        raise _oserror(errno.ENOENT, name) from None
    except posix_ipc.PermissionsError:
        raise _oserror(errno.EACCES, name) from None


def being_made() -> int:
    """Objects without an arena's name yet, dead creators' included."""
    return len(_entries(_TEMPORARY))


def remove_leftovers() -> int:
    """Remove what creators left behind that died half-way. Returns how many there were."""
    removed = 0
    for entry in _entries(_TEMPORARY):
        path = f"{DIRECTORY}/{entry}"
        # Somebody else's, or gone meanwhile: not ours to care about.
        with contextlib.suppress(OSError):
            if time.time() - os.stat(path, follow_symlinks=False).st_ctime < _STALE_SECONDS:
                continue
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if _try_lock(fd):
                    os.unlink(path)
                    removed += 1
            finally:
                os.close(fd)
    return removed


def _entries(prefix: str) -> list[str]:
    try:
        return [entry for entry in os.listdir(DIRECTORY) if entry.startswith(prefix)]
    except FileNotFoundError:
        return []


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _shm_create(entry: str) -> int:
    try:
        return int(posix_ipc.SharedMemory(f"/{entry}", posix_ipc.O_CREX, mode=0o600).fd)
    except posix_ipc.PermissionsError:
        raise _oserror(errno.EACCES, DIRECTORY) from None


def _shm_open(entry: str, name: str, *, readonly: bool) -> int:
    try:
        return int(posix_ipc.SharedMemory(f"/{entry}", read_only=readonly).fd)
    except posix_ipc.ExistentialError:
        raise _oserror(errno.ENOENT, name) from None
    except posix_ipc.PermissionsError:
        raise _oserror(errno.EACCES, name) from None


def _reserve(fd: int, size: int, name: str) -> None:
    try:
        os.ftruncate(fd, size)
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EFBIG):
            raise
        space = os.statvfs(DIRECTORY)
        raise OSError(
            errno.ENOSPC if error.errno == errno.EFBIG else error.errno,
            f"The arena needs {size} bytes and {DIRECTORY} has {space.f_bavail * space.f_frsize}"
            " free: create with fewer dentries=… or tasks=…",
            name,
        ) from None


def _link(temporary: str, name: str) -> None:
    try:
        os.link(Path(DIRECTORY, temporary), Path(DIRECTORY, PREFIX + name), follow_symlinks=False)
    except FileExistsError:
        raise _oserror(errno.EEXIST, name) from None


def _oserror(code: int, name: str) -> OSError:
    return OSError(code, os.strerror(code), name)
