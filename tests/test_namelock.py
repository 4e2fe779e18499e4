"""NameLock: a person's lock on a name, with threading.Lock's manners."""

import copy
import errno
import fcntl
import gc
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import procs
import shmlock
from shmlock import debug
from waiting import join, until_waiting


@contextmanager
def held_elsewhere(arena: shmlock.Arena, path: Any) -> Iterator[threading.Thread]:
    """Another thread, so another task, holds the lock."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with arena.lock(path):
            held.set()
            done.wait(procs.DEADLINE)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(procs.DEADLINE)
        yield thread
    finally:
        done.set()
        thread.join()


def in_thread(call: Callable[[], Any]) -> Any:
    """What a call in another thread comes to: its result, or its exception."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(call())
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    join(thread)
    return result[0]


# ---- As threading.Lock --------------------------------------------------------------------------


def test_lock_and_unlock(arena: shmlock.Arena) -> None:
    lock = arena.lock("a")
    assert isinstance(lock, shmlock.NameLock)
    assert not lock.locked()
    assert lock.acquire() is True
    assert lock.locked()
    assert lock.release() is None  # type: ignore[func-returns-value]
    assert not lock.locked()
    with lock as value:
        assert value is lock
        assert lock.locked()
    assert not lock.locked()
    assert not arena.exists("a"), "locking a name does not make it"


def test_released_on_an_exception(arena: shmlock.Arena) -> None:
    lock = arena.lock("a")
    with pytest.raises(KeyError), lock:
        raise KeyError
    assert not lock.locked()


@pytest.mark.parametrize(
    "args",
    [
        (False, 1),
        (False, 0),
        (False, -2),
        (True, -2),
        (True, -0.5),
        (True, float("nan")),
        (True, 1e300),
        (True, threading.TIMEOUT_MAX * 2),
        (True, "1"),
        (True, None),
        (1, 2, 3),
    ],
)
@pytest.mark.parametrize("taken", [False, True])
def test_bad_arguments_as_threading_lock(
    arena: shmlock.Arena, args: tuple[Any, ...], taken: bool
) -> None:
    """The same exception, whether or not there is anything to wait for."""

    def outcome(lock: Any) -> Any:
        try:
            return lock.acquire(*args)
        except Exception as error:
            return type(error)

    theirs = threading.Lock()
    lock = arena.lock("a")
    if not taken:
        assert outcome(lock) == outcome(theirs)
        return
    theirs.acquire()
    with held_elsewhere(arena, "a"):
        assert outcome(lock) == outcome(theirs)


def test_the_words_of_threading_lock(arena: shmlock.Arena) -> None:
    lock = arena.lock("a")
    with pytest.raises(ValueError, match="can't specify a timeout for a non-blocking call"):
        lock.acquire(False, 1)
    with pytest.raises(ValueError, match="timeout value must be a non-negative number"):
        lock.acquire(True, -2)
    with pytest.raises(OverflowError, match="timeout value is too large"):
        lock.acquire(True, 1e300)


def test_keyword_arguments(arena: shmlock.Arena) -> None:
    with held_elsewhere(arena, "a"):
        lock = arena.lock("a")
        assert lock.acquire(blocking=False) is False
        assert lock.acquire(blocking=True, timeout=0) is False
        assert lock.acquire(timeout=0.001) is False
    assert lock.acquire(blocking=False, timeout=-1) is True
    lock.release()


def test_not_reentrant(arena: shmlock.Arena) -> None:
    """Waiting for one's own lock is a DeadlockError; not waiting is just False."""
    lock = arena.lock("a")
    with lock:
        for again in (lock, arena.lock("a"), arena.lock(b"/./a")):
            assert again.acquire(blocking=False) is False
            assert again.acquire(timeout=0) is False
            for timeout in (-1, 5):
                with pytest.raises(shmlock.DeadlockError) as caught:
                    again.acquire(timeout=timeout)
                assert caught.value.errno == errno.EDEADLK
        assert lock.locked(), "what was held before stays held"
    assert not lock.locked()


def test_release_of_an_unlocked_lock(arena: shmlock.Arena) -> None:
    lock = arena.lock("a")
    with pytest.raises(RuntimeError, match="release unlocked lock"):
        lock.release()
    with lock:
        pass
    with pytest.raises(RuntimeError, match="release unlocked lock"):
        lock.release()


def test_release_by_another_object(arena: shmlock.Arena) -> None:
    """It is the object that acquired which releases, even on the same thread."""
    with arena.lock("a"):
        with pytest.raises(RuntimeError, match=f"held by pid {os.getpid()}"):
            arena.lock("a").release()
        assert arena.lock("a").locked()


def test_release_by_another_thread(arena: shmlock.Arena) -> None:
    """RuntimeError that names the holder; the lock stays with it."""
    lock = arena.lock("a")
    with lock:
        error = in_thread(lock.release)
        assert isinstance(error, RuntimeError)
        assert f"pid {os.getpid()}, tid {threading.get_native_id()}" in str(error)
        assert in_thread(lambda: lock.acquire(blocking=False)) is False
        assert lock.locked()


def test_one_object_for_many_threads(arena: shmlock.Arena) -> None:
    """They exclude each other."""
    lock = arena.lock("a")
    inside = 0
    most = 0
    rounds = 200

    def work() -> None:
        nonlocal inside, most
        for _ in range(rounds):
            with lock:
                inside += 1
                most = max(most, inside)
                time.sleep(0)  # let another thread in, if it can
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert not lock.locked()


# ---- The default timeout ------------------------------------------------------------------------


def test_the_arenas_timeout(arena: shmlock.Arena) -> None:
    """acquire() says False, `with` raises, an argument wins, calls raise."""
    arena.timeout = 0.01
    with held_elsewhere(arena, "a"):
        lock = arena.lock("a")
        assert lock.acquire() is False
        assert lock.acquire(timeout=0.02) is False
        with pytest.raises(TimeoutError) as caught, lock:
            pytest.fail("entered")
        assert caught.value.filename == "a"
        with pytest.raises(TimeoutError):
            arena.create("a")
        arena.timeout = None
        with pytest.raises(TimeoutError):
            arena.create("a", timeout=0.01)


# ---- Names --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "//", ".", "..", "d/.", "d/..", "/."])
def test_names_that_cannot_be_locked(arena: shmlock.Arena, path: str) -> None:
    arena.mkdir("d")
    with pytest.raises(OSError) as caught:
        arena.lock(path).acquire()
    assert caught.value.errno == errno.EBUSY
    assert caught.value.filename == path


@pytest.mark.parametrize(
    ("path", "kind"),
    [("", FileNotFoundError), ("no/a", FileNotFoundError), ("f/a", NotADirectoryError)],
)
def test_paths_that_lead_nowhere(arena: shmlock.Arena, path: str, kind: type[OSError]) -> None:
    """Known when acquiring, not before; nobody holds such a lock."""
    arena.create("f")
    lock = arena.lock(path)
    for acquire in (lock.acquire, lambda: lock.acquire(blocking=False), lock.__enter__):
        with pytest.raises(kind) as caught:
            acquire()
        assert caught.value.filename == path
    assert not lock.locked()
    assert lock.owner() is None


def test_a_name_too_long(arena: shmlock.Arena) -> None:
    with arena.lock("n" * 255):
        pass
    with pytest.raises(OSError) as caught:
        arena.lock("n" * 256).acquire()
    assert caught.value.errno == errno.ENAMETOOLONG


def test_parents(arena: shmlock.Arena) -> None:
    """Made when acquiring."""
    lock = arena.lock("a/b/c", parents=True)
    assert not arena.exists("a")
    with lock:
        assert arena.is_dir("a/b")
        assert not arena.exists("a/b/c")
    with arena.lock("top", parents=True):
        pass
    arena.create("f")
    with pytest.raises(NotADirectoryError):
        arena.lock("f/x/y", parents=True).acquire()
    arena.rmdir("a/b")
    with lock:
        assert arena.is_dir("a/b")


def lock_with_parents(barrier: Any, name: str, rounds: int) -> int:
    done = 0
    with shmlock.attach(name) as arena:
        for n in range(rounds):
            barrier.wait()
            with arena.lock(f"{n}/a/b/c", parents=True):
                done += 1
    return done


def test_parents_made_by_many_at_once(arena: shmlock.Arena) -> None:
    barrier = procs.barrier(3)
    assert procs.run_all(lock_with_parents, [(barrier, arena.name, 30)] * 3) == [30] * 3


def test_the_name_only(arena: shmlock.Arena) -> None:
    """Other names pass, and a lock on a directory does not cover what is in it."""
    arena.mkdir("d")
    with held_elsewhere(arena, "d"):
        arena.create("d/x")
        with arena.lock("d/x"):
            pass
        arena.unlink("d/x")
        arena.create("e")
        assert arena.listdir("d") == []
        assert arena.stat("d")
        with pytest.raises(TimeoutError):
            arena.rmdir("d", timeout=0)


def test_one_name_however_it_is_written(arena: shmlock.Arena) -> None:
    arena.mkdir("d")
    with held_elsewhere(arena, "d/x"):
        for path in ("/d/x", b"d/x", "d//x", "./d/./x", "d/../d/x"):
            assert arena.lock(path).locked()
            assert arena.lock(path).acquire(blocking=False) is False
    assert not arena.lock("d/x").locked()


def test_many_names_at_once(arena: shmlock.Arena) -> None:
    """At least 1024 by one task, then ENOLCK that says how many; in any order of release."""
    locks = []
    with pytest.raises(OSError, match=r"can hold \d+ names") as caught:
        while len(locks) < 2000:
            lock = arena.lock(f"n{len(locks)}")
            assert lock.acquire()
            locks.append(lock)
    assert caught.value.errno == errno.ENOLCK
    assert len(locks) >= 1024
    for lock in locks[::2] + locks[1::2][::-1]:
        lock.release()
    assert not any(lock.locked() for lock in locks)
    assert arena.check(quiescent=True) == []


def test_the_holder_may_change_the_name(arena: shmlock.Arena) -> None:
    """The lock stays on the name."""
    lock = arena.lock("a")
    with lock:
        arena.create("a")
        arena.unlink("a")
        arena.mkdir("a")
        arena.rmdir("a")
        assert lock.locked()
        assert in_thread(lambda: arena.lock("a").acquire(blocking=False)) is False


def test_negative_names_that_are_locked_are_not_reclaimed(arena_name: str) -> None:
    """A full arena gives up names that nothing has, but no locked one."""
    with shmlock.create(arena_name, dentries=64, tasks=2) as arena:
        with arena.lock("mine"):
            for n in range(500):
                arena.create(f"f{n}")
                arena.unlink(f"f{n}")
            assert arena.lock("mine").locked()
            assert in_thread(lambda: arena.lock("mine").acquire(blocking=False)) is False
        assert arena.check(quiescent=False) == []
    shmlock.unlink(arena_name)


# ---- Waiting ------------------------------------------------------------------------------------


def test_a_waiter_gets_the_lock(arena: shmlock.Arena) -> None:
    with held_elsewhere(arena, "a") as holder:
        lock = arena.lock("a")
        waiter = threading.Timer(0, lock.acquire)
        waiter.start()
    waiter.join()
    assert not holder.is_alive()
    # The waiter's thread ended holding it: as if it had died.
    assert lock.acquire(timeout=procs.DEADLINE)
    assert lock.recovered
    lock.release()


def remove(name: str, path: str) -> None:
    with shmlock.attach(name) as arena:
        arena.rmdir(path)


def lock(name: str, path: str) -> None:
    with shmlock.attach(name) as arena:
        arena.lock(path).acquire()


def test_parent_removed_while_waiting(debug_arena: shmlock.Arena) -> None:
    """FileNotFoundError."""
    arena = debug_arena
    arena.mkdir("d")
    with procs.crew() as crew:
        with debug.stopping(arena, "rmdir:dying"):
            remover = crew.start(remove, arena.name, "d")
            debug.wait_for(arena, "rmdir:dying")
            assert arena.lock("d/x").acquire(blocking=False) is False, "a removal may still fail"
            with pytest.raises(TimeoutError):
                arena.create("d/x", timeout=0)
            waiter = crew.start(lock, arena.name, "d/x")
            assert until_waiting(arena, waiter.pid).waits.kind == "S_DYING"  # type: ignore[union-attr]
        remover.result()
        with pytest.raises(FileNotFoundError) as caught:
            waiter.result()
    assert caught.value.filename == "d/x"


def test_a_circle_is_found(arena: shmlock.Arena) -> None:
    """DeadlockError in exactly one of two, which names pids, tids and paths; the other goes on."""
    first, second = arena.lock("first"), arena.lock("second")
    has_second = threading.Event()
    outcomes: list[Any] = []

    def other() -> None:
        with second:
            has_second.set()
            outcomes.append(attempt(first))

    def attempt(lock: shmlock.NameLock) -> Any:
        try:
            with lock:
                return "got it"
        except shmlock.DeadlockError as error:
            return error

    thread = threading.Thread(target=other)
    with first:
        thread.start()
        assert has_second.wait(procs.DEADLINE)
        mine = attempt(second)
    thread.join()
    errors = [o for o in (mine, *outcomes) if isinstance(o, shmlock.DeadlockError)]
    assert len(errors) == 1
    assert "got it" in (mine, *outcomes)
    text = errors[0].strerror
    for part in ("first", "second", f"{os.getpid()}", f"{threading.get_native_id()}"):
        assert part in text
    assert not first.locked()
    assert not second.locked()


def first_lock_of_a_thread(name: str) -> bool:
    arena = shmlock.attach(name)
    with open(f"/dev/shm/shmlock.{name}", "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as unlink() does
        thread = threading.Thread(target=arena.lock("a").acquire)
        thread.start()
        # This thread runs on while that one waits for a task slot, else it could never let it in.
        waiter = f":{os.fstat(file.fileno()).st_ino} "
        while not any(
            "->" in line and waiter in line for line in Path("/proc/locks").read_text().splitlines()
        ):
            time.sleep(0.001)
        fcntl.flock(file, fcntl.LOCK_UN)
    join(thread)
    arena.close()
    return True


def test_a_thread_that_waits_for_a_slot_does_not_hold_up_the_others(arena: shmlock.Arena) -> None:
    """Taking a slot may wait for a file lock; the interpreter is not held meanwhile."""
    assert procs.run(first_lock_of_a_thread, arena.name)


# ---- Who holds it -------------------------------------------------------------------------------


def test_owner(arena: shmlock.Arena) -> None:
    lock = arena.lock("a")
    assert lock.owner() is None
    before = time.time()
    with lock:
        owner = lock.owner()
        assert owner is not None
        pid, tid, since = owner
        assert pid == owner.pid == os.getpid()
        assert tid == owner.tid == threading.get_native_id()
        assert since is not None
        assert before - 1 < since < time.time() + 1
    with held_elsewhere(arena, "a") as thread:
        owner = lock.owner()
        assert owner is not None
        assert owner.tid == thread.native_id
    assert lock.owner() is None


def test_repr(arena: shmlock.Arena) -> None:
    lock = arena.lock("a/b", parents=True)
    assert "'a/b'" in repr(lock)
    assert arena.name in repr(lock)
    assert "unlocked" in repr(lock)
    with lock:
        assert f"locked by pid {os.getpid()}" in repr(lock)


def test_pickles_not_held(arena: shmlock.Arena) -> None:
    """As (arena, path)."""
    lock = arena.lock("a/b", parents=True)
    with lock:
        other = pickle.loads(pickle.dumps(lock))
        assert other.path == "a/b"
        assert other.locked()
        assert other.acquire(blocking=False) is False
        with pytest.raises(RuntimeError):
            other.release()
        assert not copy.copy(lock).acquire(blocking=False)
        assert lock.locked()
    arena.rmdir("a")
    with other:
        assert arena.is_dir("a")
    other.arena.close()


def test_a_dropped_lock_stays_held(arena: shmlock.Arena) -> None:
    """As threading.Lock's acquire() and then del: it is the task that holds it."""
    assert arena.lock("a").acquire()
    gc.collect()
    assert arena.lock("a").locked()
    shmlock_leave_warning = pytest.warns(ResourceWarning, match="1 lock")
    with shmlock_leave_warning:
        arena.close()


def test_a_lock_keeps_its_arena(arena: shmlock.Arena) -> None:
    lock = shmlock.attach(arena.name).lock("a")
    gc.collect()
    with lock:
        assert arena.lock("a").locked()
    assert lock.arena.name == arena.name
    lock.arena.close()


def test_needs_dentry_locking(arena: shmlock.Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """OSError EOPNOTSUPP naming the option."""
    monkeypatch.setattr(arena, "_locking", "inode")
    with pytest.raises(OSError, match=r"locking='dentry'.*'inode'") as caught:
        arena.lock("a")
    assert caught.value.errno == errno.EOPNOTSUPP
