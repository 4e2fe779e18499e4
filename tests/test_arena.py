"""Arenas: made, found, shared, refused and removed, as api.md has it."""

import errno
import gc
import os
import pickle
import re
import resource
import stat
import struct
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import procs
import shmlock
from shmlock import segment
from waiting import join

SHM = Path("/dev/shm")
SMALL = {"dentries": 256, "tasks": 8}

# Offsets in struct shm_header (csrc/layout.h).
FIELDS = {
    "magic": (0, "<Q"),
    "layout version": (8, "<I"),
    "slot size": (20, "<I"),
    "cell size": (24, "<I"),
    "mutex size": (28, "<I"),
    "pointer bits": (36, "<I"),
    "length": (56, "<Q"),
    "pid namespace ino": (120, "<Q"),
}


def shm_file(name: str) -> Path:
    return SHM / f"shmlock.{name}"


@contextmanager
def gone_afterwards(name: str) -> Iterator[None]:
    try:
        yield
    finally:
        shm_file(name).unlink(missing_ok=True)


@pytest.fixture
def name(arena_name: str) -> Iterator[str]:
    with gone_afterwards(arena_name):
        yield arena_name


# ---- Names and sizes ----------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["", "a/b", "a b", "ä", "x" * 201, "a\0b", "a\n"])
@pytest.mark.parametrize("call", [shmlock.create, shmlock.attach, shmlock.open, shmlock.unlink])
def test_a_name_is_1_to_200_of_a_few_characters(call: Any, bad: str) -> None:
    """Anything else is ValueError, before anything is looked for."""
    with pytest.raises(ValueError, match="arena name"):
        call(bad)


def test_a_name_is_a_str(name: str) -> None:
    with pytest.raises(TypeError):
        shmlock.create(name.encode())  # type: ignore[arg-type]


def test_the_longest_name(name: str) -> None:
    """200 characters will do."""
    longest = name + "-" + "x" * (199 - len(name))
    with gone_afterwards(longest):
        shmlock.create(longest, **SMALL).close()
        assert longest in shmlock.arenas()


@pytest.mark.parametrize("option", ["dentries", "tasks"])
@pytest.mark.parametrize("value", [-1, 0, 2**40])
@pytest.mark.parametrize("call", [shmlock.create, shmlock.open])
def test_a_size_out_of_range_says_the_range(name: str, call: Any, option: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"{option} must be \d+ to \d+, not {value}"):
        call(name, **{option: value})
    assert not shm_file(name).exists()


@pytest.mark.parametrize("mode", [-1, 0o1000])
def test_a_mode_out_of_range(name: str, mode: int) -> None:
    with pytest.raises(ValueError, match="mode"):
        shmlock.create(name, mode=mode, **SMALL)


def test_locking_must_be_known(name: str) -> None:
    with pytest.raises(ValueError, match="dentry, inode, both"):
        shmlock.create(name, locking="none", **SMALL)


# ---- Making -------------------------------------------------------------------------------------


def test_create_makes_an_arena_with_a_root(arena: shmlock.Arena, arena_name: str) -> None:
    assert arena.name == arena_name
    assert arena.locking == "dentry"
    assert arena.timeout is None
    assert not arena.closed
    assert arena.listdir() == []
    assert stat.S_ISDIR(arena.stat("/").st_mode)
    assert arena.check(quiescent=False) == []


def test_create_twice(arena: shmlock.Arena) -> None:
    with pytest.raises(FileExistsError) as caught:
        shmlock.create(arena.name, **SMALL)
    assert caught.value.filename == arena.name


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o666])
def test_permission_is_exactly_mode(name: str, mode: int) -> None:
    """Whatever the umask."""
    old = os.umask(0o077)
    try:
        shmlock.create(name, mode=mode, **SMALL).close()
    finally:
        os.umask(old)
    assert stat.S_IMODE(shm_file(name).stat().st_mode) == mode


def test_the_memory_is_reserved(arena: shmlock.Arena) -> None:
    """No SIGBUS later: all blocks are there from the start."""
    found = shm_file(arena.name).stat()
    assert found.st_blocks * 512 >= found.st_size == arena.stats().size


def limited(name: str) -> list[str]:
    before = os.listdir(SHM)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))
    with pytest.raises(OSError, match=r"needs \d+ bytes.*dentries") as caught:
        shmlock.create(name, **SMALL)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == name
    return sorted(e for e in set(os.listdir(SHM)) - set(before) if str(os.getpid()) in e)


def test_too_large_for_the_machine_is_found_at_once(name: str) -> None:
    """ENOSPC, and nothing is left."""
    assert procs.run(limited, name) == []
    assert not shm_file(name).exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.ENOMEM])
def test_dev_shm_is_full(name: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="fewer dentries") as caught:
        shmlock.create(name, **SMALL)
    assert caught.value.errno == code
    monkeypatch.undo()
    assert not [
        entry for entry in os.listdir(SHM) if entry.startswith(f"shmlock-new.{os.getpid()}.")
    ]
    shmlock.create(name, **SMALL).close()


def test_the_default_fits_a_small_dev_shm(name: str) -> None:
    """64 MiB, with room."""
    with shmlock.create(name) as arena:
        assert arena.stats().size < 48 << 20
        assert arena.stats().dentries == 65536
        assert arena.stats().tasks == 1024


def die_half_way(name: str) -> None:
    def die(*args: Any, **more: Any) -> None:
        os._exit(9)

    os.link = die  # type: ignore[assignment]
    shmlock.create(name, **SMALL)


def test_a_creator_killed_half_way_blocks_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is free, and what is left is removed by the next create once it is old."""
    with procs.crew() as crew:
        child = crew.start(die_half_way, name)
        assert child.wait() == 9
        (left,) = (e for e in os.listdir(SHM) if e.startswith(f"shmlock-new.{child.pid}."))
    assert name not in shmlock.arenas()
    shmlock.create(name, **SMALL).close()
    assert left in os.listdir(SHM), "not yet old: it could still be in the making"
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600)
    assert segment.remove_leftovers() >= 1
    assert left not in os.listdir(SHM)


def test_what_is_being_made_is_no_leftover(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A living creator holds a file lock on it, however old it is."""
    now = time.time()

    def build(fd: int) -> None:
        monkeypatch.setattr(time, "time", lambda: now + 3600)
        segment.remove_leftovers()
        monkeypatch.undo()

    with segment.new_object(name, 4096, 0o600, build):
        assert shm_file(name).exists()


# ---- Attaching ----------------------------------------------------------------------------------


def test_attach_shares(arena: shmlock.Arena) -> None:
    with shmlock.attach(arena.name) as other:
        other.create("a")
        assert arena.exists("a")


def test_attach_nothing(name: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        shmlock.attach(name)
    assert caught.value.filename == name


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("readonly", [False, True])
def test_a_foreign_layout_is_refused(name: str, field: str, readonly: bool) -> None:
    """ArenaMismatch names both values and what to do; force removes it."""
    shmlock.create(name, **SMALL).close()
    offset, kind = FIELDS[field]
    with shm_file(name).open("r+b") as file:
        file.seek(offset)
        (right,) = struct.unpack(kind, file.read(struct.calcsize(kind)))
        wrong = right ^ 0x40
        file.seek(offset)
        file.write(struct.pack(kind, wrong))
    with pytest.raises(shmlock.ArenaMismatch) as caught:
        shmlock.attach(name, readonly=readonly)
    text = str(caught.value)
    assert field in text
    assert caught.value.filename == name
    shown = "{:#018x}" if field == "magic" else "{}"
    assert shown.format(right) in text
    assert shown.format(wrong) in text
    assert re.search("use|remove|attach", text.partition(";")[2])
    with pytest.raises(shmlock.ArenaMismatch, match="force=True"):
        shmlock.unlink(name)
    shmlock.unlink(name, force=True)


@pytest.mark.parametrize("content", [b"", b"x", b"\0" * 5000])
def test_what_is_no_arena_is_refused(name: str, content: bytes) -> None:
    shm_file(name).write_bytes(content)
    with pytest.raises(shmlock.ArenaMismatch, match=r"magic.*found.*expected.*no arena"):
        shmlock.attach(name)
    with pytest.raises(shmlock.ArenaMismatch):
        shmlock.open(name)
    shmlock.unlink(name, force=True)


def test_a_truncated_arena_is_refused(name: str) -> None:
    shmlock.create(name, **SMALL).close()
    size = shm_file(name).stat().st_size
    os.truncate(shm_file(name), size - 4096)
    with pytest.raises(shmlock.ArenaMismatch, match=f"found {size - 4096} bytes.*expected {size}"):
        shmlock.attach(name)


def test_somebody_elses_arena_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless any_owner: who may write to an arena can mislead all who use it."""
    shmlock.create(name, mode=0o666, **SMALL).close()
    if os.geteuid() == 0:
        os.chown(shm_file(name), 65534, 65534)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with pytest.raises(PermissionError, match="any_owner=True"):
        shmlock.attach(name)
    with pytest.raises(PermissionError):
        shmlock.open(name)
    with shmlock.attach(name, any_owner=True) as arena:
        arena.create("a")


def test_attachments_are_shared_within_a_process(arena: shmlock.Arena) -> None:
    """One task slot, however many Arena objects."""
    before = arena.stats().live_tasks
    with shmlock.attach(arena.name) as other, other.lock("a"):
        assert arena.stats().live_tasks == before
        assert arena.lock("a").acquire(blocking=False) is False
        with pytest.raises(shmlock.DeadlockError):  # it is the same task
            arena.lock("a").acquire()


def test_a_full_task_table_says_how_to_enlarge_it(name: str) -> None:
    """OSError EAGAIN; and a slot is free again when its thread has ended."""
    with shmlock.create(name, dentries=256, tasks=1) as arena:
        caught: list[OSError] = []

        def second() -> None:
            try:
                arena.create("a")
            except OSError as error:
                caught.append(error)

        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert caught[0].errno == errno.EAGAIN
        assert "tasks=" in caught[0].strerror
    other = threading.Thread(target=lambda: shmlock.attach(name).close())
    other.start()
    join(other)
    with shmlock.attach(name) as arena:
        assert not arena.exists("a")


# ---- open() -------------------------------------------------------------------------------------


def test_open_makes_it_then_attaches(name: str) -> None:
    with shmlock.open(name, **SMALL) as first, shmlock.open(name, dentries=512) as second:
        first.create("a")
        assert second.exists("a")
        assert second.stats().dentries == 256, "sizes matter only to who makes it"


@pytest.mark.parametrize("option", [{"locking": "dentry"}, {"debug": False}])
def test_open_with_an_option_that_agrees(arena: shmlock.Arena, option: dict[str, Any]) -> None:
    shmlock.open(arena.name, **option).close()


def test_open_with_an_option_that_differs(arena: shmlock.Arena) -> None:
    with pytest.raises(shmlock.ArenaMismatch, match="debug: found False, expected True"):
        shmlock.open(arena.name, debug=True)


def test_open_without_options_takes_what_is_there(debug_arena: shmlock.Arena) -> None:
    with shmlock.open(debug_arena.name) as arena:
        assert arena.debug


def test_open_with_an_unknown_option(name: str) -> None:
    with pytest.raises(TypeError, match="colour"):
        shmlock.open(name, colour=1)  # type: ignore[call-arg]


def open_at_once(barrier: Any, name: str, mine: str) -> int:
    barrier.wait()
    with shmlock.open(name, **SMALL) as arena:
        arena.create(mine)
        barrier.wait()
        return len(arena.listdir())


def test_open_by_many_at_once(name: str) -> None:
    """All get the same arena, none an error."""
    barrier = procs.barrier(6)
    assert procs.run_all(open_at_once, [(barrier, name, f"f{n}") for n in range(6)]) == [6] * 6


# ---- readonly -----------------------------------------------------------------------------------


def test_readonly_looks_and_changes_nothing(arena: shmlock.Arena) -> None:
    arena.mkdir("d")
    before = arena.stats().live_tasks
    with shmlock.attach(arena.name, readonly=True) as reader:
        assert reader.listdir() == ["d"]
        assert reader.stat("d").st_ino == arena.stat("d").st_ino
        assert reader.check() == []
        assert reader.stats().live_tasks == before == 1
        for call in (reader.mkdir, reader.create, reader.unlink, reader.rmdir):
            with pytest.raises(OSError, match="read-only") as caught:
                call("d")
            assert caught.value.errno == errno.EROFS
        with pytest.raises(OSError, match="read-only"):
            reader.lock("x").acquire()
        with pytest.raises(OSError, match="read-only"):
            reader.set_latency(1.0)
    assert arena.listdir() == ["d"]


def read_only(name: str) -> list[str]:
    with shmlock.attach(name, readonly=True) as reader:
        return reader.listdir()


def test_readonly_needs_no_permission_to_write(name: str) -> None:
    with shmlock.create(name, **SMALL) as arena:
        arena.create("a")
    shm_file(name).chmod(0o400)
    assert procs.run(read_only, name) == ["a"]


# ---- unlink() -----------------------------------------------------------------------------------


def test_unlink(name: str) -> None:
    shmlock.create(name, **SMALL).close()
    shmlock.unlink(name)
    assert name not in shmlock.arenas()
    with pytest.raises(FileNotFoundError):
        shmlock.unlink(name)


def test_unlink_while_in_use(arena: shmlock.Arena) -> None:
    """EBUSY while live tasks are attached, the caller's own included."""
    with pytest.raises(OSError, match=r"1 live task.*force=True") as caught:
        shmlock.unlink(arena.name)
    assert caught.value.errno == errno.EBUSY
    assert caught.value.filename == arena.name
    arena.create("a")


def attach_and_wait(name: str) -> tuple[int, int, bool]:
    arena = shmlock.attach(name)
    with arena.lock("held"):
        procs.say("attached")
        procs.listen()
        assert not arena.exists("x")  # looking goes on
    errors = []
    for call in (lambda: arena.create("x"), lambda: arena.lock("x").acquire()):
        with pytest.raises(OSError, match="unlinked") as caught:
            call()
        errors.append(caught.value.errno)
    arena.close()
    return errors[0], errors[1], arena.closed


def test_forced_unlink(name: str) -> None:
    """Others get ESTALE on new locks, so that two arenas of one name never both hold one."""
    shmlock.create(name, **SMALL).close()
    with procs.crew() as crew:
        child = crew.start(attach_and_wait, name)
        assert child.hear() == "attached"
        with pytest.raises(OSError, match="live task") as caught:
            shmlock.unlink(name)
        assert caught.value.errno == errno.EBUSY
        shmlock.unlink(name, force=True)
        with shmlock.create(name, **SMALL) as second, second.lock("held"):
            child.tell()
            assert child.result() == (errno.ESTALE, errno.ESTALE, True)
    shmlock.unlink(name)


def test_a_dead_task_does_not_keep_an_arena(name: str) -> None:
    shmlock.create(name, **SMALL).close()
    with procs.crew() as crew:
        child = crew.start(attach_and_wait, name)
        assert child.hear() == "attached"
        child.kill()
    shmlock.unlink(name)


# ---- arenas(), temporary() ----------------------------------------------------------------------


def test_arenas(arena: shmlock.Arena) -> None:
    assert arena.name in shmlock.arenas()
    assert shmlock.arenas() == sorted(shmlock.arenas())


def test_temporary() -> None:
    with shmlock.temporary(**SMALL) as one, shmlock.temporary(**SMALL) as two:
        assert one.name != two.name
        assert {one.name, two.name} <= set(shmlock.arenas())
    assert not {one.name, two.name} & set(shmlock.arenas())
    assert one.closed


def test_temporary_goes_whatever_happens_inside() -> None:
    with pytest.raises(KeyError), shmlock.temporary(**SMALL) as arena:
        raise KeyError
    assert arena.name not in shmlock.arenas()
    with shmlock.temporary(**SMALL) as arena:
        arena.close()
        shmlock.unlink(arena.name)


# ---- close() ------------------------------------------------------------------------------------


def test_closed(name: str) -> None:
    """Every call is a ValueError, except close() itself."""
    arena = shmlock.create(name, **SMALL)
    lock = arena.lock("a")
    arena.close()
    arena.close()
    assert arena.closed
    calls = [
        lambda: arena.mkdir("a"),
        lambda: arena.create("a", exist_ok=True),
        lambda: arena.makedirs("a/b"),
        lambda: arena.unlink("a"),
        lambda: arena.rmdir("a"),
        lambda: arena.stat("a"),
        lambda: arena.exists("a"),
        lambda: arena.is_dir("a"),
        arena.listdir,
        arena.scandir,
        arena.stats,
        arena.check,
        arena.set_latency,
        lambda: arena.lock("a"),
        arena.__enter__,
        lock.acquire,
        lock.release,
        lock.__enter__,
        lock.locked,
        lock.owner,
        lambda: pickle.dumps(arena),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="closed"):
            call()
    assert "closed" in repr(arena)
    assert "closed" in repr(lock)
    assert arena.name == name
    assert arena.locking == "dentry"


def test_close_releases_what_the_thread_holds(name: str) -> None:
    """With a ResourceWarning."""
    arena = shmlock.create(name, **SMALL)
    assert arena.lock("a").acquire()
    with pytest.warns(ResourceWarning, match="1 lock"):
        arena.close()
    with shmlock.attach(name) as again:
        lock = again.lock("a")
        assert lock.acquire(blocking=False)
        assert not lock.recovered
        lock.release()


def test_close_of_one_of_two(arena: shmlock.Arena) -> None:
    """What was locked through the other one stays locked."""
    other = shmlock.attach(arena.name)
    mine, theirs = arena.lock("mine"), other.lock("theirs")
    assert mine.acquire()
    assert theirs.acquire()
    with pytest.warns(ResourceWarning, match="1 lock"):
        other.close()
    assert mine.locked()
    assert not arena.lock("theirs").locked()
    mine.release()


def test_close_while_other_threads_are_attached(name: str) -> None:
    """Their next call is a ValueError; then the arena is free."""
    arena = shmlock.create(name, **SMALL)
    attached, closed = threading.Event(), threading.Event()
    caught: list[BaseException] = []

    def use() -> None:
        arena.create("a")
        attached.set()
        closed.wait(procs.DEADLINE)
        for call in (lambda: arena.create("b"), arena.listdir, lambda: arena.stat("a")):
            try:
                call()
            except ValueError as error:
                caught.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    assert attached.wait(procs.DEADLINE)
    arena.close()
    closed.set()
    join(thread)
    assert [str(error) for error in caught] == ["arena is closed"] * 3
    shmlock.unlink(name)


def test_a_dropped_arena_is_given_back(name: str) -> None:
    """Without a word, when the thread holds nothing."""
    shmlock.create(name, **SMALL)
    gc.collect()
    shmlock.unlink(name)


def test_a_dropped_arena_keeps_what_is_held(name: str) -> None:
    """A lock is not lost because an object was."""
    assert shmlock.create(name, **SMALL).lock("a").acquire()
    gc.collect()
    with shmlock.attach(name) as arena:
        assert arena.lock("a").locked()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            arena.close()
    shmlock.unlink(name)


def test_timeout_is_checked(arena: shmlock.Arena) -> None:
    arena.timeout = 1.5
    assert arena.timeout == 1.5
    arena.timeout = None
    for bad, kind in ((-1, ValueError), (float("nan"), ValueError), ("1", TypeError)):
        with pytest.raises(kind):
            arena.timeout = bad  # type: ignore[assignment]
    assert arena.timeout is None


# ---- Pickling, looking --------------------------------------------------------------------------


def test_an_arena_pickles_as_its_name(arena: shmlock.Arena) -> None:
    """And is attached the same way again."""
    arena.timeout = 2.5
    with pickle.loads(pickle.dumps(arena)) as copy:
        assert copy is not arena
        assert (copy.name, copy.timeout, copy.readonly) == (arena.name, 2.5, False)
        copy.create("a")
    assert arena.exists("a")
    with (
        shmlock.attach(arena.name, readonly=True) as reader,
        pickle.loads(pickle.dumps(reader)) as copy,
    ):
        assert copy.readonly


def test_stats(arena: shmlock.Arena) -> None:
    before = arena.stats()
    arena.create("a")
    arena.mkdir("d")
    arena.create("gone")
    arena.unlink("gone")
    after = arena.stats()
    assert after.name == arena.name
    assert after.positive == before.positive + 2
    assert after.negative == before.negative + 1
    assert after.directories == before.directories + 1
    assert after.locked == 0
    assert after.used > before.used
    assert after.dentries >= after.used
    assert after.counters["names_made"] == before.counters["names_made"] + 3
    with pytest.raises(AttributeError):
        after.used = 0  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(after)) == after


def test_a_full_arena_says_how_to_enlarge_it(name: str) -> None:
    with shmlock.create(name, dentries=64, tasks=2) as arena:
        with pytest.raises(
            OSError, match=r"\d+ dentries used, 0 locked; create with dentries="
        ) as e:
            for n in range(65):
                arena.create(f"f{n}")
        assert e.value.errno == errno.ENOSPC
        assert e.value.filename == f"f{len(arena.listdir())}"
        assert arena.check(quiescent=True) == []


def test_check_reports_what_is_broken(name: str) -> None:
    """A line names invariant, cell, and what was found and expected."""
    with shmlock.create(name, **SMALL) as arena:
        arena.mkdir("d")
        cell = arena.stat("d").st_ino & 0xFFFFFFFF
        raw = bytearray(shm_file(name).read_bytes())
        (cells,) = struct.unpack_from("<Q", raw, 80)
        with shm_file(name).open("r+b") as file:
            file.seek(cells + 128 * cell + 64 + 12)  # i_nlink
            file.write(struct.pack("<I", 77))
        faults = arena.check()
    assert faults
    fault = next(f for f in faults if f.cell == cell)
    assert re.fullmatch(r"I\d+ cell \d+: .+ \(found \d+, expected \d+\)", fault)
    assert fault.found == 77
    assert pickle.loads(pickle.dumps(fault)).text == fault.text
