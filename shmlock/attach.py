"""Making, finding and removing arenas: what the package offers as functions."""

import contextlib
import copyreg
import errno
import operator
import os
import random
import secrets
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, TypedDict

from shmlock import _lib, segment
from shmlock._lib import Build, debug_build, release_build
from shmlock.arena import LOCKINGS, Arena
from shmlock.errors import ArenaMismatch

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from shmlock._lib import CData

_READY = ("dentry",)
_CROWD_TRIES = 100


class CreateOptions(TypedDict, total=False):
    """Keyword arguments of ``create()``."""

    dentries: int
    tasks: int
    locking: str
    mode: int
    debug: bool


_DEFAULTS: Final[CreateOptions] = {
    "dentries": 65536,
    "tasks": 1024,
    "locking": "dentry",
    "mode": 0o600,
    "debug": False,
}


def create(
    name: str,
    *,
    dentries: int = 65536,
    tasks: int = 1024,
    locking: str = "dentry",
    mode: int = 0o600,
    debug: bool = False,
) -> Arena:
    """Make a new arena with a root directory, and attach to it.

    Args:
        name: 1 to 200 of ``A-Z a-z 0-9 . _ -``.
        dentries: names and inodes that it can hold; it does not grow.
        tasks: threads, of all processes, that can be attached at once.
        locking: which locks its operations take; now only ``"dentry"``.
        mode: permission bits of the object in /dev/shm, whatever the umask.
        debug: for the debug build: assertions, pause points, rules that can be switched off.

    Raises:
        FileExistsError: there is one of that name.
        ValueError: a name or a size out of range.
        OSError: ENOSPC, ENOMEM: /dev/shm cannot hold it; nothing is left.
    """
    segment.check_name(name)
    segment.check_mode(mode)
    build = debug_build() if debug else release_build
    params = _params(build, dentries, tasks, locking)
    if name in segment.names():  # else found out only after reserving all the memory
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)

    def fill(fd: int) -> None:
        _raise_if(build, name, build.lib.shmlock_format(fd, params))

    size = build.lib.shmlock_size(params)
    with segment.new_object(name, size, mode, fill) as fd:
        try:
            return _attach_object(name, fd, any_owner=True, readonly=False)
        except BaseException:
            segment.remove_object(name)
            raise


def attach(name: str, *, any_owner: bool = False, readonly: bool = False) -> Arena:
    """Attach to an existing arena.

    Args:
        name: of the arena.
        any_owner: trust it whoever it belongs to (who may write to an arena can mislead all who
            use it).
        readonly: map it read-only and take no task slot: for looking only.

    Raises:
        FileNotFoundError: there is none.
        PermissionError: not allowed; or it belongs to someone who is neither you nor root.
        ArenaMismatch: it was made by another version or build, in another pid namespace, or is
            no arena at all.
        OSError: EAGAIN: every task slot is taken.
    """
    return _attach(name, any_owner=any_owner, readonly=readonly, wanted={})


def open(name: str, **options: "Unpack[CreateOptions]") -> Arena:
    """Attach to an arena, or create it; any number of processes may do so at once.

    Args:
        name: of the arena.
        options: those of ``create()``. For an arena that is there already, `locking` and `debug`
            must agree with it if they are given; the others do not matter then.

    Raises:
        ArenaMismatch: it is there, with another `locking` or `debug` than was asked for.
        PermissionError, ValueError, OSError: as for ``attach()`` and ``create()``.
    """
    if unknown := options.keys() - _DEFAULTS.keys():
        raise TypeError(f"open() got an unexpected keyword argument {min(unknown)!r}")
    _check_options(name, {**_DEFAULTS, **options})
    wanted = {key: value for key, value in options.items() if key in ("locking", "debug")}
    for attempt in range(_CROWD_TRIES):
        with contextlib.suppress(FileNotFoundError):
            return _attach(name, any_owner=False, readonly=False, wanted=wanted)
        crowd = segment.being_made()
        try:
            return create(name, **options)
        except FileExistsError:
            continue
        except OSError as error:
            # Others that are making the same arena hold the room that all but one will give back.
            alone = not crowd and not segment.being_made()
            if error.errno not in (errno.ENOSPC, errno.ENOMEM) or alone:
                raise
            if attempt == _CROWD_TRIES - 1:
                raise
        time.sleep(random.uniform(0.001, 0.02))
    return create(name, **options)


def unlink(name: str, *, force: bool = False) -> None:
    """Remove an arena's name; its memory goes when the last process has let go of it.

    Args:
        name: of the arena.
        force: even if tasks are attached: their new locks get OSError ESTALE. And even if it
            cannot be told whether there are any, because the object is damaged or foreign.

    Raises:
        FileNotFoundError: there is none.
        PermissionError: it is not yours.
        ArenaMismatch: cannot be told, see `force`.
        OSError: EBUSY: live tasks are attached, the caller's included.
    """
    segment.check_name(name)
    while True:
        fd = segment.open_object(name)
        try:
            owner = os.fstat(fd).st_uid
            if os.geteuid() not in (owner, 0):
                raise PermissionError(
                    errno.EPERM, f"The arena belongs to uid {owner}, not to you", name
                )
            try:
                build, pointer = _map(name, fd, readonly=False)
            except ArenaMismatch as mismatch:
                if not force:
                    raise _unknown(mismatch) from None
                segment.remove_object(name)
                return
            try:
                if _unlink_mapped(name, fd, build, pointer, force=force):
                    return
            finally:
                build.lib.shmlock_close(pointer)
        finally:
            os.close(fd)


def arenas() -> list[str]:
    """Names of the arenas on this machine, sorted; also of those that cannot be attached."""
    return segment.names()


@contextlib.contextmanager
def temporary(**options: "Unpack[CreateOptions]") -> Iterator[Arena]:
    """An arena with a fresh name, for a ``with`` block; closed and unlinked at its end.

    A child that was forked inside the block and leaves it too, leaves the arena alone.

    Args:
        options: those of ``create()``.

    Yields:
        The arena.
    """
    creator = os.getpid()
    arena = create(f"tmp-{creator}-{secrets.token_hex(6)}", **options)
    try:
        yield arena
    finally:
        try:
            arena.close()
        finally:
            if os.getpid() == creator:
                with contextlib.suppress(FileNotFoundError):
                    unlink(arena.name, force=True)


# ---- Pickling -----------------------------------------------------------------------------------


def _reduce(arena: Arena) -> tuple[Callable[..., Arena], tuple[object, ...]]:
    if arena.closed:
        raise _lib.closed()
    return _reattach, (arena.name, arena._any_owner, arena.readonly, arena.timeout)


def _reattach(name: str, any_owner: bool, readonly: bool, timeout: float | None) -> Arena:
    arena = attach(name, any_owner=any_owner, readonly=readonly)
    arena.timeout = timeout
    return arena


# Not Arena.__reduce__, since an Arena knows nothing of where arenas are found.
copyreg.pickle(Arena, _reduce)


# ---- Options ------------------------------------------------------------------------------------


def _check_options(name: str, options: CreateOptions) -> None:
    segment.check_name(name)
    segment.check_mode(options["mode"])
    build = debug_build() if options["debug"] else release_build
    _params(build, options["dentries"], options["tasks"], options["locking"])


def _params(build: Build, dentries: int, tasks: int, locking: str) -> "CData":
    """The struct shmlock_params, its values in range; ValueError."""
    limits = build.ffi.new("struct shmlock_limits *")
    build.lib.shmlock_limits(limits)
    _check_range("dentries", dentries, limits.min_dentries, limits.max_dentries)
    _check_range("tasks", tasks, limits.min_tasks, limits.max_tasks)
    if locking not in LOCKINGS:
        raise ValueError(f"locking must be one of {', '.join(LOCKINGS)}, not {locking!r}")
    if locking not in _READY:
        raise ValueError(f"locking={locking!r} comes with a later version; for now 'dentry' only")
    return build.ffi.new("struct shmlock_params *", [dentries, tasks, LOCKINGS.index(locking)])


def _check_range(what: str, value: int, low: int, high: int) -> None:
    if not low <= operator.index(value) <= high:
        raise ValueError(f"{what} must be {low} to {high}, not {value}")


# ---- Attaching ----------------------------------------------------------------------------------


def _attach(name: str, *, any_owner: bool, readonly: bool, wanted: dict[str, object]) -> Arena:
    segment.check_name(name)
    while True:
        fd = segment.open_object(name, readonly=readonly)
        try:
            with contextlib.nullcontext() if readonly else segment.attaching(fd):
                if readonly or segment.still_named(fd, name):
                    return _attach_object(
                        name, fd, any_owner=any_owner, readonly=readonly, wanted=wanted
                    )
        finally:
            os.close(fd)


def _attach_object(
    name: str,
    fd: int,
    *,
    any_owner: bool,
    readonly: bool,
    wanted: dict[str, object] | None = None,
) -> Arena:
    """An Arena for an open object; its fd may be closed afterwards."""
    owner = os.fstat(fd).st_uid
    if not any_owner and owner not in (os.geteuid(), 0):
        raise PermissionError(
            errno.EACCES,
            f"The arena belongs to uid {owner}, who is neither you nor root; "
            "if you trust them, attach with any_owner=True",
            name,
        )
    info = _probe(name, fd)
    _check_wanted(name, info, wanted or {})
    build, pointer = _map(name, fd, readonly=readonly)
    try:
        if not readonly:
            _raise_if(build, name, build.lib.shmlock_enter(pointer), pointer)
        return Arena(name, build, pointer, info, any_owner=any_owner, readonly=readonly)
    except BaseException:
        build.lib.shmlock_close(pointer)
        raise


def _check_wanted(name: str, info: "CData", wanted: dict[str, object]) -> None:
    found = {"locking": LOCKINGS[info.locking], "debug": bool(info.debug_build)}
    for option, value in wanted.items():
        if value != found[option]:
            raise ArenaMismatch(
                errno.EINVAL,
                f"The arena is there already, with another {option}: "
                f"found {found[option]!r}, expected {value!r}; "
                "leave the option out, or use another name",
                name,
            )


def _map(name: str, fd: int, *, readonly: bool) -> "tuple[Build, CData]":
    """Attach without taking a task slot; to be paired with shmlock_close()."""
    info = _probe(name, fd)
    try:
        build = debug_build() if info.debug_build else release_build
    except ImportError as error:
        raise ArenaMismatch(
            errno.EINVAL, f"The arena is for the debug build, which is missing: {error}", name
        ) from None
    out = build.ffi.new("struct shmlock_arena **")
    flags = build.lib.SHMLOCK_READONLY if readonly else 0
    rc = build.lib.shmlock_attach(fd, flags, out)
    if rc == -errno.EUCLEAN:
        raise _mismatch(name, "sizes and offsets", "contradictory ones", "sound ones", _REMAKE)
    _raise_if(build, name, rc)
    return build, out[0]


_REMAKE = "it is damaged: remove it (shmlock rm --force) and make a new one"
_OTHER_VERSION = (
    "it was made by another version of shmlock, or on another libc: use that one, "
    "or remove it (shmlock rm --force) and make a new one"
)
_OTHER_NAMESPACE = (
    "its users run in another container: attach from in there, or use another name here"
)
_AGREE = (
    ("layout_version", _OTHER_VERSION),
    ("header_size", _OTHER_VERSION),
    ("slot_size", _OTHER_VERSION),
    ("cell_size", _OTHER_VERSION),
    ("mutex_size", _OTHER_VERSION),
    ("mutex_word", _OTHER_VERSION),
    ("pointer_bits", _OTHER_VERSION),
    ("pidns_dev", _OTHER_NAMESPACE),
    ("pidns_ino", _OTHER_NAMESPACE),
)


def _probe(name: str, fd: int) -> "CData":
    """The object's header, which agrees with this process in all that must agree."""
    build = release_build
    info = build.ffi.new("struct shmlock_info *")
    expected = build.ffi.new("struct shmlock_info *")
    build.lib.shmlock_expect(expected)
    rc = build.lib.shmlock_probe(fd, info)
    length = os.fstat(fd).st_size
    if rc == -errno.EUCLEAN:
        raise _mismatch(
            name,
            "magic",
            f"{info.magic:#018x} in {length} bytes",
            f"{expected.magic:#018x}",
            "it is no arena: remove it (shmlock rm --force), or use another name",
        )
    _raise_if(build, name, rc)
    for field, advice in _AGREE:
        found, wanted = int(getattr(info, field)), int(getattr(expected, field))
        if found != wanted:
            what = field.replace("_", " ").replace("pidns", "pid namespace")
            raise _mismatch(name, what, str(found), str(wanted), advice)
    if info.length != length:
        raise _mismatch(name, "length", f"{length} bytes", f"{info.length} bytes", _REMAKE)
    if info.debug_build > 1 or info.locking >= len(LOCKINGS):
        raise _mismatch(
            name, "build and locking", f"{info.debug_build}, {info.locking}", "known ones", _REMAKE
        )
    return info


def _mismatch(name: str, what: str, found: str, expected: str, advice: str) -> ArenaMismatch:
    text = f"Cannot use this arena: {what}: found {found}, expected {expected}; {advice}"
    return ArenaMismatch(errno.EINVAL, text, name)


# ---- Removing -----------------------------------------------------------------------------------


def _unlink_mapped(name: str, fd: int, build: Build, pointer: "CData", *, force: bool) -> bool:
    """Remove the name of an object that is mapped. False: it had lost the name already."""
    with segment.removing(fd) as alone:
        if not segment.still_named(fd, name):
            return False
        live = build.lib.shmlock_live_tasks(pointer)
        if live < 0 and not force:
            _raise_if(build, name, live, pointer)
        if (live > 0 or not alone) and not force:
            who = f"{live} live task(s) are attached" if live > 0 else "somebody is attaching"
            raise OSError(
                errno.EBUSY, f"The arena is in use: {who}; close it there, or use force=True", name
            )
        # First, so that nobody takes a lock here once another arena may have the name.
        build.lib.shmlock_mark_unlinked(pointer)
        segment.remove_object(name)
        return True


def _unknown(mismatch: ArenaMismatch) -> ArenaMismatch:
    text = f"{mismatch.strerror}. Whether it is in use cannot be told: force=True removes it"
    return ArenaMismatch(mismatch.errno, text, mismatch.filename)


def _raise_if(build: Build, name: str, rc: int, pointer: "CData" = None) -> None:
    if rc < 0:
        raise _lib.failure(build, pointer, name, rc)
