"""The only importer of the C extensions: builds, arguments going in, errors coming out.

Every C function returns >= 0 or -errno.  The callers test for that themselves, since that is
all that an undisturbed call needs; what else there is to do about an error stands here.
"""

import errno
import functools
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from shmlock import _native
from shmlock.errors import ArenaDamaged, DeadlockError

if TYPE_CHECKING:
    from shmlock import _native as _types
    from shmlock._native import FFI, LockBase

CData: TypeAlias = "_types.CData"
Lib: TypeAlias = "_types.Lib"
StrPath: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]

logger = logging.getLogger("shmlock")

FOREVER = -1  # SHMLOCK_FOREVER
RESUME = -2  # SHMLOCK_RESUME
EINTR = -errno.EINTR
_ENCODING = sys.getfilesystemencoding()
_ENCODING_ERRORS = sys.getfilesystemencodeerrors()
_CIRCLE_BYTES = 16384


@dataclass(frozen=True)
class Build:
    """One of the two builds of the C core."""

    ffi: "FFI"
    lib: "Lib"
    lock_base: "type[LockBase]"
    debug: bool


def _build(module: object, *, debug: bool) -> Build:
    lib: Lib = module.lib  # type: ignore[attr-defined]
    name: str = module.__name__  # type: ignore[attr-defined]
    rc = lib.shmlock_install_types(name.encode())
    if rc < 0:
        raise ImportError(f"{name}: cannot install its types: {os.strerror(-rc)}")
    return Build(
        ffi=module.ffi,  # type: ignore[attr-defined]
        lib=lib,
        lock_base=module.LockBase,  # type: ignore[attr-defined]
        debug=debug,
    )


release_build = _build(_native, debug=False)


def _layout_version() -> int:
    limits = release_build.ffi.new("struct shmlock_limits *")
    release_build.lib.shmlock_limits(limits)
    return int(limits.layout_version)


LAYOUT_VERSION = _layout_version()
"""Arenas of another layout are refused at attach."""


@functools.cache
def debug_build() -> Build:
    """The build with assertions and pause points; ImportError when it was not installed."""
    from shmlock import _native_debug  # few processes need it

    return _build(_native_debug, debug=True)


# ---- Arguments ---------------------------------------------------------------------------------


def encode(path: StrPath) -> bytes:
    """The bytes of a path, as ``os`` would pass them to the kernel.

    Raises:
        ValueError: it contains a NUL.
        TypeError: it is no path.
    """
    # os.fsencode() takes twice as long, for the sake of os.PathLike.
    raw = path.encode(_ENCODING, _ENCODING_ERRORS) if type(path) is str else os.fsencode(path)
    if 0 in raw:
        raise ValueError("embedded null byte")
    return raw


def nanoseconds(timeout: float | None, what: str = "timeout") -> int:
    """Seconds as the C core takes them; None is for ever.

    Raises:
        TypeError: not a number (a bool is none).
        ValueError: negative or NaN.
        OverflowError: more than ``threading.TIMEOUT_MAX``.
    """
    if timeout is None:
        return FOREVER
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"{what} must be a number or None, not {type(timeout).__name__}")
    if math.isnan(timeout) or timeout < 0:
        raise ValueError(f"{what} must be a non-negative number")
    if timeout > threading.TIMEOUT_MAX:
        raise OverflowError(f"{what} is too large")
    # Never round a wait down to "do not wait".
    return math.ceil(timeout * 1e9)


def wait(call: Callable[[int], int], timeout: int) -> int:
    """Make a C call that can wait, so that signal handlers run in between.

    A handler that raises ends it (a call that was interrupted has changed nothing); after one
    that returns, the wait goes on to the same deadline.  The deadline is kept here, because a
    handler may itself make calls that wait, and C remembers only the last one's.  No clock is
    read unless there is something to wait for.

    Args:
        call: takes a timeout in nanoseconds, returns >= 0 or -errno.
        timeout: nanoseconds, or FOREVER.
    """
    if timeout == FOREVER:
        rc = call(FOREVER)
        while rc == EINTR:
            rc = call(RESUME)
            if rc == -errno.ETIMEDOUT:  # a handler's deadline
                rc = call(FOREVER)
        return rc
    while (rc := call(0)) == EINTR:
        pass
    if rc != -errno.ETIMEDOUT or timeout == 0:
        return rc
    deadline = time.monotonic_ns() + timeout
    while (rc := call(max(0, deadline - time.monotonic_ns()))) == EINTR:
        pass
    return rc


# ---- Errors ------------------------------------------------------------------------------------

_TEXTS = {
    errno.ETIMEDOUT: "Timed out",
    errno.ESTALE: "Arena has been unlinked",
    errno.EROFS: "Arena is attached read-only",
    errno.EUCLEAN: "Arena is damaged: its bytes make no sense; 'shmlock check' says more",
    errno.ENOTRECOVERABLE: "Arena is poisoned: recovery of a dead task failed again and again; "
    "remove it (shmlock rm --force) and make a new one",
    errno.ENOSYS: "This needs an arena made with debug=True",
}


def closed() -> ValueError:
    """What a call on a closed arena raises, as a closed file would."""
    return ValueError("arena is closed")


def failure(
    build: Build,
    pointer: "CData",
    arena: str,
    rc: int,
    path: StrPath | None = None,
    path2: StrPath | None = None,
) -> OSError | ValueError:
    """The exception for -errno of a C call on an arena, to be raised by the caller.

    Args:
        build: whose call it was.
        pointer: the arena; may be NULL.
        arena: its name, the ``filename`` of errors that are about no path.
        rc: -errno.
        path: as the user passed it.
        path2: likewise.
    """
    code = -rc
    if code == errno.EBADF:
        return closed()
    name: object = arena if path is None else os.fspath(path)
    if code == errno.EDEADLK:
        text = _circle(build)
        logger.warning("arena %s: %s", arena, text)
        return DeadlockError(code, text, name)
    text = _TEXTS.get(code) or _advice(build, pointer, code) or os.strerror(code)
    if code == errno.ENOTRECOVERABLE:
        _log_poisoned(arena)
    kind = ArenaDamaged if code == errno.EUCLEAN else OSError
    if path2 is not None:
        return kind(code, text, name, None, os.fspath(path2))
    return kind(code, text, name)


def _circle(build: Build) -> str:
    buffer = build.ffi.new("char[]", _CIRCLE_BYTES)
    length = build.lib.shmlock_circle(buffer, _CIRCLE_BYTES)
    text = build.ffi.string(buffer, _CIRCLE_BYTES) if length > 0 else b""
    return text.decode(_ENCODING, "backslashreplace") or os.strerror(errno.EDEADLK)


def _advice(build: Build, pointer: "CData", code: int) -> str:
    """Messages that name numbers and the argument to change; empty when there is none."""
    if code == errno.ENOLCK:
        limits = build.ffi.new("struct shmlock_limits *")
        build.lib.shmlock_limits(limits)
        return f"Too many locks: a task can hold {limits.names_per_task} names"
    if not pointer:
        return ""
    if code == errno.ENOSPC:
        usage = build.ffi.new("struct shmlock_usage *")
        if build.lib.shmlock_usage(pointer, usage) < 0:
            return ""
        return (
            f"Arena is full: {usage.used} dentries used, {usage.locked} locked; "
            "create with dentries=…"
        )
    if code == errno.EAGAIN:
        info = build.ffi.new("struct shmlock_info *")
        build.lib.shmlock_info(pointer, info)
        return f"All {info.tasks} task slots are taken; create with more tasks=…"
    return ""


@functools.lru_cache(maxsize=1024)
def _log_poisoned(arena: str) -> None:
    """Once per arena and process: the cache is the memory."""
    logger.error("arena %s: %s", arena, _TEXTS[errno.ENOTRECOVERABLE])
