"""Past bugs, each by what happened then.

What needs an instant that no pause point marks is in c/regress/core.c.
"""

import contextlib
import ctypes
import errno
import mmap
import os
import resource
import shutil
import signal
import struct
import subprocess
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import actors
import procs
import shmlock
import waiting
from shmlock import segment

ROOT = Path(__file__).resolve().parent.parent
SOON = 10.0  # seconds, for what takes at most one: a guard against hangs

START = actors.START  # no interpreter has to be started for each process


@contextlib.contextmanager
def arena_of(name: str, dentries: int, tasks: int) -> Iterator[shmlock.Arena]:
    """An arena of that size, gone at the end."""
    arena = shmlock.create(name, dentries=dentries, tasks=tasks)
    try:
        yield arena
    finally:
        arena.close()
        shmlock.unlink(name, force=True)


# ---- The core, with something happening before the n-th access to a shared word ------------------


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], None]:
    """Runs a subcommand of c/regress/core.c."""
    compiler = shutil.which("gcc")
    if not compiler:
        pytest.skip("needs gcc")
    program = tmp_path_factory.mktemp("regress") / "core"
    sources = [path for path in sorted((ROOT / "csrc").glob("*.c")) if path.name != "pylock.c"]
    flags = ["-std=gnu11", "-O0", "-pthread", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}"]
    hook, main = (ROOT / "tests" / "c" / "regress" / name for name in ("hook.h", "core.c"))
    built = subprocess.run(
        [compiler, *flags, "-include", hook, "-o", program, main, *sources],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr

    def run(bug: str) -> None:
        done = subprocess.run(
            [program, bug], capture_output=True, text=True, check=False, timeout=procs.DEADLINE
        )
        assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}{done.stderr}"

    return run


def test_name_unusable_after_a_kill_between_two_stores(core: Callable[[str], None]) -> None:
    """An inode was freed in two stores.

    After a SIGKILL between them every create of its name said EUCLEAN.  Now the process is killed
    before each store of each call.
    """
    core("kills")


def test_lookup_missed_a_name_while_another_was_reclaimed(core: Callable[[str], None]) -> None:
    """Then a second cell was made for it.

    A cell taken out of the middle of a chain, and then pushed at its head in vain, led a walker
    past the names in between.
    """
    core("chain")


def test_nonblocking_acquire_failed_for_a_block_lock(core: Callable[[str], None]) -> None:
    """Although nobody held the name: somebody was putting another one on the directory's list."""
    core("block")


def test_owner_was_nobody_when_a_waiter_came(core: Callable[[str], None]) -> None:
    """The waiter's bit in the lock word was taken for a change of the owner."""
    core("owner")


@pytest.mark.parametrize(
    ("point", "before", "call"),
    [
        ("remove:committed", "create", "unlink"),
        ("make:inode", None, "create"),
        ("make:inode", None, "mkdir"),
        ("rmdir:dead", "mkdir", "rmdir"),
    ],
)
def test_name_unusable_after_a_kill_at(
    arena_name: str, point: str, before: str | None, call: str
) -> None:
    """The same, by real processes: after the commit, or before it, the name is free for all."""
    with actors.scene(arena_name) as scene:
        victim, heir = scene.actors(2)
        if before:
            assert heir.do(before, "f") == "ok"
        scene.run_to(victim, point, call, "f")
        victim.kill()
        for again in ("create", "unlink", "mkdir", "rmdir", "acquire", "release"):
            assert heir.do(again, "f") in ("ok", "held")


# ---- Who is dead? --------------------------------------------------------------------------------


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Nothing can be opened in this process, /proc included."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, limits[1]))
    taken = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def wait_without_descriptors(name: str) -> tuple[bool, bool]:
    with shmlock.attach(name) as arena:
        lock = arena.lock("x")
        assert not lock.acquire(blocking=False)
        with no_descriptor_left():
            taken = lock.acquire(timeout=0.8)  # at 0.5 s a waiter looks whether the holder lives
        return taken, lock.recovered


def test_waiter_without_descriptors_took_the_lock_of_a_live_holder(arena: shmlock.Arena) -> None:
    """It could not open /proc/PID/stat, and took that for the holder's death."""
    with arena.lock("x"):
        assert procs.run(wait_without_descriptors, arena.name, start=START) == (False, False)


def check_without_descriptors(name: str) -> list[Any]:
    with shmlock.attach(name) as arena:
        lock = arena.lock("x")
        lock.acquire()
        with no_descriptor_left():
            faults = arena.check()
        assert lock.owner() is not None
        lock.release()
        return [faults, arena.stats().live_tasks]


def test_check_without_descriptors_declared_everybody_dead(arena: shmlock.Arena) -> None:
    """Its own process included, which then could not release what it held."""
    with arena.lock("y") as mine:
        assert procs.run(check_without_descriptors, arena.name, start=START) == [[], 2]
        assert mine.locked()


def hold_for_ever(name: str, path: str) -> None:
    arena = shmlock.attach(name)
    arena.lock(path).acquire()
    procs.say("held")
    procs.listen()


def test_readonly_check_reported_a_dead_holder(arena: shmlock.Arena) -> None:
    """I9, though a dead holder who is not yet recovered is sound, and a reader cannot recover."""
    with procs.crew() as crew:
        holder = crew.start(hold_for_ever, arena.name, "x", start=START)
        assert holder.hear() == "held"
        holder.kill()
        with shmlock.attach(arena.name, readonly=True) as looking:
            assert looking.check() == []


# ---- Directories with dead holders ---------------------------------------------------------------


def hold_and_die(name: str, path: str) -> None:
    """In a forked child."""
    pid = os.fork()
    if pid == 0:
        try:
            shmlock.attach(name).lock(path).acquire()
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), status


def die_in_directories(name: str, rounds: int) -> list[Any]:
    with shmlock.attach(name) as arena:
        for _ in range(rounds):
            arena.mkdir("d")
            hold_and_die(name, "d/x")
            arena.check()  # puts the dead task's things in order
            arena.rmdir("d")
        return [arena.listdir("/"), arena.check()]


def test_recovered_names_of_dead_directories_filled_the_arena(arena_name: str) -> None:
    """ENOSPC: the mark of a dead holder kept its name when its directory was long removed."""
    with arena_of(arena_name, dentries=64, tasks=8) as arena:
        assert procs.run(die_in_directories, arena_name, 200, start=START) == [[], []]
        assert arena.check(quiescent=True) == []
        assert arena.stats().positive == 0


def test_rmdir_was_busy_with_a_dead_holder(arena: shmlock.Arena) -> None:
    """EBUSY for ever, for the sake of a NameLock whose holder had been killed."""
    arena.mkdir("d")
    with procs.crew() as crew:
        holder = crew.start(hold_for_ever, arena.name, "d/x", start=START)
        assert holder.hear() == "held"
        with pytest.raises(OSError) as caught:
            arena.rmdir("d")
        assert caught.value.errno == errno.EBUSY
        holder.kill()
        arena.rmdir("d")


def test_stocks_of_many_tasks_filled_the_arena(arena_name: str) -> None:
    """ENOSPC with nearly all dentries free: each task had claimed some ahead, up to all of them."""
    count = 130
    with arena_of(arena_name, dentries=1024, tasks=count + 10) as arena:
        hold = threading.Barrier(count, timeout=procs.DEADLINE)
        failed: list[OSError] = []

        def make(i: int) -> None:
            try:
                arena.create(f"f{i}")
            except OSError as error:
                failed.append(error)
            hold.wait()  # its stock is kept as long as the thread

        threads = [threading.Thread(target=make, args=(i,)) for i in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            waiting.join(thread)
        assert failed == []


# ---- close() and fork() while others are at work -------------------------------------------------


def close_under_readers(name: str, readonly: bool, rounds: int) -> None:
    def read(arena: shmlock.Arena, started: threading.Barrier) -> None:
        with contextlib.suppress(ValueError):  # "arena is closed"
            started.wait()
            while True:
                arena.listdir("/")
                arena.stat("f1")
                arena.stats()
                arena._faults(False)  # check() without its sweep

    for _ in range(rounds):
        arena = shmlock.attach(name, readonly=readonly)
        started = threading.Barrier(3)
        threads = [threading.Thread(target=read, args=(arena, started)) for _ in range(2)]
        for thread in threads:
            thread.start()
        started.wait()
        arena.listdir("/")
        arena.close()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("readonly", [True, False], ids=["readonly", "normal"])
def test_close_unmapped_the_arena_under_readers(arena: shmlock.Arena, readonly: bool) -> None:
    """SIGSEGV in threads that were listing or checking a read-only arena.

    Now a call ends as it would have, and the next one is a ValueError.
    """
    for i in range(600):
        arena.create(f"f{i}")
    procs.run(close_under_readers, arena.name, readonly, 40, start=START)


def fork_in_the_middle(name: str) -> str:
    arena = shmlock.attach(name)
    inside, forked = threading.Event(), threading.Event()
    got: list[bool] = []

    def remove() -> None:
        fd = segment.open_object(name)
        with segment.removing(fd) as alone:  # as unlink() does
            assert alone
            inside.set()
            forked.wait()
        os.close(fd)

    def use() -> None:
        got.append(arena.lock("x").acquire())  # its first call: attaches, and waits for remove()

    threads = [threading.Thread(target=remove), threading.Thread(target=use)]
    threads[0].start()
    inside.wait()
    threads[1].start()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork() with threads, Python 3.12
        for _ in range(50):
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
    assert not got
    forked.set()
    for thread in threads:
        thread.join()
    assert got == [True]
    return "forked"


def test_fork_hung_while_one_thread_removed_and_another_attached(arena: shmlock.Arena) -> None:
    """fork(), with the GIL, waited for the attaching thread's mutex.

    That one waited for the file lock of the removing thread, and that one for the GIL.
    """
    with procs.crew() as crew:
        child = crew.start(fork_in_the_middle, arena.name, start=START)
        assert child.result(SOON) == "forked"


# ---- Waiting in an arena that loses its name -----------------------------------------------------


def wait_for_ever(name: str, call: str, path: str) -> list[str]:
    """In a thread, since a main thread's wait begins anew twice a second, for signal handlers."""
    arena = shmlock.attach(name)
    outcome = []

    def wait() -> None:
        try:
            if call == "acquire":
                arena.lock(path).acquire()
            else:
                getattr(arena, call)(path)
            outcome.append("ok")
        except OSError as error:
            outcome.append(errno.errorcode[error.errno or 0])

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join()
    return outcome


@pytest.mark.parametrize("release", [True, False], ids=["released", "held for ever"])
@pytest.mark.parametrize("call", ["acquire", "create"])
def test_waiter_got_the_lock_of_an_unlinked_arena(
    arena: shmlock.Arena, call: str, release: bool
) -> None:
    """While somebody else held the same one in a new arena; or it waited for ever.

    It gets ESTALE.
    """
    held = arena.lock("x")
    held.acquire()
    with procs.crew() as crew:
        waiter = crew.start(wait_for_ever, arena.name, call, "x", start=START)
        waiting.until_waiting(arena, waiter.pid)
        shmlock.unlink(arena.name, force=True)
        with shmlock.create(arena.name, dentries=64, tasks=8) as new, new.lock("x"):
            if release:
                held.release()
            assert waiter.result(SOON) == ["ESTALE"]
        shmlock.unlink(arena.name)
    if not release:
        held.release()


# ---- Scribbled words -----------------------------------------------------------------------------

# struct shm_cell in layout.h
CELL = 128
D_FLAGS, D_INODE, D_NAME, I_ID, I_FLAGS, I_CHILDREN = 0, 16, 32, 64, 72, 80
DCACHE_LOCK, S_DYING, SHM_TEXT = 0x80000000, 1, 4


class Words:
    """The bytes of an arena, to be written by anybody."""

    def __init__(self, arena: shmlock.Arena) -> None:
        with open(f"{segment.DIRECTORY}/{segment.PREFIX}{arena.name}", "r+b") as file:
            self.bytes = mmap.mmap(file.fileno(), 0)
        (self.cells,) = struct.unpack_from("<Q", self.bytes, 80)
        me = arena._lib.shmlock_task_id(arena._pointer)
        self.mine = DCACHE_LOCK | me << 16

    def name(self, name: bytes) -> int:
        """Offset of a short name's cell."""
        at = self.bytes.find(name.ljust(31, b"\0") + bytes([len(name)]), self.cells)
        assert at >= 0 and (at - D_NAME - self.cells) % CELL == 0
        return at - D_NAME

    def cell(self, at: int) -> int:
        return (at - self.cells) // CELL

    def put(self, at: int, value: int) -> None:
        struct.pack_into("<I", self.bytes, at, value)


def no_mode(words: Words, arena: shmlock.Arena) -> None:
    arena.create("f")
    words.put(words.name(b"f") + I_ID, 0)
    arena.stat("f")


def dying_by_nobody(words: Words, arena: shmlock.Arena) -> None:
    arena.mkdir("d")
    words.put(words.name(b"d") + I_FLAGS, S_DYING)
    arena.mkdir("d/x", timeout=SOON / 2)


def children_in_no_block(words: Words, arena: shmlock.Arena) -> None:
    arena.mkdir("d")
    arena.create("d/x")
    at = words.name(b"d")
    words.put(at + I_CHILDREN, words.cell(at))  # the low half: cell of the first block
    arena.listdir("d")


def name_is_text(words: Words, arena: shmlock.Arena) -> None:
    arena.create("f")
    words.put(words.name(b"f") + D_FLAGS, words.mine | SHM_TEXT)
    arena.unlink("f", timeout=0.1)


def own_child(words: Words, arena: shmlock.Arena) -> None:
    """A directory's entry leads to the directory itself."""
    arena.mkdir("d")
    arena.mkdir("d/s")
    words.put(words.name(b"s") + D_INODE, words.cell(words.name(b"d")))
    arena.rmdir("d/s", timeout=SOON / 2)


SCRIBBLES = {
    no_mode: "EUCLEAN",
    dying_by_nobody: "EUCLEAN",
    children_in_no_block: "EUCLEAN",
    name_is_text: "ETIMEDOUT",  # without a timeout: EUCLEAN, but a million tries later
    own_child: "EUCLEAN",
}


def scribble(name: str, what: Callable[[Words, shmlock.Arena], None]) -> str:
    with shmlock.attach(name) as arena:
        with pytest.raises(OSError) as caught:
            what(Words(arena), arena)
        return errno.errorcode[caught.value.errno or 0]


@pytest.mark.parametrize(
    ("what", "expected"), SCRIBBLES.items(), ids=[w.__name__ for w in SCRIBBLES]
)
def test_scribbled_word_was_looked_at_for_ever(
    arena_name: str, what: Callable[[Words, shmlock.Arena], None], expected: str
) -> None:
    """A word that makes no sense had a call begin again and again, or sleep without end."""
    with arena_of(arena_name, dentries=256, tasks=8), procs.crew() as crew:
        child = crew.start(scribble, arena_name, what, start=START)
        assert child.result(SOON) == expected


def test_scribbled_latency_took_years(core: Callable[[str], None]) -> None:
    """The words of `set_latency()` may say anything; no more than ten seconds are believed."""
    core("latency")


# ---- Kernels without futex_waitv -----------------------------------------------------------------


def without_futex_waitv() -> None:
    """This process's threads get ENOSYS, as from a kernel before 5.16."""

    class Program(ctypes.Structure):  # struct sock_fprog
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))

    load_number, jump_if_equal, answer = 0x20, 0x15, 0x06  # BPF_LD|BPF_W|BPF_ABS and so on
    allow, refuse = 0x7FFF0000, 0x00050000 | errno.ENOSYS  # SECCOMP_RET_*
    futex_waitv = 449  # on every architecture
    code = [
        (load_number, 0, 0, 0),
        (jump_if_equal, 0, 1, futex_waitv),
        (answer, 0, 0, refuse),
        (answer, 0, 0, allow),
    ]
    raw = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *each) for each in code))
    program = Program(len(code), ctypes.addressof(raw))
    libc = ctypes.CDLL(None, use_errno=True)
    prctl = libc.prctl
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    set_no_new_privs, set_seccomp, filter_mode = 38, 22, 2
    if prctl(set_no_new_privs, 1, 0, 0, 0) or prctl(
        set_seccomp, filter_mode, ctypes.addressof(program), 0, 0
    ):
        raise OSError(ctypes.get_errno(), "no seccomp here")
    assert libc.syscall(futex_waitv, 0, 0, 0, 0, 0) == -1
    assert ctypes.get_errno() == errno.ENOSYS


class Hit(Exception):
    """Raised by a signal handler."""


def wait_without_waitv(name: str, ending: str) -> Any:
    without_futex_waitv()
    with shmlock.attach(name) as arena:
        lock = arena.lock("x")
        procs.say("ready")
        if ending == "timeout":
            return lock.acquire(timeout=0.05)
        if ending == "death":
            taken = lock.acquire()
            return taken, lock.recovered

        def hit(number: int, frame: object) -> None:
            raise Hit

        signal.signal(signal.SIGINT, hit)
        thread = None
        if ending == "signal elsewhere":  # the kernel may choose any thread
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            unblocked = threading.Event()

            def other() -> None:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
                unblocked.set()
                procs.listen()

            thread = threading.Thread(target=other)
            thread.start()
            unblocked.wait()
        procs.say("handler is set")
        try:
            lock.acquire()
        except Hit:
            return "hit"
        finally:
            if thread:
                procs.say("done")
                thread.join()
        return None


@pytest.mark.parametrize("ending", ["timeout", "death", "signal", "signal elsewhere"])
def test_without_futex_waitv_a_wait_noticed_nothing_but_its_word(
    arena: shmlock.Arena, ending: str
) -> None:
    """The wait was begun anew every 20 ms, so its longer stretches never ended.

    At their ends a waiter looks whether the holder lives, and for a handler whose signal went to
    another thread.
    """
    with procs.crew() as crew:
        holder = crew.start(hold_for_ever, arena.name, "x", start=START)
        assert holder.hear() == "held"
        waiter = crew.start(wait_without_waitv, arena.name, ending)
        assert waiter.hear() == "ready"
        if ending == "timeout":
            assert waiter.result(SOON) is False
            return
        if "signal" in ending:
            assert waiter.hear() == "handler is set"
        waiting.until_waiting(arena, waiter.pid)
        if ending == "death":
            holder.kill()
            assert waiter.result(SOON) == (True, True)
            return
        waiter.signal(signal.SIGINT)
        if ending == "signal elsewhere":
            assert waiter.hear(SOON) == "done"
            waiter.tell()
        assert waiter.result(SOON) == "hit"


# ---- Circles -------------------------------------------------------------------------------------


def test_circle_of_more_than_128_was_not_found(arena_name: str) -> None:
    """It was given up at a length that had been thought enough. Exactly one gets DeadlockError."""
    count = 130
    results: list[str] = []
    all_hold = threading.Barrier(count, timeout=procs.DEADLINE)

    def member(arena: shmlock.Arena, i: int) -> None:
        with arena.lock(f"n{i}"):
            all_hold.wait()
            try:
                taken = arena.lock(f"n{(i + 1) % count}").acquire(timeout=SOON)
                results.append("held" if taken else "timeout")
            except shmlock.DeadlockError as error:
                assert str(error).count("n") > count
                results.append("deadlock")

    with arena_of(arena_name, dentries=16384, tasks=count + 10) as arena:
        threads = [threading.Thread(target=member, args=(arena, i)) for i in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            waiting.join(thread)
        assert sorted(results) == ["deadlock"] + ["held"] * (count - 1)
        assert arena.check() == []
