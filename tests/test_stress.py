"""`shmlock stress` passes on a sound arena, fails on a broken one, and its judges can fail.

The judges are fed lies here: a judge that cannot fail proves nothing.
"""

import argparse
import dataclasses
import errno
import json
import multiprocessing
import os
import shlex
import signal
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from shmlock.stress import command, harness, judge, process, scenario
from shmlock.stress.errnos import FIXED
from shmlock.stress.judge import ABSENT, DIRECTORY, FILE
from shmlock.stress.names import HeldNames, PrivateNames
from shmlock.stress.plan import Plan
from shmlock.stress.result import Result, status_of
from shmlock.stress.scenario import Aim
from shmlock.stress.table import Table
from shmlock.stress.worker import Worker
from shmlock.stress.worklog import WorkLog

import shmlock

SCENARIOS = sorted(scenario.load())

# What api.md promises, and nothing else.
SCHEMA = {
    "verdict": str,
    "violations": list,
    "ops": int,
    "ops_per_s": float,
    "by_op": dict,
    "by_errno": dict,
    "max_in_flight_one_dir": int,
    "kills": int,
    "recoveries": int,
    "coverage": dict,
    "procs": int,
    "seconds": float,
    "seed": int,
    "locking": str,
    "scenario": str,
}


# ---- An arena that can lie ----------------------------------------------------------------------


class FakeLock:
    """A NameLock for one task."""

    def __init__(self, arena: "FakeArena", path: str) -> None:
        self._arena = arena
        self._path = path

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if os.path.dirname(self._path) not in self._arena.tree:
            raise _error(errno.ENOENT, self._path)
        if self._path in self._arena.held:
            if not blocking:
                return False
            raise shmlock.DeadlockError(errno.EDEADLK, "itself", self._path)
        self._arena.held[self._path] = self
        return True

    def release(self) -> None:
        if self._arena.held.get(self._path) is not self:
            raise RuntimeError("not held")
        del self._arena.held[self._path]

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def locked(self) -> bool:
        return self._path in self._arena.held

    def owner(self) -> Any:
        return SimpleNamespace(pid=os.getpid(), tid=threading.get_native_id())


class FakeArena:
    """As much of an arena as the steps use, for one process, in a dict of path -> (mode, ino)."""

    def __init__(self) -> None:
        self.tree: dict[str, tuple[int, int]] = {"/": (stat.S_IFDIR, 1)}
        self.held: dict[str, FakeLock] = {}
        self._inodes = 1

    def _get(self, path: str) -> tuple[int, int] | None:
        if os.path.dirname(path) not in self.tree:
            raise _error(errno.ENOENT, path)
        return self.tree.get(path)

    def _make(self, path: str, mode: int) -> None:
        if self._get(path):
            raise _error(errno.EEXIST, path)
        self._inodes += 1
        self.tree[path] = mode, self._inodes

    def create(self, path: str, timeout: float | None = None) -> None:
        self._make(path, stat.S_IFREG)

    def mkdir(self, path: str, timeout: float | None = None) -> None:
        self._make(path, stat.S_IFDIR)

    def unlink(self, path: str, timeout: float | None = None) -> None:
        found = self._get(path)
        if not found:
            raise _error(errno.ENOENT, path)
        if stat.S_ISDIR(found[0]):
            raise _error(errno.EISDIR, path)
        del self.tree[path]

    def rmdir(self, path: str, timeout: float | None = None) -> None:
        found = self._get(path)
        if not found:
            raise _error(errno.ENOENT, path)
        if not stat.S_ISDIR(found[0]):
            raise _error(errno.ENOTDIR, path)
        if any(os.path.dirname(name) == path for name in self.held):
            raise _error(errno.EBUSY, path)
        if self.listdir(path):
            raise _error(errno.ENOTEMPTY, path)
        del self.tree[path]

    def stat(self, path: str) -> Any:
        found = self._get(path)
        if not found:
            raise _error(errno.ENOENT, path)
        return SimpleNamespace(st_mode=found[0], st_ino=found[1])

    def exists(self, path: str) -> bool:
        return path in self.tree

    def listdir(self, path: str) -> list[str]:
        if path not in self.tree:
            raise _error(errno.ENOENT, path)
        if not stat.S_ISDIR(self.tree[path][0]):
            raise _error(errno.ENOTDIR, path)
        return [
            os.path.basename(name)
            for name in self.tree
            if name != "/" and os.path.dirname(name) == path
        ]

    def lock(self, path: str) -> FakeLock:
        return FakeLock(self, path)


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)


class FakeTable:
    """Stops after so many strides."""

    def __init__(self, strides: int) -> None:
        self._left = strides

    def beat(self, worker: int, ops: int) -> None:
        self._left -= 1

    def stop(self) -> None:
        self._left = 0

    @property
    def stopped(self) -> bool:
        return self._left <= 0


def _worker(arena: Any, name: str = "everything-mixed", seed: int = 1, number: int = 1) -> Worker:
    """A worker in this process; what its scenario needs is there."""
    which = scenario.load()[name]
    plan = Plan(scenario=name, procs=2, seconds=1, seed=seed)
    which.setup(Worker(arena, plan, 0, which.allowed_errnos, [0] * 64))
    return Worker(arena, plan, number, which.allowed_errnos, [0] * 64)


def _drive(worker: Worker, strides: int = 200) -> WorkLog:
    steps = scenario.load()[worker.plan.scenario].worker(worker)
    return process.drive(worker, steps, FakeTable(strides), float("inf"))  # type: ignore[arg-type]


# ---- Judges: on the spot ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ABSENT, FILE, DIRECTORY])
@pytest.mark.parametrize("op", ["create", "mkdir", "unlink", "rmdir"])
def test_the_table_of_outcomes_is_what_linux_does(op: str, kind: str, tmp_path: Path) -> None:
    """judge.expected() against the filesystem of this machine."""
    path = tmp_path / "name"
    if kind == FILE:
        path.touch()
    elif kind == DIRECTORY:
        path.mkdir()
    calls: dict[str, Callable[[], object]] = {
        "create": lambda: os.close(os.open(path, os.O_CREAT | os.O_EXCL)),
        "mkdir": path.mkdir,
        "unlink": path.unlink,
        "rmdir": path.rmdir,
    }
    outcome = 0
    try:
        calls[op]()
    except OSError as error:
        outcome = error.errno or -1
    assert outcome in judge.expected(op, kind)
    left = FILE if path.is_file() else DIRECTORY if path.is_dir() else ABSENT
    assert judge.after(op, kind, outcome) == left


@pytest.mark.parametrize("name", SCENARIOS)
def test_an_honest_arena_is_not_accused(name: str) -> None:
    """One worker alone, on an arena that does everything right."""
    log, sums = _judged(FakeArena(), name)
    assert log.told() == []
    assert sums == []


def _judged(arena: FakeArena, name: str) -> tuple[WorkLog, list[str]]:
    """What one worker alone does there, and what the sums say."""
    worker = _worker(arena, name)
    built = WorkLog(0)
    built.made.update({path: 1 for path in arena.tree if path != "/"})
    log = _drive(worker)
    kinds = {
        path: DIRECTORY if stat.S_ISDIR(mode) else FILE for path, (mode, _) in arena.tree.items()
    }
    del kinds["/"]
    return log, judge.conservation([built, log], kinds)


class LosesCreates(FakeArena):
    """Says yes and does nothing, now and then."""

    lost = 0

    def create(self, path: str, timeout: float | None = None) -> None:
        super().create(path)
        self.lost += 1
        if self.lost % 20 == 0:
            del self.tree[path]


class MakesTwice(FakeArena):
    """A second create of the same name succeeds."""

    def create(self, path: str, timeout: float | None = None) -> None:
        self.tree.pop(path, None)
        super().create(path)


class WrongErrno(FakeArena):
    """ENOENT where EEXIST belongs."""

    def create(self, path: str, timeout: float | None = None) -> None:
        try:
            super().create(path)
        except FileExistsError:
            raise _error(errno.ENOENT, path) from None


class RemovesNonEmpty(FakeArena):
    """Rmdir does not look for entries made meanwhile."""

    def rmdir(self, path: str, timeout: float | None = None) -> None:
        for name in [name for name in self.tree if name.startswith(f"{path}/")]:
            del self.tree[name]
        super().rmdir(path)


class NewInodes(FakeArena):
    """Stat shows another inode each time."""

    def stat(self, path: str) -> Any:
        found = super().stat(path)
        self._inodes += 1
        found.st_ino = self._inodes
        return found


class ListsTwice(FakeArena):
    def listdir(self, path: str) -> list[str]:
        return super().listdir(path) * 2


class ListsNothing(FakeArena):
    def listdir(self, path: str) -> list[str]:
        super().listdir(path)
        return []


class SharesLocks(FakeArena):
    """Everybody gets every lock."""

    def lock(self, path: str) -> FakeLock:
        arena = self

        class Shared(FakeLock):
            def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
                arena.held.setdefault(path, self)
                return True

            def release(self) -> None:
                arena.held.pop(path, None)

        return Shared(self, path)


class Frees(FakeArena):
    """Its locks are not to be seen."""

    def lock(self, path: str) -> FakeLock:
        lock = super().lock(path)
        lock.locked = lambda: False  # type: ignore[method-assign]
        return lock


class IgnoresPeople(FakeArena):
    """Rmdir of a directory in which somebody holds a name."""

    def rmdir(self, path: str, timeout: float | None = None) -> None:
        held, self.held = self.held, {}
        try:
            super().rmdir(path)
        finally:
            self.held = held


@pytest.mark.parametrize(
    ("liar", "name"),
    [
        (LosesCreates, "everything-mixed"),
        (LosesCreates, "one-directory-many-names"),
        (LosesCreates, "same-name-storm"),
        (LosesCreates, "rmdir-while-creating"),
        (LosesCreates, "locks-for-people"),
        (MakesTwice, "everything-mixed"),
        (MakesTwice, "one-directory-many-names"),
        (WrongErrno, "everything-mixed"),
        (WrongErrno, "one-directory-many-names"),
        (WrongErrno, "same-name-storm"),
        (RemovesNonEmpty, "rmdir-while-creating"),
        (NewInodes, "everything-mixed"),
        (NewInodes, "one-directory-many-names"),
        (NewInodes, "same-name-storm"),
        (NewInodes, "locks-for-people"),
        (ListsTwice, "everything-mixed"),
        (ListsTwice, "rmdir-while-creating"),
        (ListsNothing, "one-directory-many-names"),
        (ListsNothing, "rmdir-while-creating"),
        (SharesLocks, "locks-for-people"),
        (Frees, "locks-for-people"),
        (IgnoresPeople, "locks-for-people"),
    ],
)
def test_a_lying_arena_is_caught_by_a_worker(liar: type[FakeArena], name: str) -> None:
    """One worker alone notices, on the spot."""
    log = _drive(_worker(liar(), name))
    assert log.violation_count > 0
    assert log.told()


@pytest.mark.parametrize(
    ("liar", "name"),
    [
        (LosesCreates, "same-name-storm"),
        (MakesTwice, "same-name-storm"),
        (MakesTwice, "rmdir-while-creating"),
        (RemovesNonEmpty, "everything-mixed"),
    ],
)
def test_a_lying_arena_is_caught_by_the_sums(liar: type[FakeArena], name: str) -> None:
    """Whatever the workers may have noticed, makes and removals do not fit what is left."""
    _, sums = _judged(liar(), name)
    assert sums


def _held(marks: list[int]) -> tuple[HeldNames, Worker]:
    arena = FakeArena()
    arena.mkdir("/top")
    plan = Plan(scenario="everything-mixed", procs=2, seconds=1, seed=1)
    worker = Worker(arena, plan, 1, FIXED, marks)  # type: ignore[arg-type]
    return HeldNames(worker, ["/top/a", "/top/b"]), worker


def test_a_second_holder_is_seen_when_the_lock_is_taken() -> None:
    """The mark of somebody else is in the table."""
    held, worker = _held([0, 7])
    held.hold(0, held.linger)
    assert worker.log.told() == []
    held.hold(1, held.linger)
    assert "worker 7 holds it, too" in worker.log.told()[0]


@pytest.mark.parametrize(("mark", "said"), [(7, "by worker 7"), (0, "to nobody")])
def test_a_second_holder_is_seen_while_the_lock_is_held(mark: int, said: str) -> None:
    """Another holder comes (and perhaps goes) while this one holds."""
    marks = [0, 0]
    held, worker = _held(marks)

    def intrude(n: int) -> None:
        marks[n] = mark

    held.hold(0, intrude)
    assert said in worker.log.told()[0]


@pytest.mark.parametrize("change", ["create", "mkdir"])
def test_a_change_of_a_held_name_by_somebody_else_is_seen(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways to look: after lingering, and after a change of one's own."""
    held, worker = _held([0, 0])
    monkeypatch.setattr(os, "sched_yield", lambda: getattr(worker.arena, change)("/top/a"))
    held.hold(0, held.linger)
    assert f"is {FILE if change == 'create' else DIRECTORY}" in worker.log.told()[0]

    held, worker = _held([0, 0])
    intruder = worker.arena
    monkeypatch.setattr(os, "sched_yield", intruder.tree.clear)  # type: ignore[attr-defined]
    held.hold(0, held.change)
    assert "while this worker held the name" in "".join(worker.log.told())


def test_a_private_name_touched_by_somebody_else_is_seen() -> None:
    """By stat, by a change and by a listing."""
    for way in ("look", "change", "list"):
        arena = FakeArena()
        arena.mkdir("/top")
        plan = Plan(scenario="everything-mixed", procs=2, seconds=1, seed=1)
        worker = Worker(arena, plan, 1, FIXED, [])  # type: ignore[arg-type]
        private = PrivateNames(worker, "/top", 2)
        while len(arena.tree) < 4:
            private.change()
        assert worker.log.told() == []
        arena.tree = {"/": arena.tree["/"], "/top": arena.tree["/top"]}
        for _ in range(20):
            getattr(private, way)()
        assert worker.log.told(), way


def test_an_errno_that_is_not_allowed_is_a_violation() -> None:
    """Also one that the operation could have elsewhere, and an exception without any."""
    worker = _worker(FakeArena())
    assert worker.unlink("/mixed/a") == errno.ENOENT
    assert worker.log.told() == []
    assert worker.refused("unlink", "/mixed/a", _error(errno.EDEADLK, "/mixed/a")) == errno.EDEADLK
    assert worker.refused("unlink", "/mixed/a", TimeoutError()) == errno.EIO
    told = worker.log.told()
    assert len(told) == 2
    assert "allowed here: ENOENT" in told[0]
    assert "has no errno" in told[1]


def test_a_flood_of_violations_is_cut_short() -> None:
    """The first ones tell the story; the rest is a number."""
    log = WorkLog(3)
    for n in range(1000):
        log.violation(f"number {n}")
    assert len(log.told()) < 30
    assert log.told()[0] == "worker 3: number 0"
    assert log.told()[-1] == "worker 3: and 980 more"


# ---- Judges: afterwards -------------------------------------------------------------------------


def _log(worker: int = 1, **counts: dict[str, int]) -> WorkLog:
    log = WorkLog(worker)
    for field, paths in counts.items():
        getattr(log, field).update(paths)
    return log


def test_makes_minus_removals_are_what_is_left() -> None:
    """Summed over processes; a path may be a file at one time and a directory at another."""
    logs = [
        _log(1, created={"/a": 5, "/b": 2}, unlinked={"/a": 2}, made={"/d": 1, "/b": 1}),
        _log(2, created={"/a": 1}, unlinked={"/a": 3, "/b": 2}, removed={"/b": 1}),
    ]
    assert judge.conservation(logs, {"/a": FILE, "/d": DIRECTORY}) == []


@pytest.mark.parametrize(
    ("log", "tree", "said"),
    [
        (_log(created={"/a": 2}), {"/a": FILE}, "2 create and 0 unlink succeeded, yet 1 file"),
        (_log(created={"/a": 1}), {}, "1 create and 0 unlink succeeded, yet 0 file"),
        (_log(created={"/a": 1}, unlinked={"/a": 1}), {"/a": FILE}, "yet 1 file is left"),
        (_log(unlinked={"/a": 1}), {}, "0 create and 1 unlink succeeded"),
        (_log(made={"/a": 1}), {"/a": FILE}, "1 mkdir and 0 rmdir succeeded, yet 0 directory"),
        (_log(made={"/a": 1}), {"/a": FILE}, "a file is left that nobody made"),
        (_log(made={"/d": 1}, removed={"/d": 2}), {}, "1 mkdir and 2 rmdir succeeded"),
        (_log(), {"/a": DIRECTORY}, "a directory is left that nobody made"),
    ],
)
def test_a_sum_that_does_not_fit_is_a_violation(
    log: WorkLog, tree: dict[str, str], said: str
) -> None:
    """Twice made, lost, come back, never made."""
    assert said in "\n".join(judge.conservation([log], tree))


def test_a_listing_has_lasting_names_once_and_absent_ones_never() -> None:
    """Names of others may be there or not."""
    assert judge.listing(["a", "x", "x"], ["a"], ["b"]) == []
    assert "0 times" in judge.listing(["x"], ["a"], [])[0]
    assert "2 times" in judge.listing(["a", "x", "a"], ["a"], [])[0]
    assert "was not there: b" in judge.listing(["b"], [], ["b"])[0]


def test_an_aim_that_was_missed_fails_a_long_run_only() -> None:
    """A short run is told, not blamed."""
    aims = [Aim("reached"), Aim("missed", from_ops=1000)]
    coverage = {"reached": 1, "missed": 0}
    assert "missed is still 0" in judge.aims_missed(aims, coverage, 1000)[0]
    assert judge.aims_missed(aims, coverage, 999) == []
    assert "not judged below 1000" in judge.aims_not_judged(aims, coverage, 999)[0]
    assert judge.aims_not_judged(aims, coverage, 1000) == []


def test_the_exit_status_is_that_of_the_worst() -> None:
    """A broken rule counts before an aim that was missed."""
    plan = Plan(scenario="x", procs=2, seconds=1, seed=1)
    good, bad = Result(plan), Result(plan, violations=["broken"])
    missed = Result(plan, missed=["missed"])
    assert status_of([good, good]) == 0
    assert status_of([good, missed]) == 3
    assert status_of([missed, bad, good]) == 1
    assert [r.as_json()["verdict"] for r in (good, missed, bad)] == ["pass", "fail", "fail"]


# ---- Plans --------------------------------------------------------------------------------------


def test_the_same_seed_makes_the_same_calls() -> None:
    """And another worker, or another seed, others."""

    def calls(seed: int, number: int) -> Counter[str]:
        log = _drive(_worker(FakeArena(), seed=seed, number=number), 50)
        return Counter({**log.by_op, **log.created, **log.made})

    assert calls(1, 1) == calls(1, 1)
    assert calls(1, 1) != calls(1, 2)
    assert calls(1, 2) != calls(2, 1)


@pytest.mark.parametrize(
    "words",
    [
        "stress same-name-storm --procs 3 --seconds 0.5 --seed 7 --locking both",
        "stress everything-mixed --procs 2 --seconds 10 --seed 0 --latency-us 2.5 --perturb 100",
        "stress everything-mixed --procs 2 --seconds 10 --seed 0 --break-rule R3",
        "stress everything-mixed --procs 2 --seconds 10 --seed 0 --debug",
    ],
)
def test_the_command_that_repeats_a_run_gives_the_same_plan(words: str) -> None:
    """What is printed on failure, typed in again."""
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())

    def plan(line: str) -> Plan:
        args = parser.parse_args(shlex.split(line))
        return command._plan(args, args.scenario[0])

    repeated = plan(plan(words).command().removeprefix("shmlock "))
    assert repeated == plan(words)


# ---- Runs ---------------------------------------------------------------------------------------


def _stress(*words: str) -> subprocess.CompletedProcess[str]:
    """`shmlock stress`, and nothing of it is left in /dev/shm."""
    line = [sys.executable, "-m", "shmlock", "stress", *words]
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as started:
        try:
            out, err = started.communicate(timeout=50)
        except BaseException:
            started.terminate()  # in good order, with its workers
            raise
    assert _arenas_of(started.pid) == []
    return subprocess.CompletedProcess(line, started.returncode, out, err)


def _arenas_of(pid: int) -> list[str]:
    return [name for name in os.listdir("/dev/shm") if name.startswith(f"shmlock.stress-{pid}-")]


def _check_schema(found: dict[str, Any]) -> None:
    assert list(found) == list(SCHEMA)
    assert {key: type(value) for key, value in found.items()} == SCHEMA
    assert all(isinstance(text, str) for text in found["violations"])
    for key in ("by_op", "by_errno", "coverage"):
        for name, count in found[key].items():
            assert isinstance(name, str)
            assert isinstance(count, int)
    assert all(name == name.lower() and name.isidentifier() for name in found["coverage"])
    assert all(hasattr(errno, name) for name in found["by_errno"])
    assert found["ops"] == sum(found["by_op"].values())


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_passes(name: str) -> None:
    """Three processes, one second, on the release build."""
    done = _stress(name, "--procs", "3", "--seconds", "1", "--seed", "1", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["verdict"], found["violations"]) == (0, "pass", []), done.stderr
    _check_schema(found)
    asked = {key: found[key] for key in ("procs", "seconds", "seed", "locking", "scenario")}
    assert asked == {
        "procs": 3,
        "seconds": 1.0,
        "seed": 1,
        "locking": "dentry",
        "scenario": name,
    }
    assert found["ops"] > 0
    assert found["coverage"]["worker_ops_min"] > 0, "a worker never got to do anything"
    assert found["coverage"]["samples"] > 0
    assert "sleeps" in found["coverage"]


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_passes_with_random_delays(name: str) -> None:
    """On the debug build: its assertions hold, and the core's own judge sees nothing."""
    words = ["--procs", "3", "--seconds", "1", "--seed", "2", "--perturb", "2000", "--json"]
    done = _stress(name, *words)
    found = json.loads(done.stdout)
    assert (done.returncode, found["violations"]) == (0, []), done.stderr


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("everything-mixed", "mutual-exclusion"),
        ("same-name-storm", "mutual-exclusion"),
        ("locks-for-people", "mutual-exclusion"),
        ("same-name-storm", "F9"),
        ("rmdir-while-creating", "drain"),
        ("rmdir-while-creating", "dying-check"),
    ],
)
def test_a_broken_lock_fails(name: str, rule: str) -> None:
    """Without the rule the verdict is "fail", and the command that repeats it is printed."""
    words = ["--procs", "3", "--seconds", "2", "--seed", "3", "--break-rule", rule]
    done = _stress(name, *words, "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["verdict"]) == (1, "fail")
    assert found["violations"]
    _check_schema(found)
    repeat = f"shmlock stress {name} --procs 3 --seconds 2 --seed 3 "
    assert repeat in done.stderr
    assert f"--break-rule {rule}" in done.stderr


def test_several_scenarios_are_one_object() -> None:
    """With one verdict over all runs."""
    names = ["one-directory-many-names", "same-name-storm"]
    done = _stress(*names, "--procs", "2", "--seconds", "0.3", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert list(found) == ["verdict", "runs"]
    assert found["verdict"] == "pass"
    assert [run["scenario"] for run in found["runs"]] == names
    for run in found["runs"]:
        _check_schema(run)


def test_people_get_a_table_and_one_last_word() -> None:
    """Without --json, not on a terminal."""
    done = _stress("same-name-storm", "--procs", "2", "--seconds", "0.3", "--seed", "9")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("same-name-storm: P1")
    assert "seed 9" in lines[1]
    assert any(line.startswith("operations") for line in lines)
    assert lines[-1] == "PASS"


def test_list_tells_the_scenarios() -> None:
    """And runs none."""
    done = _stress("--list", "--json")
    assert done.returncode == 0
    assert sorted(each["name"] for each in json.loads(done.stdout)) == SCENARIOS
    assert set(SCENARIOS) >= {
        "everything-mixed",
        "one-directory-many-names",
        "same-name-storm",
        "rmdir-while-creating",
        "locks-for-people",
    }


@pytest.mark.parametrize(
    "words",
    [
        "no-such-scenario",
        "--procs 0",
        "--procs x",
        "--seconds 0",
        "--seconds nan",
        "--seconds -1",
        "--seed -1",
        "--locking none",
        "--latency-us -1",
        "--perturb 1000001",
        "--break-rule no-such-rule",
        "--no-such-option",
    ],
)
def test_a_usage_error_is_2(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With one line that says what is wrong, and no traceback."""
    assert command.main(words.split()) == 2
    err = capsys.readouterr().err
    assert "error: " in err
    assert "Traceback" not in err


def test_a_run_that_cannot_be_made_is_3(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, no verdict, no traceback."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x")

    monkeypatch.setattr(shmlock, "create", full)
    assert command.main(["--seconds", "0.1", "--json"]) == 3


# ---- The harness --------------------------------------------------------------------------------


def _plan(name: str = "one-directory-many-names", seconds: float = 30.0) -> Plan:
    return Plan(scenario=name, procs=2, seconds=seconds, seed=1)


def _run(plan: Plan, progress: Any = None, **changes: Any) -> Result:
    """In this process; the workers are gone afterwards."""
    which = dataclasses.replace(scenario.load()[plan.scenario], **changes)
    result = harness.run(plan, which, progress)
    assert multiprocessing.active_children() == []
    assert _arenas_of(os.getpid()) == []
    return result


class _AtOnce:
    """Does something to the first worker as soon as it works."""

    def __init__(self, number: signal.Signals) -> None:
        self._number = number
        self.pid = 0

    def __call__(self, seconds: float, ops: int, in_flight: int) -> None:
        if ops and not self.pid:
            children = sorted(multiprocessing.active_children(), key=lambda child: child.name)
            assert children[0].pid
            self.pid = children[0].pid
            os.kill(self.pid, self._number)


def test_a_worker_that_dies_is_a_violation() -> None:
    """The message says how it ended and who waits for what; the others end at once."""
    kill = _AtOnce(signal.SIGKILL)
    result = _run(_plan(), kill)
    assert result.status == 1
    assert f"worker 1 (pid {kill.pid}) was ended by SIGKILL" in result.violations[0]
    assert "arena stress-" in result.violations[0]
    assert result.took < 30


def test_a_worker_that_hangs_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hanging is no progress; the message says who waits for what; the worker is killed."""
    monkeypatch.setattr(harness, "_STALL_S", 1.0)
    stop = _AtOnce(signal.SIGSTOP)
    result = _run(_plan(), stop)
    assert result.status == 1
    assert f"worker 1 (pid {stop.pid})" in result.violations[0]
    assert "no progress in 1 s" in result.violations[0]
    assert "arena stress-" in result.violations[0]


@pytest.mark.filterwarnings("ignore:arena .* closed while holding:ResourceWarning")
def test_a_hang_says_who_waits_for_what(monkeypatch: pytest.MonkeyPatch) -> None:
    """All workers come to wait for a name that the parent never lets go."""
    monkeypatch.setattr(harness, "_STALL_S", 1.0)
    kept = []

    def hold(worker: Worker) -> None:
        worker.mkdir("/storm")
        kept.append(worker.arena.lock("/storm/one"))
        kept[0].acquire()

    result = _run(_plan("same-name-storm"), setup=hold)
    assert result.status == 1
    (hang,) = [text for text in result.violations if text.startswith("no progress in 1 s")]
    assert f"pid {os.getpid()}" in hang
    assert "holds /storm/one (person)" in hang
    assert "waits for /storm/one" in hang


def test_a_run_that_misses_its_aim_is_3() -> None:
    """Nothing was broken, and nothing was shown either."""
    result = _run(_plan(seconds=0.3), aims=(Aim("never_counted", from_ops=1),))
    assert result.status == 3
    assert result.as_json()["verdict"] == "fail"
    assert "never_counted is still 0" in result.as_json()["violations"][0]


@pytest.mark.parametrize("lasting", [False, True])
def test_a_broken_invariant_that_stays_is_a_violation(
    lasting: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it runs, what was seen once and then no more is not."""
    monkeypatch.setattr(harness, "_CHECK_S", 0.02)
    fault = shmlock.Fault(11, 174, 0, 1, "a live inode has a name")
    walks = 0

    def check(arena: shmlock.Arena, quiescent: bool = False) -> list[shmlock.Fault]:
        nonlocal walks
        walks += 1
        return [fault] if walks == 1 or (lasting and not quiescent) else []

    monkeypatch.setattr(shmlock.Arena, "check", check)
    result = _run(_plan(seconds=0.5))
    assert walks > 1
    assert result.violations == ([f"found while it ran: {fault}"] if lasting else [])


def test_a_file_left_over_by_nobody_is_found() -> None:
    """The judge looks at the real tree: something that no log knows is a violation."""

    def also_a_stranger(worker: Worker) -> None:
        worker.mkdir("/all")
        worker.arena.create("/stranger")

    result = _run(_plan(seconds=0.2), setup=also_a_stranger)
    assert result.violations == ["/stranger: a file is left that nobody made"]


def test_workers_that_cannot_start_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their reason reaches the reader."""
    which = dataclasses.replace(scenario.load()["same-name-storm"], name="unknown")
    with pytest.raises(harness.CouldNotRunError, match="KeyError: 'unknown'"):
        harness.run(dataclasses.replace(_plan(), scenario="unknown"), which)
    assert multiprocessing.active_children() == []
    assert _arenas_of(os.getpid()) == []


def test_the_table_is_shared_and_starts_at_zero() -> None:
    """Two mappings of one descriptor, as two workers have."""
    fd = Table.make(2, 3)
    one, two = Table(fd, 2, 3), Table(fd, 2, 3)
    os.close(fd)
    try:
        assert not one.stopped
        assert (one.beats(), list(one.marks)) == ([0, 0], [0, 0, 0])
        one.beat(2, 99)
        one.marks[1] = 2
        one.stop()
        assert two.stopped
        assert (two.beats(), list(two.marks)) == ([0, 99], [0, 2, 0])
    finally:
        one.close()
        two.close()


# ---- Being ended --------------------------------------------------------------------------------


def _children(pid: int) -> list[int]:
    """Worker processes of a run (not the resource tracker of multiprocessing)."""
    try:
        pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [int(child) for child in pids if b"spawn_main" in _command_line(int(child))]


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _until(happened: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + 30  # a guard against hangs
    while not (value := happened()):
        assert time.monotonic() < deadline, f"{what}: not in 30 s"
        time.sleep(0.01)
    return value


@pytest.fixture
def long_run() -> Iterator[subprocess.Popen[str]]:
    """A run in a process group of its own, as a shell starts it, whose workers are at work."""
    line = [sys.executable, "-m", "shmlock", "stress", "--procs", "2", "--seconds", "300"]
    started = subprocess.Popen(
        line,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with started:
        try:
            _until(lambda: _arenas_of(started.pid), "the arena")
            name = _arenas_of(started.pid)[0].removeprefix("shmlock.")
            with shmlock.attach(name, readonly=True) as arena:
                # The parent and both workers are attached, and names are there.
                _until(lambda: arena.stats().positive > 2, "the workers at work")
            yield started
        finally:
            if started.poll() is None:
                started.kill()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_workers_and_removes_the_arena(
    long_run: subprocess.Popen[str], number: signal.Signals, status: int
) -> None:
    """Ctrl-C goes to the whole group, SIGTERM to the parent; one clear line, no traceback."""
    workers = _children(long_run.pid)
    assert len(workers) == 2
    if number == signal.SIGINT:
        os.killpg(long_run.pid, number)
    else:
        os.kill(long_run.pid, number)
    _, err = long_run.communicate(timeout=30)
    assert long_run.returncode == status
    assert err.splitlines()[-1].startswith("shmlock stress: ")
    assert "Traceback" not in err
    assert [pid for pid in workers if b"spawn_main" in _command_line(pid)] == []
    assert _arenas_of(long_run.pid) == []


def test_no_worker_outlives_a_parent_that_is_killed(long_run: subprocess.Popen[str]) -> None:
    """The kernel ends them; the arena stays, for `shmlock rm --stale`."""
    workers = _children(long_run.pid)
    assert len(workers) == 2
    long_run.kill()
    long_run.wait(timeout=30)
    _until(lambda: not any(_command_line(pid) for pid in workers), "the end of the workers")
    (left,) = _arenas_of(long_run.pid)
    shmlock.unlink(left.removeprefix("shmlock."), force=True)
