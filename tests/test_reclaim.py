"""Cells come back: names that nothing has, texts, directory blocks; in arenas much too small."""

import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import procs
import shmlock
from actors import PATIENCE, outcome, scene
from shmlock import debug

LONGEST = 255


def fill(arena: shmlock.Arena, directory: str = "", prefix: str = "f") -> int:
    """Make files until there is no room; how many."""
    for n in itertools.count():
        ended = outcome(lambda: arena.create(f"{directory}/{prefix}{n}"))  # noqa: B023
        if ended != "ok":
            assert ended == "ENOSPC"
            return n
    raise AssertionError


@contextmanager
def small(name: str, **options: Any) -> Iterator[shmlock.Arena]:
    with shmlock.create(name, **options) as arena:
        try:
            yield arena
        finally:
            shmlock.unlink(name, force=True)


def empty(arena: shmlock.Arena, directory: str = "") -> None:
    for name in arena.listdir(directory or "/"):
        path = f"{directory}/{name}"
        if arena.is_dir(path):
            empty(arena, path)
            arena.rmdir(path)
        else:
            arena.unlink(path)


# ---- Never-seen names by the thousands ----------------------------------------------------------


def churn(name: str, number: int, rounds: int, directories: int) -> dict[str, int]:
    """Never-seen names, made and removed at once in directories that all use."""
    ends: dict[str, int] = {}
    chance = random.Random(number)
    with shmlock.attach(name) as arena:
        for n in range(rounds):
            path = f"d{chance.randrange(directories)}/p{number}-{n}"
            if chance.random() < 0.1:
                path += "x" * chance.randrange(1, 200)
            calls = ("mkdir", "rmdir") if chance.random() < 0.2 else ("create", "unlink")
            for call in calls:
                ended = outcome(lambda: getattr(arena, call)(path, timeout=PATIENCE))  # noqa: B023
                ends[ended] = ends.get(ended, 0) + 1
    return ends


@pytest.mark.parametrize("dentries", [64, 256])
@pytest.mark.parametrize("checked", [False, True], ids=["release", "debug"])
def test_never_seen_names(arena_name: str, dentries: int, checked: bool) -> None:
    """Thousands of names by several processes in an arena for a few: never ENOSPC."""
    rounds = 1500
    with small(arena_name, dentries=dentries, tasks=8, debug=checked) as arena:
        for n in range(3):
            arena.mkdir(f"d{n}")
        if checked:
            debug.perturb(arena, seed=7, ppm=2000)
        results = procs.run_all(churn, [(arena_name, n, rounds, 3) for n in range(3)])
        assert results == [{"ok": 2 * rounds}] * 3
        assert arena.listdir() == ["d0", "d1", "d2"]
        assert [arena.listdir(f"d{n}") for n in range(3)] == [[], [], []]
        stats = arena.stats()
        assert stats.counters["recycled"] + stats.counters["reclaimed"] > rounds
        assert arena.check(quiescent=True) == []
        if checked:
            assert debug.violations(arena) == 0
        empty(arena)
        assert fill(arena) > dentries * 3 // 4
        assert arena.check(quiescent=True) == []


def churn_directories(name: str, number: int, rounds: int) -> dict[str, int]:
    """Directories made, used and removed; all processes use the same few paths."""
    ends: dict[str, int] = {}
    chance = random.Random(number)
    with shmlock.attach(name) as arena:
        for n in range(rounds):
            top = f"d{chance.randrange(3)}"
            child = f"{top}/{'long' * 20}{chance.randrange(6)}-{n % 20}"
            for call, path in (
                ("mkdir", top),
                ("create", child),
                ("unlink", child),
                ("rmdir", top),
            ):
                ended = outcome(lambda: getattr(arena, call)(path, timeout=PATIENCE))  # noqa: B023
                ends[ended] = ends.get(ended, 0) + 1
    return ends


def test_directories_come_and_go(arena_name: str) -> None:
    """With long names in them, by several processes: only the errors that a race explains."""
    with small(arena_name, dentries=128, tasks=8, debug=True) as arena:
        debug.perturb(arena, seed=3, ppm=2000)
        results = procs.run_all(churn_directories, [(arena_name, n, 600) for n in range(3)])
        for ends in results:
            assert set(ends) <= {"ok", "EEXIST", "ENOENT", "ENOTEMPTY"}
            assert ends["ok"] > 600
        assert arena.check(quiescent=True) == []
        assert debug.violations(arena) == 0
        empty(arena)
        assert arena.stats().inodes == 1
        assert fill(arena) > 128 * 3 // 4


# ---- Full ---------------------------------------------------------------------------------------


def test_full_means_full(arena_name: str) -> None:
    """ENOSPC, with nothing half-done; after one unlink there is room for one."""
    with scene(arena_name) as s:
        a, b = s.actors(2)
        s.arena.mkdir("d")
        made = fill(s.arena)
        stats = s.arena.stats()
        assert stats.positive == made + 1
        # All but what lists the names, and the one cell that each task may have set aside.
        assert made + 1 + stats.blocks + stats.stock == stats.dentries
        assert stats.negative == 0
        for call in ("create", "mkdir", "acquire"):
            for path in ("x", "d/x", "y" * LONGEST):
                assert a.do(call, path) == "ENOSPC"
        assert not s.arena.exists("x")
        assert not s.arena.lock("x").locked()
        assert s.arena.listdir("d") == []
        assert len(s.arena.listdir()) == made + 1
        assert s.arena.check(quiescent=True) == []
        assert a.do("unlink", "f0") == "ok"
        assert b.do("create", "x") == "ok"
        assert a.do("create", "f0") == "ENOSPC"
        assert b.do("unlink", "x") == "ok"
        assert a.do("create", "f0") == "ok"


def test_a_full_arena_still_removes_and_locks(arena_name: str) -> None:
    """What needs no new cell goes on: known names, removal, reading."""
    with scene(arena_name) as s:
        (a,) = s.actors(1)
        s.arena.mkdir("d")
        fill(s.arena)
        assert a.do("acquire", "f1") == "held"
        assert a.do("unlink", "f1") == "ok"
        assert a.do("create", "f1") == "ok", "its own name is not taken from it"
        assert a.do("release", "f1") == "ok"
        assert a.do("rmdir", "d") == "ok"
        assert a.do("create", "new") == "ok"
        assert a.do("exists", "f0") is True


def test_a_long_name_that_does_not_fit(arena_name: str) -> None:
    """It needs four cells, there are two: ENOSPC, and both can be had by others."""
    with scene(arena_name) as s:
        (a,) = s.actors(1)
        made = fill(s.arena)
        assert a.do("unlink", "f0") == a.do("unlink", "f1") == "ok"
        assert a.do("create", "n" * LONGEST) == "ENOSPC"
        assert not s.arena.exists("n" * LONGEST)
        assert a.do("create", "x") == a.do("create", "y") == "ok"
        assert s.arena.stats().texts == 0
        assert s.arena.stats().positive == made


def test_room_comes_back(arena_name: str) -> None:
    """Filled and emptied again and again, in other directories each time: the same room."""
    with scene(arena_name, dentries=128) as s:
        room = []
        for n in range(6):
            s.arena.mkdir(f"d{n}")
            room.append(fill(s.arena, f"d{n}"))
            empty(s.arena, f"d{n}")
            s.arena.rmdir(f"d{n}")
            assert s.arena.stats().positive == 0
            assert s.arena.check() == []
        assert len(set(room)) == 1
        assert s.arena.listdir() == []


def test_blocks_of_dead_directories_come_back(arena_name: str) -> None:
    """Each directory that had a child took a block; dead, it gives it back at once."""
    with scene(arena_name) as s:
        s.arena.mkdir("keep")
        s.arena.create("keep/x")
        blocks = s.arena.stats().blocks
        for n in range(200):
            s.arena.makedirs(f"d{n}/e")
            s.arena.create(f"d{n}/e/{'n' * 90}")
            s.arena.unlink(f"d{n}/e/{'n' * 90}")
            s.arena.rmdir(f"d{n}/e")
            s.arena.rmdir(f"d{n}")
            stats = s.arena.stats()
            # In the root more names may need more blocks, which stay: as many as its names need.
            assert stats.blocks <= blocks + stats.dentries // 22
        assert stats.directories == 2
        assert stats.texts == 0
        assert s.arena.listdir("keep") == ["x"]


def test_text_goes_with_its_name(arena_name: str) -> None:
    """Reused and reclaimed long names give their text back."""
    with scene(arena_name) as s:
        for n in range(300):
            name = f"{n:0{LONGEST}}"
            s.arena.create(name)
            assert s.arena.listdir() == [name]
            s.arena.unlink(name)
        stats = s.arena.stats()
        assert stats.texts <= 3 * stats.negative
        assert fill(s.arena) > 48
        assert s.arena.stats().texts == 0


def test_the_search_frees_what_a_death_left(arena_name: str) -> None:
    """Cells of a task that died with a name, a text or a block in the making come back."""
    with scene(arena_name) as s:
        room = fill(s.arena)
        empty(s.arena)
        for point in ("recycle:locked", "new-name:written", "new-name:listed", "block:made"):
            victim = s.actor()
            path = "new"
            if point == "block:made":
                s.arena.mkdir("d")
                path = "d/new"
            s.run_to(victim, point, "create", path + "n" * 200)
            victim.kill()
        assert s.arena.check() == []
        empty(s.arena)
        assert fill(s.arena) == room


# ---- What is never reused -----------------------------------------------------------------------


def test_a_locked_name_is_never_reused(arena_name: str) -> None:
    """By a person, or by an operation that stands still: not in the fullest arena."""
    with scene(arena_name) as s:
        person, standing, a = s.actors(3)
        assert person.do("acquire", "p") == "held"
        s.run_to(standing, "lock:checked", "create", "o")
        fill(s.arena)
        for n in range(30):
            assert a.do("create", f"x{n}") == "ENOSPC"
        assert s.arena.lock("p").locked()
        assert a.do("acquire", "p", blocking=False) == "taken"
        assert a.do("create", "o", timeout=0) == "ETIMEDOUT"
        s.go("lock:checked")
        assert standing.end() == "ok"
        assert person.do("create", "p") == "ok"
        assert person.do("release", "p") == "ok"


def test_a_mark_of_a_dead_holder_is_never_reused(arena_name: str) -> None:
    """DCACHE_RECOVERED stays with the name till somebody has taken the lock."""
    with scene(arena_name) as s:
        person, a = s.actors(2)
        assert person.do("acquire", "p") == "held"
        person.kill()
        assert s.arena.check() == []
        made = fill(s.arena)
        assert a.do("create", "x") == "ENOSPC"
        assert a.do("acquire", "p") == "recovered"
        assert a.do("release", "p") == "ok"
        assert a.do("create", "x") == "ok", "now it is as any other"
        assert s.arena.stats().positive == made + 1


def test_a_waited_for_name_is_not_lost(arena_name: str) -> None:
    """Its waiter gets it, or starts again from the path: in either case the right name."""
    with scene(arena_name) as s:
        holder, waiter, a = s.actors(3)
        assert holder.do("acquire", "w") == "held"
        fill(s.arena)
        assert a.do("unlink", "f0") == "ok"
        waiter.begin("create", "w", timeout=PATIENCE)
        assert s.settle(waiter) is not None
        assert holder.do("release", "w") == "ok"
        assert waiter.end() == "ok"
        assert s.arena.exists("w")


# ---- Stale lookups ------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["create", "acquire"])
def test_a_looked_up_name_that_was_reclaimed(arena_name: str, call: str) -> None:
    """Found, then taken by the search for another name, which is there: it starts again."""
    with scene(arena_name) as s:
        late, a = s.actors(2)
        s.arena.create("stale")
        s.arena.unlink("stale")
        s.run_to(late, "lock:recorded", call, "stale")
        made = fill(s.arena)
        assert s.arena.stats().counters["reclaimed"] + s.arena.stats().counters["recycled"] > 0
        assert s.arena.stats().negative == 0
        assert a.do("unlink", "f0") == "ok"
        s.go("lock:recorded")
        assert late.end() in {"ok", "held"}
        assert s.arena.exists("stale") == (call == "create")
        assert s.arena.lock("stale").locked() == (call == "acquire")
        assert len(s.arena.listdir()) == made - (call == "acquire")


def read_on(name: str, stop: Any, paths: list[str]) -> tuple[int, int]:
    """Look up names that stay and names that never are, while others churn."""
    wrong = rounds = 0
    with shmlock.attach(name) as arena:
        inos = {path: arena.stat(path).st_ino for path in paths}
        while not stop.is_set():
            rounds += 1
            for path in paths:
                wrong += arena.stat(path).st_ino != inos[path]
                wrong += arena.exists(f"{path}.never")
            names = arena.listdir("d0")
            wrong += len(names) != len(set(names))
            wrong += "stays" not in names
    return rounds, wrong


def test_lookups_while_cells_change_hands(arena_name: str) -> None:
    """What stays is always found, with its number; what never was, never; listings agree."""
    with small(arena_name, dentries=96, tasks=8, debug=True) as arena:
        for n in range(3):
            arena.mkdir(f"d{n}")
            arena.create(f"d{n}/stays")
            arena.create(f"d{n}/{'stays too' * 10}")
        debug.perturb(arena, seed=11, ppm=1000)
        stop = procs.SPAWN.Event()
        paths = [f"d{n}/{name}" for n in range(3) for name in ("stays", "stays too" * 10)]
        with procs.crew() as crew:
            reader = crew.start(read_on, arena_name, stop, paths)
            writers = [crew.start(churn, arena_name, n, 800, 3) for n in range(2)]
            assert [writer.result() for writer in writers] == [{"ok": 1600}] * 2
            stop.set()
            rounds, wrong = reader.result()
        assert rounds > 0
        assert wrong == 0
        assert arena.check(quiescent=True) == []
