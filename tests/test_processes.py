"""Many processes, threads and ways to start them; owners that die."""

import concurrent.futures
import logging
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest

import procs
import shmlock
from shmlock import inspect
from waiting import join, until_waiting

STARTS = ("spawn", "fork", "forkserver")


# ---- Exclusion ----------------------------------------------------------------------------------


def count(barrier: Any, name: str, counter: str, rounds: int) -> int:
    """Read, wait, write: loses counts unless only one does it at a time."""
    barrier.wait()
    with shmlock.attach(name) as arena:
        lock = arena.lock("counter")
        for _ in range(rounds):
            with lock, open(counter, "r+") as file:
                value = int(file.read())
                file.seek(0)
                file.write(str(value + 1))
    return rounds


def test_processes_exclude_each_other(arena: shmlock.Arena, tmp_path: Any) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    barrier = procs.barrier(4)
    procs.run_all(count, [(barrier, arena.name, str(counter), 300)] * 4)
    assert int(counter.read_text()) == 1200
    assert arena.check(quiescent=False) == []


def make_one(barrier: Any, name: str, rounds: int) -> int:
    made = 0
    with shmlock.attach(name) as arena:
        for n in range(rounds):
            barrier.wait()
            try:
                arena.create(f"{n}")
                made += 1
            except FileExistsError:
                pass
    return made


def test_a_name_is_made_once(arena: shmlock.Arena) -> None:
    """However many try at the same moment."""
    barrier = procs.barrier(3)
    made = procs.run_all(make_one, [(barrier, arena.name, 100)] * 3)
    assert sum(made) == 100
    assert sorted(arena.listdir(), key=int) == [str(n) for n in range(100)]


# ---- Handing an arena over ----------------------------------------------------------------------


def lock_it(arena: shmlock.Arena, lock: shmlock.NameLock, path: str) -> tuple[bool, bool, int]:
    """In another process: the arena and the lock work, and the lock is not held."""
    arena.create(path)
    taken = lock.acquire(blocking=False)
    with arena.lock("mine") as mine:
        return taken, mine.locked(), os.getpid()


@pytest.mark.parametrize("start", STARTS)
def test_arena_and_lock_as_arguments_of_a_process(arena: shmlock.Arena, start: str) -> None:
    lock = arena.lock("a")
    with lock:
        taken, mine, pid = procs.run(lock_it, arena, lock, "made", start=start)
        assert lock.locked()
    assert (taken, mine) == (False, True)
    assert pid != os.getpid()
    assert arena.exists("made")


@pytest.mark.parametrize("start", STARTS)
def test_arena_as_argument_of_a_pool(arena: shmlock.Arena, start: str) -> None:
    context = multiprocessing.get_context(start)
    lock = arena.lock("a")
    with (
        lock,
        concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool,
    ):
        results = [pool.submit(lock_it, arena, lock, f"f{n}") for n in range(6)]
        assert {result.result()[:2] for result in results} == {(False, True)}
    assert len(arena.listdir()) == 6


def test_arena_as_argument_of_multiprocessing_pool(arena: shmlock.Arena) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(lock_it, (arena, arena.lock("a"), "f"))[:2] == (True, True)
        pool.close()
        pool.join()


def test_the_resource_tracker_knows_nothing(arena_name: str) -> None:
    """A process that ends, in whatever way, takes no arena with it, and warns of nothing."""
    code = (
        "import sys, multiprocessing.resource_tracker as t, shmlock;"
        "a = shmlock.create(sys.argv[1], dentries=256, tasks=8); a.create('f');"
        "print(t._resource_tracker._fd)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, arena_name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "None\n", "")
    with shmlock.attach(arena_name) as arena:
        assert arena.exists("f")
        assert arena.stats().live_tasks == 1
        assert arena.stats().counters["recoveries"] == 0, "it left in good order"
    shmlock.unlink(arena_name)


# ---- fork ---------------------------------------------------------------------------------------


def use_the_parents(arena: shmlock.Arena, lock: shmlock.NameLock) -> dict[str, Any]:
    seen: dict[str, Any] = {"taken": lock.acquire(blocking=False)}
    try:
        lock.release()
    except RuntimeError as error:
        seen["release"] = str(error)
    seen["tasks"] = arena.stats().live_tasks
    arena.create("by the child")
    with arena.lock("other"):
        seen["owner"] = arena.lock("other").owner().pid == os.getpid()
    seen["tasks after"] = arena.stats().live_tasks
    return seen


def test_a_forked_child_is_a_task_of_its_own(arena: shmlock.Arena) -> None:
    """It holds nothing, and cannot release its parent's locks."""
    lock = arena.lock("a")
    with lock:
        seen = procs.run(use_the_parents, arena, lock, start="fork")
        assert lock.locked()
        owner = lock.owner()
        assert owner is not None
        assert owner.pid == os.getpid()
    assert seen["taken"] is False
    assert f"held by pid {os.getpid()}" in seen["release"]
    assert seen["owner"]
    assert seen["tasks after"] == 2
    assert arena.exists("by the child")
    assert not lock.locked()


def fork_again(arena: shmlock.Arena, depth: int) -> int:
    arena.mkdir(f"{depth}")
    if depth == 0:
        return 1
    with arena.lock("x"):
        pid = os.fork()
        if pid == 0:
            os._exit(0 if not arena.lock("x").acquire(blocking=False) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return 1 + int(procs.run(fork_again, arena, depth - 1, start="fork"))


def test_forks_of_forks(arena: shmlock.Arena) -> None:
    assert procs.run(fork_again, arena, 2, start="fork") == 3
    assert sorted(arena.listdir()) == ["0", "1", "2"]


def close_in_child(arena: shmlock.Arena) -> bool:
    arena.close()
    return arena.closed


def test_close_in_a_forked_child(arena: shmlock.Arena) -> None:
    """Is the child's affair."""
    with arena.lock("a"):
        assert procs.run(close_in_child, arena, start="fork")
        assert arena.lock("a").locked()


def test_temporary_is_left_alone_by_a_forked_child() -> None:
    with shmlock.temporary(dentries=256, tasks=8) as arena:
        assert procs.run(leave_temporary, arena, start="fork") is None
        arena.create("a")
        assert arena.name in shmlock.arenas()


def leave_temporary(arena: shmlock.Arena) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            arena.lock("x").acquire()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


# ---- Threads ------------------------------------------------------------------------------------


def test_each_thread_is_a_task(arena: shmlock.Arena) -> None:
    """And gives its slot back when it ends."""
    barrier = threading.Barrier(5, timeout=procs.DEADLINE)

    def use(n: int) -> None:
        arena.create(f"{n}")
        barrier.wait()
        barrier.wait()

    threads = [threading.Thread(target=use, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    barrier.wait()
    assert arena.stats().live_tasks == 5
    barrier.wait()
    for thread in threads:
        join(thread)
    assert arena.stats().live_tasks == 1
    assert arena.stats().counters["recoveries"] == 0


def test_a_thread_that_ends_with_a_lock(arena: shmlock.Arena) -> None:
    """Is as good as dead: the next one is told."""
    thread = threading.Thread(target=arena.lock("a").acquire)
    thread.start()
    join(thread)
    lock = arena.lock("a")
    assert lock.acquire(timeout=procs.DEADLINE)
    assert lock.recovered
    lock.release()
    with lock:
        assert not lock.recovered


# ---- Death --------------------------------------------------------------------------------------


def hold(name: str, path: str) -> None:
    with shmlock.attach(name) as arena, arena.lock(path):
        arena.create(path)
        procs.say("held")
        procs.listen()


def test_a_dead_holders_lock_goes_to_the_waiter(
    arena: shmlock.Arena, caplog: pytest.LogCaptureFixture
) -> None:
    """At once, with `recovered` True, and logged; what it had made stays."""
    with procs.crew() as crew, caplog.at_level(logging.WARNING, "shmlock"):
        child = crew.start(hold, arena.name, "a")
        assert child.hear() == "held"
        lock = arena.lock("a")
        assert lock.acquire(blocking=False) is False
        killer = threading.Thread(target=lambda: (until_waiting(arena, os.getpid()), child.kill()))
        killer.start()
        with lock:
            assert lock.recovered
        killer.join()
        with lock:
            assert not lock.recovered
    assert arena.exists("a")
    assert [r for r in caplog.records if "died" in r.getMessage()]
    assert arena.stats().counters["recoveries"] >= 1
    assert arena.check(quiescent=True) == []


def test_the_mark_stays_until_somebody_has_taken_the_lock(
    arena: shmlock.Arena, caplog: pytest.LogCaptureFixture
) -> None:
    """Even if recovery was done by others long before."""
    with procs.crew() as crew, caplog.at_level(logging.WARNING, "shmlock"):
        child = crew.start(hold, arena.name, "a")
        assert child.hear() == "held"
        child.kill()
    # A task that takes the dead one's slot, or looks for one, cleans up after it.
    for _ in range(3):
        thread = threading.Thread(target=arena.lock("other").acquire, args=(False,))
        thread.start()
        join(thread)
    lock = arena.lock("a")
    with lock:
        assert lock.recovered
    with lock:
        assert not lock.recovered
    assert (
        len([r for r in caplog.records if "died" in r.getMessage() and "'a'" in r.getMessage()])
        == 1
    )


def wait_for_lock(name: str, path: str) -> bool:
    with shmlock.attach(name) as arena, arena.lock(path) as lock:
        return lock.locked()


def test_a_killed_waiter_leaves_nothing(arena: shmlock.Arena) -> None:
    with procs.crew() as crew:
        with arena.lock("a"):
            waiters = [crew.start(wait_for_lock, arena.name, "a") for _ in range(2)]
            for waiter in waiters:
                until_waiting(arena, waiter.pid)
            waiters[0].kill()
        assert waiters[1].result() is True
    assert not arena.lock("a").locked()


def stopped_holder(name: str) -> None:
    with shmlock.attach(name) as arena, arena.lock("a"):
        procs.say("held")
        os.kill(os.getpid(), signal.SIGSTOP)


def test_a_stopped_holder_is_alive(arena: shmlock.Arena) -> None:
    """Its lock is not taken away."""
    with procs.crew() as crew:
        child = crew.start(stopped_holder, arena.name)
        assert child.hear() == "held"
        assert arena.lock("a").acquire(timeout=0.3) is False
        child.signal(signal.SIGCONT)
        child.result()
        lock = arena.lock("a")
        with lock:
            assert not lock.recovered


# ---- Circles, and who waits for what ------------------------------------------------------------


def take_two(name: str, first: str, second: str) -> str:
    with shmlock.attach(name) as arena, arena.lock(first):
        procs.say("has one")
        procs.listen()
        try:
            with arena.lock(second):
                return "got both"
        except shmlock.DeadlockError as error:
            return pickle.loads(pickle.dumps(error)).strerror


def test_a_circle_of_three_processes(arena: shmlock.Arena) -> None:
    """DeadlockError in exactly one; the message names all pids and paths."""
    names = ["a", "b", "c"]
    with procs.crew() as crew:
        children = [
            crew.start(take_two, arena.name, names[n], names[(n + 1) % 3]) for n in range(3)
        ]
        for child in children:
            assert child.hear() == "has one"
        for child in children:
            child.tell()
        results = crew.results()
    texts = [text for text in results if text != "got both"]
    assert len(texts) == 1
    for part in (*names, *(str(child.pid) for child in children)):
        assert part in texts[0]


def test_snapshot_and_describe(arena: shmlock.Arena) -> None:
    """Who holds and who waits for what, with pids, paths and commands."""
    with procs.crew() as crew:
        with arena.lock("held"):
            child = crew.start(wait_for_lock, arena.name, "held")
            task = until_waiting(arena, child.pid)
            assert task.waits is not None
            assert task.waits.path.strip("/") == "held"
            assert "python" in task.command
            seen = inspect.snapshot(arena)
            (held,) = [h for h in seen.holds if h.path.strip("/") == "held"]
            assert held.kind == "person"
            assert held.task == task.waits.holder
            assert held.waiters
            (me,) = [t for t in seen.tasks if t.task == held.task]
            assert (me.pid, me.persons, me.state) == (os.getpid(), 1, "live")
            assert seen.circles == ()
            with shmlock.attach(arena.name, readonly=True) as reader:
                (again,) = inspect.snapshot(reader).holds
                assert (again.path, again.task) == (held.path, held.task)
            text = inspect.describe(arena.name)
            for part in (f"pid {os.getpid()}", f"pid {child.pid}", "held", "waits for"):
                assert part in text
        assert child.result() is True
    assert inspect.describe("no-such-arena-anywhere").startswith("arena no-such-arena-anywhere:")
