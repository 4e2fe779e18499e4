"""Owner death as an ordinary input: SIGKILL at every pause point of every operation, and the rest.

The table of points and operations is not written down here: each operation is run once
undisturbed to learn which points it passes.
"""

import ctypes
import os
import platform
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import pytest

import procs
import shmlock
from actors import PATIENCE, START, Actor, Scene, outcome, scene
from shmlock import debug, inspect
from waiting import join

# ---- Every operation at every point -------------------------------------------------------------

LONG = "n" * 100  # a text cell
LONGEST = "m" * 255  # three


def _nothing(s: Scene, victim: Actor) -> None:
    pass


def _known(s: Scene, victim: Actor) -> None:
    s.arena.create("x")
    s.arena.unlink("x")


def _file(s: Scene, victim: Actor) -> None:
    s.arena.create("x")


def _long_file(s: Scene, victim: Actor) -> None:
    s.arena.create(LONG)


def _unused_directory(s: Scene, victim: Actor) -> None:
    s.arena.mkdir("x")


def _used_directory(s: Scene, victim: Actor) -> None:
    s.arena.mkdir("x")
    for name in ("a", "b", LONG):
        s.arena.create(f"x/{name}")
    s.arena.mkdir("x/sub")
    for name in ("a", "b", LONG):
        s.arena.unlink(f"x/{name}")
    s.arena.rmdir("x/sub")


def _parent(s: Scene, victim: Actor) -> None:
    s.arena.mkdir("d")


def _full_ring(s: Scene, victim: Actor) -> None:
    for name in ("old", LONGEST, "e1", "e2"):
        victim.do("create", name)
        victim.do("unlink", name)


def _full_ring_elsewhere(s: Scene, victim: Actor) -> None:
    s.arena.mkdir("d")
    _full_ring(s, victim)


def _full_arena(s: Scene, victim: Actor) -> None:
    n = 0
    while outcome(lambda: s.arena.create(f"full{n}")) == "ok":  # noqa: B023
        n += 1
    s.arena.unlink("full0")
    s.arena.unlink("full1")


def _held(s: Scene, victim: Actor) -> None:
    assert victim.do("acquire", "x") == "held"


@dataclass(frozen=True)
class Case:
    call: str
    path: str
    prepare: Callable[[Scene, Actor], None]
    must_pass: str  # a point that it is all about


CASES = {
    "mkdir-known": Case("mkdir", "x", _known, "make:committed"),
    "create-known": Case("create", "x", _known, "lock:claimed"),
    "create-new": Case("create", "x", _nothing, "new-name:hashed"),
    "create-long": Case("create", LONG, _nothing, "stock:claimed"),
    "create-longest": Case("create", LONGEST, _nothing, "stock:claimed"),
    "mkdir-first-child": Case("mkdir", "d/x", _parent, "block:chained"),
    "create-reusing-own": Case("create", "x", _full_ring, "recycle:unhashed"),
    "create-reusing-own-elsewhere": Case("create", "d/x", _full_ring_elsewhere, "recycle:unhashed"),
    "create-reclaiming": Case("create", "x", _full_arena, "recycle:locked"),
    "unlink": Case("unlink", "x", _file, "remove:committed"),
    "unlink-long": Case("unlink", LONG, _long_file, "remove:committed"),
    "rmdir-unused": Case("rmdir", "x", _unused_directory, "rmdir:dead"),
    "rmdir-used": Case("rmdir", "x", _used_directory, "rmdir:drained"),
    "acquire-known": Case("acquire", "x", _known, "name:held"),
    "acquire-new": Case("acquire", LONG, _nothing, "name:held"),
    "release": Case("release", "x", _held, "unlock:cleared"),
}
MAKES = {"create", "mkdir"}
REMOVES = {"unlink", "rmdir"}
# From here on an operation has happened, and recovery finishes it; before, it takes it back.
COMMITTED = {"make:committed", "remove:committed", "rmdir:dead"}
# From here to the end of its acquire() a person's lock counts as held.
PERSONS = {"lock:claimed", "lock:checked", "name:held"}


def passed_points(s: Scene, victim: Actor, case: Case) -> list[str]:
    """Points that the undisturbed operation passes, in the order of their first time."""
    armed = list(debug.points())
    for point in armed:
        s.stop_at(point, victim)
    victim.begin(case.call, case.path)
    passed = []
    while met := s.first(victim, armed):
        passed.append(met)
        armed.remove(met)
        s.go(met)
    s.go(*armed)
    assert victim.end() in {"ok", "held"}
    return passed


def capacity(arena: shmlock.Arena) -> int:
    """How many files a new root can take once all is removed: less than ever means a leak."""
    for path, directories, files in walk(arena):
        for name in files:
            arena.unlink(f"{path}/{name}")
        for name in directories:
            arena.rmdir(f"{path}/{name}")
    made = 0
    while outcome(lambda: arena.create(f"{made:03}")) == "ok":  # noqa: B023
        made += 1
    return made


def walk(arena: shmlock.Arena, path: str = "") -> Iterator[tuple[str, list[str], list[str]]]:
    names = arena.listdir(path or "/")
    directories = [name for name in names if arena.is_dir(f"{path}/{name}")]
    for name in directories:
        yield from walk(arena, f"{path}/{name}")
    yield path, directories, [name for name in names if name not in directories]


def undisturbed(arena_name: str, case: Case) -> tuple[list[str], int]:
    """The points that the operation passes, and what the arena can hold after it."""
    with scene(arena_name) as s:
        victim, heir = s.actors(2)
        case.prepare(s, victim)
        points = passed_points(s, victim, case)
        if case.call == "acquire":
            victim.do("release", case.path)
        heir.do("acquire", case.path)
        heir.do("release", case.path)
        s.leave()
        return points, capacity(s.arena)


def killed_at(arena_name: str, case: Case, point: str, committed: bool, *, waiting: bool) -> int:
    """One victim; returns what the arena can hold afterwards."""
    with scene(arena_name) as s:
        victim, heir, probe = s.actors(3)
        case.prepare(s, victim)
        before = s.arena.exists(case.path)
        s.run_to(victim, point, case.call, case.path)
        if waiting:
            heir.begin("acquire", case.path, timeout=PATIENCE)
            s.settle(heir)
            if case.call == "rmdir":
                probe.begin("create", "x/probe", timeout=PATIENCE)
                s.settle(probe)
        victim.kill()
        if not waiting:
            heir.begin("acquire", case.path, timeout=PATIENCE)
            if case.call == "rmdir":
                probe.begin("create", "x/probe", timeout=PATIENCE)

        # Who waits gets through, and knows whether it is a dead person's lock that he got.
        died_holding = case.call == "acquire" and point in PERSONS
        assert heir.end() == ("recovered" if died_holding else "held")
        assert heir.do("release", case.path) == "ok"
        assert heir.do("acquire", case.path) == "held", "the mark is for one owner"
        assert heir.do("release", case.path) == "ok"

        # All or nothing; what is seen by name, by the listing and by another call agrees.
        done = committed and case.call in MAKES | REMOVES
        there = before != done
        if case.call == "rmdir":
            assert probe.end() == ("ENOENT" if done else "ok")
            if not done:
                assert probe.do("unlink", "x/probe") == "ok"
        parent, _, name = case.path.rpartition("/")
        assert s.arena.exists(case.path) == there
        assert (name in s.arena.listdir(parent or "/")) == there
        if case.call in MAKES:
            assert heir.do(case.call, case.path) == ("EEXIST" if there else "ok")
        elif case.call in REMOVES:
            assert heir.do(case.call, case.path) == ("ok" if there else "ENOENT")

        assert s.arena.check() == []  # sweeps
        s.leave()
        s.sound()
        counters = s.arena.stats().counters
        assert counters["recoveries"] == 1
        assert counters["deaths_found_late"] == 0
        assert s.arena.stats().locked == 0
        return capacity(s.arena)


@pytest.mark.parametrize("waiting", [True, False], ids=["waiting", "asking-later"])
@pytest.mark.parametrize("name", CASES)
def test_killed_at_every_point(arena_name: str, name: str, waiting: bool) -> None:
    """The next one gets through, it is all or nothing, and no cell is lost."""
    case = CASES[name]
    points, room = undisturbed(f"{arena_name}-0", case)
    assert case.must_pass in points
    broken = []
    committed = False
    for n, point in enumerate(points, 1):
        committed = committed or point in COMMITTED
        try:
            left = killed_at(f"{arena_name}-{n}", case, point, committed, waiting=waiting)
            assert left == room, f"room for {left} files, not {room}: cells were lost"
        except AssertionError as error:
            broken.append(f"killed at {point}: {error}")
    assert not broken, "\n".join(broken)


# ---- Killed while waiting -----------------------------------------------------------------------


def test_a_sleeping_waiter_is_killed(arena_name: str) -> None:
    """The owner's unlock then reaches the others all the same."""
    with scene(arena_name) as s:
        owner, first, second, third = s.actors(4)
        owner.do("acquire", "x")
        for waiter in (first, second, third):
            waiter.begin("acquire", "x", timeout=PATIENCE)
            assert s.settle(waiter) is not None
        first.kill()
        owner.do("release", "x")
        # In which order is not promised.
        s._until(lambda: second.done() or third.done(), "one of the others gets it")
        lucky, other = (second, third) if second.done() else (third, second)
        assert lucky.end() == "held"
        assert lucky.do("release", "x") == "ok"
        assert other.end() == "held"


@pytest.mark.parametrize("kind", ["name", "drain", "S_DYING"])
def test_a_waiter_of_each_kind_is_killed(arena_name: str, kind: str) -> None:
    """What it held is free, what it waited for is not disturbed."""
    with scene(arena_name) as s:
        a, b, c = s.actors(3)
        s.arena.mkdir("d")
        s.arena.create("d/x")
        if kind == "S_DYING":
            s.arena.unlink("d/x")
            s.run_to(a, "rmdir:dying", "rmdir", "d")
            b.begin("create", "d/x", timeout=PATIENCE)
        else:
            s.run_to(a, "lock:checked", "unlink", "d/x")
            b.begin(*(("rmdir", "d") if kind == "drain" else ("unlink", "d/x")), timeout=PATIENCE)
        assert s.settle(b).kind == kind  # type: ignore[union-attr]
        b.kill()
        if kind == "drain":
            assert c.do("create", "d/y", timeout=PATIENCE) == "ok", "S_DYING is gone with it"
            assert c.do("acquire", "d", timeout=PATIENCE) == "held"
            assert c.do("release", "d") == "ok"
        s.go("rmdir:dying", "lock:checked")
        assert a.end() == "ok"


@pytest.mark.parametrize("dying", [1, 2, 3])
def test_the_owner_and_waiters_are_killed_at_once(arena_name: str, dying: int) -> None:
    """The kernel wakes one sleeper per death; a dead one passes that on (rule R2)."""
    with scene(arena_name) as s:
        owner, *waiters = s.actors(5)
        owner.do("acquire", "x")
        for waiter in waiters:
            waiter.begin("acquire", "x", timeout=PATIENCE)
            assert s.settle(waiter) is not None
        doomed, rest = [owner, *waiters[:dying]], waiters[dying:]
        for actor in doomed:  # all stopped, then all killed: none acts on another's death
            actor.child.signal(signal.SIGSTOP)
        for actor in doomed:
            actor.child.signal(signal.SIGKILL)
        for actor in doomed:
            actor.kill()  # reap
        got = []
        while rest:
            s._until(lambda: any(actor.done() for actor in rest), "the next one gets it")
            lucky = next(actor for actor in rest if actor.done())
            got.append(lucky.end())
            lucky.do("release", "x")
            rest.remove(lucky)
        assert got == ["recovered"] + ["held"] * (len(got) - 1)


def crowd(name: str) -> None:
    """One thread holds, three wait for it, all in one process."""
    arena = shmlock.attach(name)
    arena.lock("x").acquire()
    threads = [threading.Thread(target=arena.lock("x").acquire) for _ in range(3)]
    for thread in threads:
        thread.start()
    procs.say([thread.native_id for thread in threads])
    procs.listen()


def test_a_process_with_owner_and_waiters_is_killed(arena_name: str) -> None:
    """All its threads die together; the one outside gets the lock."""
    with scene(arena_name) as s:
        child = s.crew.start(crowd, s.arena.name, start=START)
        assert len(child.hear()) == 3
        s._until(
            lambda: sum(task.waits is not None for task in inspect_tasks(s, child.pid)) == 3,
            "the threads wait",
        )
        outside = s.actor()
        outside.begin("acquire", "x", timeout=PATIENCE)
        assert s.settle(outside) is not None
        child.kill()
        assert outside.end() == "recovered"
        outside.do("release", "x")
        assert s.arena.check() == []


def inspect_tasks(s: Scene, pid: int) -> list[inspect.Task]:
    return [task for task in inspect.snapshot(s.arena).tasks if task.pid == pid]


# ---- Recoverers that die ------------------------------------------------------------------------

RECOVERY = ["recover:begin", "recover:redone", "recover:released"]


@pytest.mark.parametrize("point", RECOVERY)
@pytest.mark.parametrize("deaths", [1, 2])
@pytest.mark.parametrize("name", ["create-known", "rmdir-used", "acquire-known"])
def test_recoverers_killed(arena_name: str, name: str, deaths: int, point: str) -> None:
    """Each step may be done again: whoever comes next finishes the work."""
    case = CASES[name]
    stop = {"create": "make:committed", "rmdir": "rmdir:dead", "acquire": "name:held"}[case.call]
    with scene(arena_name) as s:
        victim, *doomed, heir = s.actors(2 + deaths)
        case.prepare(s, victim)
        s.run_to(victim, stop, case.call, case.path)
        heir.begin("acquire", case.path, timeout=PATIENCE)
        assert s.settle(heir) is not None
        heir.child.signal(signal.SIGSTOP)  # it must not be the one
        victim.kill()
        for recoverer in doomed:
            s.run_to(recoverer, point, "check")
            recoverer.kill()
        heir.child.signal(signal.SIGCONT)
        assert heir.end() == ("recovered" if case.call == "acquire" else "held")
        assert heir.do("release", case.path) == "ok"
        assert s.arena.exists(case.path) == (case.call == "create")
        assert s.arena.check() == []
        s.leave()
        s.sound()


def test_too_many_recoverers_die(arena_name: str) -> None:
    """Three died over one task: the arena is given up, rather than kill all in turn."""
    with scene(arena_name) as s:
        victim, *doomed, heir = s.actors(5)
        s.arena.create("there")
        s.run_to(victim, "make:inode", "create", "x")
        victim.kill()
        for recoverer in doomed:
            s.run_to(recoverer, "recover:begin", "create", "x")
            recoverer.kill()
        assert heir.do("create", "x", timeout=PATIENCE) == "ENOTRECOVERABLE"
        for call in ("create", "mkdir", "acquire"):
            assert heir.do(call, "y", timeout=PATIENCE) == "ENOTRECOVERABLE"
        assert heir.do("unlink", "there") == "ENOTRECOVERABLE"
        assert heir.do("listdir") == ["there"], "reading goes on"
        s.lost = True


def test_recovery_by_attaching(arena_name: str) -> None:
    """Who attaches takes the dead task's slot and cleans it; killed at it, the next one does."""
    with scene(arena_name, tasks=3) as s:
        victim = s.actor()
        s.run_to(victim, "make:committed", "mkdir", "d")
        victim.kill()
        s.stop_at("recover:redone")
        attaching = s.crew.start(attach_and_close, s.arena.name, start=START)
        s._until(lambda: s.reached("recover:redone"), "somebody recovers")
        attaching.kill()
        again = s.actor()
        assert again.do("create", "d/x") == "ok"
        assert s.arena.stats().counters["recoveries"] == 1


def attach_and_close(name: str) -> None:
    shmlock.attach(name).close()


# ---- Other ends ---------------------------------------------------------------------------------


@contextmanager
def holder(s: Scene, target: Callable[..., None]) -> Iterator[procs.Child]:
    """A process that holds x and does something to itself; who waits for x is then told so."""
    child = s.crew.start(target, s.arena.name, start=START)
    assert child.hear() == "held"
    heir = s.actor()
    heir.begin("acquire", "x", timeout=PATIENCE)
    assert s.settle(heir) is not None
    yield child
    assert heir.end() == "recovered"
    assert heir.do("release", "x") == "ok"
    assert s.arena.check() == []


def hold_and_fork(name: str) -> None:
    arena = shmlock.attach(name)
    arena.lock("x").acquire()
    pid = os.fork()
    if pid == 0:
        signal.pause()
    procs.say("held")
    procs.say(pid)
    procs.listen()


def test_a_fork_child_of_the_holder_lives_on(arena_name: str) -> None:
    """It has the mapping, but holds nothing: the lock goes with its parent."""
    with scene(arena_name) as s:
        with holder(s, hold_and_fork) as child:
            forked = os.pidfd_open(child.hear())
            child.kill()
        ended = bool(select.select([forked], [], [], 0)[0])
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(forked, signal.SIGKILL)
        os.close(forked)
        assert not ended


def hold_and_exit_at_once(name: str) -> None:
    arena = shmlock.attach(name)
    arena.lock("x").acquire()
    arena.lock("y").acquire()
    procs.say("held")
    procs.listen()
    os._exit(0)


def hold_and_exec(name: str) -> None:
    arena = shmlock.attach(name)
    arena.lock("x").acquire()
    procs.say("held")
    procs.listen()
    os.execv(sys.executable, [sys.executable, "-c", "import signal; signal.pause()"])


def test_exit_without_goodbye(arena_name: str) -> None:
    """os._exit() while holding."""
    with scene(arena_name) as s, holder(s, hold_and_exit_at_once) as child:
        child.tell()


def test_exec_while_holding(arena_name: str) -> None:
    """The process lives on as another program, the task does not."""
    with scene(arena_name) as s:
        with holder(s, hold_and_exec) as child:
            child.tell()
        assert child.alive


def hold_in_thread(name: str) -> None:
    arena = shmlock.attach(name)
    held, end = threading.Event(), threading.Event()

    def hold() -> None:
        arena.lock("x").acquire()
        held.set()
        end.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    procs.say("held")
    procs.listen()
    end.set()
    join(thread)
    procs.say("ended")
    procs.listen()
    arena.close()


def test_a_thread_ends_while_holding(arena_name: str) -> None:
    """As if it had died, though its process lives on."""
    with scene(arena_name) as s:
        with holder(s, hold_in_thread) as child:
            child.tell()
            assert child.hear() == "ended"
        child.tell()
        child.result()


def test_a_stopped_holder_still_holds(arena_name: str) -> None:
    """SIGSTOP is not death, however long it takes: the waiter waits."""
    with scene(arena_name) as s:
        owner, waiter, other = s.actors(3)
        owner.do("acquire", "x")
        owner.child.signal(signal.SIGSTOP)
        waiter.begin("acquire", "x", timeout=PATIENCE)
        assert s.settle(waiter) is not None
        # Longer than a sleep's cap, after which the waiter asks whether the owner is alive.
        assert other.do("acquire", "x", timeout=1.2) == "taken"
        assert not waiter.done()
        owner.child.signal(signal.SIGCONT)
        assert owner.do("release", "x") == "ok"
        assert waiter.end() == "held"
        assert s.arena.stats().counters["deaths_found_late"] == 0


def test_a_stopped_holder_is_killed(arena_name: str) -> None:
    with scene(arena_name) as s:
        owner, waiter = s.actors(2)
        s.run_to(owner, "make:committed", "create", "x")
        owner.child.signal(signal.SIGSTOP)
        waiter.begin("acquire", "x", timeout=PATIENCE)
        assert s.settle(waiter) is not None
        owner.kill()
        assert waiter.end() == "held"
        assert s.arena.exists("x")


@pytest.mark.parametrize("end", ["release", "kill"])
def test_the_arena_is_unlinked_by_force_meanwhile(arena_name: str, end: str) -> None:
    """Who waits gets ESTALE, not a lock that somebody may get in another arena of that name."""
    with scene(arena_name) as s:
        owner, waiter, other = s.actors(3)
        owner.do("acquire", "x")
        waiter.begin("acquire", "x", timeout=PATIENCE)
        assert s.settle(waiter) is not None
        shmlock.unlink(arena_name, force=True)
        assert other.do("acquire", "y") == "ESTALE"
        if end == "release":
            assert owner.do("release", "x") == "ok"
        else:
            owner.kill()
        assert waiter.end() == "ESTALE"
        assert other.do("create", "y") == "ESTALE"


def test_a_dead_holders_mark_stays(arena_name: str) -> None:
    """Until a person has taken the lock, however long ago recovery was; operations do not count."""
    with scene(arena_name) as s:
        owner, other, heir = s.actors(3)
        owner.do("acquire", "x")
        owner.kill()
        assert s.arena.check() == []
        assert other.do("create", "x") == "ok"
        assert other.do("unlink", "x") == "ok"
        for n in range(40):  # an arena full of names: this one is kept
            other.do("create", f"f{n}")
            other.do("unlink", f"f{n}")
        assert heir.do("acquire", "x") == "recovered"
        assert heir.do("release", "x") == "ok"
        assert other.do("acquire", "x") == "held"


SET_ROBUST_LIST = {"x86_64": 273, "aarch64": 99}  # asm/unistd.h


@pytest.mark.skipif(platform.machine() not in SET_ROBUST_LIST, reason="its number is not known")
def test_the_backstop(arena_name: str) -> None:
    """A death that the kernel does not mark (here: the thread's robust list is gone) is found."""
    with scene(arena_name) as s, holder(s, hold_unmarked) as child:
        child.kill()
        s._until(lambda: s.arena.stats().counters["deaths_found_late"] == 1, "it is found late")


def hold_unmarked(name: str) -> None:
    arena = shmlock.attach(name)
    arena.lock("x").acquire()
    # As after an execve by a non-leader thread: nothing tells the kernel which locks we have.
    head = (ctypes.c_long * 3)()
    head[0] = ctypes.addressof(head)
    number = SET_ROBUST_LIST[platform.machine()]
    if ctypes.CDLL(None, use_errno=True).syscall(number, head, ctypes.sizeof(head)) != 0:
        raise OSError(ctypes.get_errno(), "set_robust_list")
    procs.say("held")
    procs.listen()


def test_nothing_is_left_in_the_way(arena_name: str) -> None:
    """Many deaths one after the other use up neither task slots nor cells."""
    with scene(arena_name, tasks=4) as s:
        for n, point in enumerate(["new-name:written", "make:inode", "unlock:cleared"] * 5):
            victim = s.actor()
            s.run_to(victim, point, "create", f"{n:060}")
            victim.kill()
        s.leave()
        assert s.arena.check(quiescent=True) == []
        assert s.arena.stats().live_tasks == 1
