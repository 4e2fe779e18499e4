"""Arenas of the debug build: pause points, rules switched off, random delays.

    with shmlock.temporary(debug=True) as arena:
        debug.stop_at(arena, "rmdir:dying")    # the next task that comes by stops there
        ...                                    # let another process call rmdir
        debug.wait_for(arena, "rmdir:dying")   # it stands there now
        ...
        debug.go(arena, "rmdir:dying")

All of it is stored in the arena and so concerns every process that uses it.  Each function raises
ValueError for an arena that was not made with ``debug=True``, and for an unknown name.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from shmlock import _lib
from shmlock.arena import Arena

if TYPE_CHECKING:
    from shmlock._lib import CData

# ---- Pause points -------------------------------------------------------------------------------


def points() -> tuple[str, ...]:
    """Names of the pause points; csrc/points.def says where they are."""
    return _names(_lib.debug_build().lib.shmlock_point_name)


def stop_at(arena: Arena, point: str, tid: int = 0) -> None:
    """Make the next task that comes by stop there, until ``go()``.

    Args:
        arena: of the debug build.
        point: one of ``points()``.
        tid: only this thread; 0: whoever comes first.
    """
    _set_point(arena, point, arena._lib.SHMLOCK_POINT_STOP, tid)


def wait_for(arena: Arena, point: str, timeout: float | None = 30.0) -> int:
    """Wait until a task has stopped at an armed point.

    Returns:
        Its thread id.

    Raises:
        TimeoutError: nobody came by; a guard against hangs.
    """
    index = _index(arena, points(), point)
    rc = _lib.wait(
        lambda left: arena._lib.shmlock_point_wait(arena._pointer, index, left),
        _lib.nanoseconds(timeout),
    )
    return _checked(arena, rc, point)


def go(arena: Arena, point: str) -> None:
    """Let the task that stands there go on; nobody stops there any more."""
    _set_point(arena, point, arena._lib.SHMLOCK_POINT_GO, 0)


@contextlib.contextmanager
def stopping(arena: Arena, point: str, tid: int = 0) -> Iterator[None]:
    """``stop_at()`` for a block, at whose end everybody goes on whatever happened."""
    stop_at(arena, point, tid)
    try:
        yield
    finally:
        _set_point(arena, point, arena._lib.SHMLOCK_POINT_OFF, 0)


def _set_point(arena: Arena, point: str, action: int, tid: int) -> None:
    index = _index(arena, points(), point)
    _checked(arena, arena._lib.shmlock_point_set(arena._pointer, index, action, tid), point)


# ---- Rules, delays, the judge -------------------------------------------------------------------


def rules() -> tuple[str, ...]:
    """Names of the rules that can be switched off; csrc/rules.def says what they are."""
    return _names(_lib.debug_build().lib.shmlock_rule_name)


def break_rule(arena: Arena, rule: str) -> None:
    """Switch a rule off, to show that a test notices."""
    _set_rule(arena, rule, on=0)


def mend_rule(arena: Arena, rule: str) -> None:
    """Switch it on again."""
    _set_rule(arena, rule, on=1)


def _set_rule(arena: Arena, rule: str, *, on: int) -> None:
    index = _index(arena, rules(), rule)
    _checked(arena, arena._lib.shmlock_rule_set(arena._pointer, index, on), rule)


def perturb(arena: Arena, seed: int, ppm: int) -> None:
    """Delay tasks at pause points at random.

    Args:
        arena: of the debug build.
        seed: the same seed gives each thread id the same delays; 0: no more delays.
        ppm: chance of a delay at each point, in a million.
    """
    _need_debug(arena)
    _checked(arena, arena._lib.shmlock_perturb(arena._pointer, seed, ppm))


def violations(arena: Arena) -> int:
    """Times that two tasks were seen inside one name's critical section."""
    _need_debug(arena)
    return _checked(arena, arena._lib.shmlock_violations(arena._pointer))


# ---- Inside -------------------------------------------------------------------------------------


def _names(name_of: "Callable[[int], CData]") -> tuple[str, ...]:
    string = _lib.debug_build().ffi.string
    names: list[str] = []
    while name := string(name_of(len(names))).decode():
        names.append(name)
    return tuple(names)


def _index(arena: Arena, names: tuple[str, ...], name: str) -> int:
    _need_debug(arena)
    try:
        return names.index(name)
    except ValueError:
        raise ValueError(f"{name!r} is none of {', '.join(names)}") from None


def _need_debug(arena: Arena) -> None:
    if not arena.debug:
        raise ValueError("not an arena of the debug build: create with debug=True")


def _checked(arena: Arena, rc: int, what: str | None = None) -> int:
    if rc < 0:
        raise arena._failure(rc, what)
    return rc
