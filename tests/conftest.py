"""Arenas for tests, nothing left behind in /dev/shm, and hangs that say who waits for what."""

import faulthandler
import itertools
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import procs

SHM = Path("/dev/shm")
SMALL = {"dentries": 4096, "tasks": 64}  # reserving memory takes time: no larger than needed
GRACE = 10.0  # seconds from the failure of a hanging test to the end of its process

_numbers = itertools.count(1)


# ---- Arenas -------------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def _clean_shm(testrun_uid: str, worker_id: str) -> Iterator[None]:
    """Nothing of this process and its children stays in /dev/shm."""
    procs.arena_prefix = f"t-{testrun_uid}-{worker_id}-"
    before = set(os.listdir(SHM))
    yield
    pids = {str(pid) for pid in (os.getpid(), *procs.started_pids)}
    ours = [
        name
        for name in sorted(set(os.listdir(SHM)) - before)
        if name.startswith(f"shmlock.{procs.arena_prefix}")
        or (name.startswith("shmlock-new.") and name.split(".")[1] in pids)
    ]
    _remove(ours)
    assert not ours, f"left in {SHM}"


@pytest.fixture
def arena_name(_clean_shm: None) -> Iterator[str]:
    """A name that nobody else has. The test removes its arena, and others that start with it."""
    name = f"{procs.arena_prefix}{next(_numbers)}"
    yield name
    left = [
        entry
        for entry in sorted(os.listdir(SHM))
        if entry == f"shmlock.{name}" or entry.startswith(f"shmlock.{name}-")
    ]
    _remove(left)
    assert not left, f"the test left in {SHM}"


@pytest.fixture
def arena(arena_name: str) -> Iterator[Any]:
    """A small arena, sound at the end of the test."""
    with _arena(arena_name, debug=False) as made:
        yield made


@pytest.fixture
def debug_arena(arena_name: str) -> Iterator[Any]:
    """A small arena of the debug build, sound at the end of the test."""
    with _arena(arena_name, debug=True) as made:
        yield made


@contextmanager
def _arena(name: str, *, debug: bool) -> Iterator[Any]:
    import shmlock

    made = shmlock.create(name, debug=debug, **SMALL)
    try:
        yield made
        broken = _check(made)
    finally:
        made.close()
        with suppress(FileNotFoundError):  # the test may have done it
            shmlock.unlink(name, force=True)
    assert broken == [], "broken invariants after the test"


def _check(arena: Any) -> list[Any]:
    import shmlock

    if not arena.closed:
        found: list[Any] = arena.check()
        return found
    try:
        again = shmlock.attach(arena.name)
    except FileNotFoundError:
        return []  # closed and unlinked by the test: nothing is left to check
    with again:
        found = again.check()
    return found


def _remove(names: list[str]) -> None:
    for name in names:
        (SHM / name).unlink(missing_ok=True)


# ---- Hangs --------------------------------------------------------------------------------------
#
# pytest-timeout decides when (`timeout` in pyproject.toml, `@pytest.mark.timeout`), these hooks
# decide how.  A thread collects who waits for what; then a signal ends the wait of the main
# thread and its handler fails the test.  A test that does not end even so has lost its process:
# the text goes to stderr with the stacks of all threads.  Should not even the watching thread get
# to run (somebody loops and keeps the GIL), faulthandler's thread, which needs no GIL, does that.

_real_stderr = os.dup(2)  # while tests run, 2 is pytest's, and would be lost with the process


def pytest_configure(config: pytest.Config) -> None:
    os.dup2(2, _real_stderr)  # not captured here, unlike at the import of this file


class _Watchdog:
    """Guards one test, or its teardown."""

    def __init__(self, test: str, seconds: float) -> None:
        self._test = test
        self._seconds = seconds
        self._text = ""
        self._done = threading.Event()
        self._old_handler = signal.signal(signal.SIGALRM, self._fail)
        faulthandler.dump_traceback_later(seconds + 3 * GRACE, exit=True, file=_real_stderr)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        self._done.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, self._old_handler)

    def _watch(self) -> None:
        if self._done.wait(self._seconds):
            return
        waits = procs.who_waits_for_what()
        self._text = f"{self._test} hangs: not done after {self._seconds:g} s\n{waits}"
        # A real signal to just that thread: a wait in C has to get its EINTR.
        signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)
        if self._done.wait(GRACE):
            return
        _remove([f"shmlock.{name}" for name in procs.my_arenas()])
        os.write(_real_stderr, f"\n{self._text}\nIt cannot be interrupted. Stacks:\n".encode())
        faulthandler.dump_traceback(file=_real_stderr, all_threads=True)
        os._exit(1)

    def _fail(self, number: int, frame: FrameType | None) -> None:
        if self._text and not self._done.is_set():
            pytest.fail(self._text)


_watchdog_key = pytest.StashKey[_Watchdog]()
_seconds_key = pytest.StashKey[float]()


def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool | None:
    if threading.current_thread() is not threading.main_thread():
        return None  # no signal handlers here: leave it to pytest-timeout
    item.stash[_seconds_key] = settings.timeout
    item.stash[_watchdog_key] = _Watchdog(item.nodeid, settings.timeout)
    return True


def pytest_timeout_cancel_timer(item: pytest.Item) -> bool | None:
    watchdog = item.stash.get(_watchdog_key, None)
    if watchdog is None:
        return None
    del item.stash[_watchdog_key]
    watchdog.cancel()
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    # pytest-timeout drops its guard once a test has failed; the teardown may still hang.
    seconds = item.stash.get(_seconds_key, None)
    if seconds is None or _watchdog_key in item.stash:
        return (yield)
    watchdog = _Watchdog(f"teardown of {item.nodeid}", seconds)
    try:
        return (yield)
    finally:
        watchdog.cancel()
