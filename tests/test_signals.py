"""Signals while waiting: Ctrl-C ends a wait at once and leaves nothing held.

Each test runs in a process of its own, whose main thread gets the signals.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

import procs
import shmlock
from waiting import until_waiting

WAITS: dict[str, Callable[[shmlock.Arena], Any]] = {
    "acquire": lambda arena: arena.lock("a").acquire(),
    "acquire with timeout": lambda arena: arena.lock("a").acquire(timeout=procs.DEADLINE),
    "with": lambda arena: arena.lock("a").__enter__(),
    "mkdir": lambda arena: arena.mkdir("a"),
    "create": lambda arena: arena.create("a"),
    "create with timeout": lambda arena: arena.create("a", timeout=procs.DEADLINE),
    "unlink": lambda arena: arena.unlink("there"),
    "rmdir": lambda arena: arena.rmdir("dir"),
    "makedirs": lambda arena: arena.makedirs("a/b"),
}


def interrupted(name: str, wait: str) -> str:
    with shmlock.attach(name) as arena:
        procs.say("go")
        try:
            WAITS[wait](arena)
        except KeyboardInterrupt:
            return "interrupted"
        return "not interrupted"


@pytest.mark.parametrize("wait", WAITS)
def test_ctrl_c_ends_a_wait(arena: shmlock.Arena, wait: str) -> None:
    """At once (the holder never lets go), with nothing done and nothing held."""
    arena.create("there")
    arena.mkdir("dir")
    locks = [arena.lock(path) for path in ("a", "there", "dir")]
    with procs.crew() as crew:
        for lock in locks:
            assert lock.acquire()
        child = crew.start(interrupted, arena.name, wait)
        assert child.hear() == "go"
        until_waiting(arena, child.pid)
        child.signal(signal.SIGINT)
        assert child.result() == "interrupted"
        for lock in locks:
            lock.release()
    assert sorted(arena.listdir()) == ["dir", "there"]
    for lock in locks:
        assert lock.acquire(blocking=False)
        assert not lock.recovered
        lock.release()
    assert arena.check(quiescent=True) == []


def handled(name: str, wait: str) -> tuple[str, int]:
    calls = 0

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal calls
        calls += 1
        procs.say(f"handled {calls}")

    signal.signal(signal.SIGUSR1, handler)
    with shmlock.attach(name) as arena:
        procs.say("go")
        WAITS[wait](arena)
    return "done", calls


@pytest.mark.parametrize(
    "wait", ["acquire", "acquire with timeout", "create with timeout", "create"]
)
def test_a_handler_that_returns_goes_on_waiting(arena: shmlock.Arena, wait: str) -> None:
    with procs.crew() as crew:
        with arena.lock("a"):
            child = crew.start(handled, arena.name, wait)
            assert child.hear() == "go"
            for n in (1, 2, 3):
                until_waiting(arena, child.pid)
                child.signal(signal.SIGUSR1)
                assert child.hear() == f"handled {n}"
        assert child.result() == ("done", 3)


def same_deadline(name: str, seconds: float) -> tuple[bool, int, float]:
    calls = 0

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal calls
        calls += 1

    signal.signal(signal.SIGALRM, handler)
    with shmlock.attach(name) as arena:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        start = time.monotonic()
        got = arena.lock("a").acquire(timeout=seconds)
        took = time.monotonic() - start
        signal.setitimer(signal.ITIMER_REAL, 0)
    return got, calls, took


def test_a_wait_resumes_to_the_same_deadline(arena: shmlock.Arena) -> None:
    """Signals that come more often than the deadline is long do not put it off for ever."""
    with arena.lock("a"):
        got, calls, took = procs.run(same_deadline, arena.name, 0.3)
    assert not got
    assert calls > 1
    assert took >= 0.3, "not earlier than asked for"


def nested(name: str) -> tuple[bool, list[bool]]:
    inner: list[bool] = []
    with shmlock.attach(name) as arena:

        def handler(number: int, frame: FrameType | None) -> None:
            inner.append(arena.lock("b").acquire(timeout=0.01))
            procs.say("handled")

        signal.signal(signal.SIGUSR1, handler)
        procs.say("go")
        with arena.lock("a") as lock:
            return lock.locked(), inner


def test_a_handler_may_wait_itself(arena: shmlock.Arena) -> None:
    """Its own short timeout is not the interrupted call's."""
    with procs.crew() as crew:
        a, b = arena.lock("a"), arena.lock("b")
        assert a.acquire()
        assert b.acquire()
        child = crew.start(nested, arena.name)
        assert child.hear() == "go"
        until_waiting(arena, child.pid)
        child.signal(signal.SIGUSR1)
        assert child.hear() == "handled"
        until_waiting(arena, child.pid)
        a.release()
        assert child.result() == (True, [False])
        b.release()


class Stop(Exception):
    """Raised by the storm's handler."""


def storm(name: str, rounds: int, style: str) -> tuple[int, int]:
    """Acquire and release under a timer whose handler raises; count leaks."""
    raised = leaked = done = 0
    armed = False

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal armed, raised
        if armed:
            armed = False  # so that it raises inside the `try` and nowhere else
            raised += 1
            raise Stop

    with shmlock.attach(name) as arena:
        lock, probe = arena.lock("a"), arena.lock("a")
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
        while done < rounds or raised < 20:
            try:
                armed = True
                for _ in range(500):
                    done += 1
                    if style == "with":
                        with lock:
                            pass
                    else:
                        arena.create("b", exist_ok=True)
                        arena.unlink("b")
                armed = False
            except Stop:
                pass
            owner = probe.owner()
            if owner is not None and owner.pid == os.getpid():
                leaked += 1
                lock.release()
        signal.setitimer(signal.ITIMER_REAL, 0)
    return raised, leaked


@pytest.mark.parametrize("style", ["with", "create"])
@pytest.mark.parametrize("contended", [False, True])
def test_a_storm_of_signals_leaks_no_lock(
    arena: shmlock.Arena, style: str, contended: bool
) -> None:
    """Whatever instruction they hit."""
    done = threading.Event()

    def contend() -> None:
        lock = arena.lock("a" if style == "with" else "b")
        while not done.is_set():
            with lock:
                time.sleep(0.0002)  # so that the storm's process has to wait, and is hit there
            time.sleep(0.0002)

    thread = threading.Thread(target=contend)
    if contended:
        thread.start()
    try:
        raised, leaked = procs.run(storm, arena.name, 2000 if contended else 100_000, style)
    finally:
        done.set()
        if contended:
            thread.join()
    assert raised >= 20
    assert leaked == 0
    assert arena.stats().locked == 0
    assert arena.check(quiescent=True) == []


def kill_self(name: str) -> None:
    with shmlock.attach(name) as arena, arena.lock("a"):
        os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_lets_go(arena: shmlock.Arena) -> None:
    """The default action kills: as any death, the next owner is told."""
    with procs.crew() as crew:
        assert crew.start(kill_self, arena.name).wait() == -signal.SIGTERM
    lock = arena.lock("a")
    with lock:
        assert lock.recovered
