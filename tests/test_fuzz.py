"""A scribbled arena gives exceptions: no crash, no endless loop, no hang, whatever is in it.

A *case* is a seed.  It chooses one of a few populated arenas (files, directories, long names, locks
whose holder was killed), scribbles on a copy of its bytes, before or after attaching, and makes
every call on it.  The live mutexes' bytes are left alone: they are libc's, with pointers in them
(docs/security.md).

Cases run in children of a worker process, one each, so that a crash is seen and spoils nothing.  A
bigger run than by default, and one case in the foreground:

    SHMLOCK_FUZZ_CASES=100000 SHMLOCK_FUZZ_FIRST=1000 python -m pytest tests/test_fuzz.py -k many
    python tests/test_fuzz.py SEED

The timeout of the test grows with the number of cases.
"""

import contextlib
import faulthandler
import itertools
import json
import os
import random
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import procs

CASES = int(os.environ.get("SHMLOCK_FUZZ_CASES", "160"))
FIRST = int(os.environ.get("SHMLOCK_FUZZ_FIRST", "0"))
WORKERS = 2
CALL_DEADLINE = 25.0  # seconds, for what takes two at the worst
CASE_DEADLINE = 45.0  # should that not be told any more
CASE_SECONDS = 3.0  # a case makes no more calls after that: damage makes many calls slow

#: Cases that have failed once. As long as layout and population stay, they are what they were.
REGRESSIONS = [1, 5, 120, 1674, 1937]

SHM = Path("/dev/shm")
TASKS = 4
LINE = 64
SECRET = slice(96, 112)  # hash_secret in struct shm_header: fixed here, so that a seed says it all
SLOTS = 4096  # where the slots begin

LONG = "l" * 40
LONGER = "m" * 200
LONGEST = "n" * 255
DIRS = ["/", "/a", "/a/b", "/a/b/c", "/many", "/gone", f"/a/{LONGEST}"]
FILES = ["/f0", "/f1", "/a/f", "/a/b/c/f", f"/a/{LONG}", f"/{LONGER}", "/many/n3", "/many/n30"]
LOCKED = ["/held0", "/a/held1", "/f1", f"/{LONG}held", "/many/n7"]
PATHS = [*DIRS, *FILES, *LOCKED, "/new", "/a/new", "/many/new", "/a/..", "/a/b/../f", "/a/."]


# ---- The arenas ---------------------------------------------------------------------------------


def populate(arena: Any, size: int) -> None:
    for path in DIRS[1:5]:
        arena.mkdir(path)
    arena.mkdir(f"/a/{LONGEST}")
    for i in range(size // 4):
        arena.create(f"/many/n{i}")
    for path in FILES:
        arena.create(path, exist_ok=True)
    for i in range(0, size // 4, 5):
        arena.unlink(f"/many/n{i}")  # negative
    for i in range(4):
        arena.mkdir("/gone")
        arena.create(f"/gone/{i}")
        arena.unlink(f"/gone/{i}")
        arena.rmdir("/gone")


def _object(name: str, size: int) -> None:
    """An arena whose hash secret is always the same, so that all its chains are."""
    from shmlock._lib import release_build

    ffi, lib = release_build.ffi, release_build.lib
    params = ffi.new("struct shmlock_params *", {"dentries": size, "tasks": TASKS})
    fd = os.open(SHM / f"shmlock.{name}", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.ftruncate(fd, lib.shmlock_size(params))
        assert lib.shmlock_format(fd, params) == 0
        assert any(os.pread(fd, 16, SECRET.start)), "not where the secret is"
        os.pwrite(fd, random.Random(size).randbytes(16), SECRET.start)
    finally:
        os.close(fd)


def template(name: str, size: int) -> bytes:
    """Bytes of a populated arena in which a task was killed while it held locks."""
    import shmlock

    _object(name, size)
    try:
        pid = os.fork()
        if pid == 0:
            try:
                arena = shmlock.attach(name)
                populate(arena, size)
                for path in LOCKED:
                    arena.lock(path).acquire()
                os.kill(os.getpid(), signal.SIGKILL)
            finally:
                os._exit(1)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), status
        return (SHM / f"shmlock.{name}").read_bytes()
    finally:
        (SHM / f"shmlock.{name}").unlink()


# ---- Scribbling ---------------------------------------------------------------------------------


class Scribbler:
    """Knows where things are in an arena of that size, and writes nonsense there."""

    def __init__(self, original: bytes) -> None:
        from shmlock._lib import release_build

        limits = release_build.ffi.new("struct shmlock_limits *")
        release_build.lib.shmlock_limits(limits)
        self.slot_size = int(limits.slot_size)
        mutexes = [SLOTS + i * self.slot_size for i in range(TASKS)]
        self.forbidden = [(at, at + int(limits.mutex_size)) for at in mutexes]
        self.header = int(limits.header_size)
        # set_latency()'s two words: whatever they say, it is allowed, and operations take so long.
        self.forbidden.append((self.header - LINE, self.header))
        slots_end = SLOTS + TASKS * self.slot_size
        self.original = original
        self.length = len(original)
        words = struct.unpack(f"<{self.length // 4}I", original)
        used = [4 * i for i, word in enumerate(words) if word]
        self.used_slots = [at for at in used if SLOTS <= at < slots_end]
        self.used_rest = [at for at in used if at >= slots_end]
        self.cell_size = int(limits.cell_size)
        # The cells end before the debug page.
        (self.dentries,) = struct.unpack_from("<I", original, 44)
        cells = (self.dentries + 2) * self.cell_size
        self.cells = (self.length - 4096 - cells) // 4096 * 4096

    def allowed(self, at: int, size: int) -> bool:
        return (
            at >= 0
            and at + size <= self.length
            and all(at + size <= begin or end <= at for begin, end in self.forbidden)
        )

    def value(self, rng: random.Random, old: int) -> int:
        """What a 32-bit word becomes."""
        return rng.choice(
            [
                lambda: rng.getrandbits(32),
                lambda: rng.randrange(self.dentries + 4),  # looks like a cell
                lambda: rng.randrange(self.dentries + 4),
                lambda: old ^ 1 << rng.randrange(32),
                lambda: old ^ 1 << rng.randrange(32),
                lambda: 0,
                lambda: 0xFFFFFFFF,
                # looks like a lock word: owner and flags
                lambda: 0x80000000 | rng.randrange(TASKS + 2) << 16 | rng.randrange(1 << 7),
                lambda: 0xC0000000 | rng.randrange(TASKS + 2) << 16 | rng.randrange(1 << 3),
                lambda: rng.randrange(8),  # a kind, or S_DYING, S_DEAD
                lambda: old + rng.choice([-2, -1, 1, 2]) & 0xFFFFFFFF,
                lambda: struct.unpack_from("<I", self.original, rng.choice(self.used_rest))[0],
            ]
        )()

    def place(self, rng: random.Random) -> int:
        """Where a 32-bit word is scribbled over."""
        return rng.choice(
            [
                lambda: rng.choice(self.used_rest),  # buckets and cells in use
                lambda: rng.choice(self.used_rest),
                lambda: rng.choice(self.used_rest),
                lambda: self.cells + 4 * rng.randrange((self.dentries + 2) * self.cell_size // 4),
                lambda: rng.choice(self.used_slots),
                lambda: SLOTS + 4 * rng.randrange(TASKS * self.slot_size // 4),
                lambda: 4 * rng.randrange(self.length // 4),
                lambda: 4 * rng.randrange(self.header // 4),
            ]
        )()

    def words(self, rng: random.Random, data: Any) -> None:
        for _ in range(rng.choice([1, 2, 5, 20, 100, 500])):
            at = self.place(rng)
            if self.allowed(at, 4):
                (old,) = struct.unpack_from("<I", data, at)
                struct.pack_into("<I", data, at, self.value(rng, old))

    def region(self, rng: random.Random, data: Any) -> None:
        size = rng.choice([8, LINE, 2 * LINE, 4096, 65536])
        at = self.place(rng) // LINE * LINE
        fill = rng.choice([0, 0xFF, rng.randrange(256)])
        for here in range(at, min(at + size, self.length), 8):
            if self.allowed(here, 8):
                data[here : here + 8] = bytes([fill]) * 8

    def every(self, rng: random.Random, data: Any) -> None:
        """The same word of every cell."""
        at, value = 4 * rng.randrange(self.cell_size // 4), self.value(rng, 0)
        for cell in range(1, self.dentries + 2):
            if rng.random() < 0.9:
                struct.pack_into("<I", data, self.cells + cell * self.cell_size + at, value)

    def scribble(self, rng: random.Random, data: Any) -> None:
        for _ in range(rng.choice([1, 1, 1, 3])):
            rng.choice([self.words, self.words, self.words, self.region, self.every])(rng, data)


# ---- One case -----------------------------------------------------------------------------------


def calls(arena: Any, rng: random.Random) -> Iterator[Callable[[], object]]:
    """Every public call, many times, in some order."""
    from shmlock import inspect

    counter = itertools.count()

    def lock(path: str) -> None:
        held = arena.lock(path)
        held.locked()
        held.owner()
        if held.acquire(timeout=rng.choice([0, 0.002])):
            with contextlib.suppress(OSError):
                arena.create(path, timeout=0.002)
            repr(held)
            held.release()

    def keep(path: str) -> None:
        arena.lock(path).acquire(timeout=0.002)  # for the end of the process

    def fill(path: str) -> None:
        for _ in range(60):
            arena.create(f"{path}/fill{next(counter)}" + "x" * rng.choice([0, 100]), timeout=0.002)

    def path_call(name: str, **arguments: Any) -> Callable[[str], object]:
        return lambda path: getattr(arena, name)(path, **arguments)

    on_paths: list[Callable[[str], object]] = [
        *(path_call(name) for name in ("stat", "lstat", "exists", "is_dir", "listdir")),
        *(path_call(name, timeout=0.002) for name in ("mkdir", "create", "unlink", "rmdir")),
        *(path_call(name, timeout=0.002) for name in ("mkdir", "create", "unlink", "rmdir")),
        lambda path: [(e.name, e.is_dir(), e.stat()) for e in arena.scandir(path)],
        lambda path: arena.makedirs(f"{path}/x/y", exist_ok=True, timeout=0.002),
        lambda path: arena.create(path, exist_ok=True, timeout=0.002),
        lock,
        lock,
        keep,
        fill,
    ]
    on_arena: list[Callable[[], object]] = [
        arena.stats,
        arena.check,
        lambda: arena.check(quiescent=True),
        lambda: inspect.snapshot(arena),
        lambda: inspect.in_flight(arena),
        lambda: arena._lib.shmlock_sweep(arena._pointer),
    ]
    every = [lambda call=call, path=path: call(path) for call in on_paths for path in PATHS]
    rng.shuffle(every)
    some = every[: rng.choice([30, 100, 300])]
    some[rng.randrange(len(some)) : 0] = rng.sample(on_arena, len(on_arena))
    yield from some


def attempt(call: Callable[[], object]) -> None:
    # Any exception will do. What must not happen cannot be caught: a signal, an endless loop.
    faulthandler.dump_traceback_later(CALL_DEADLINE, exit=True)
    with contextlib.suppress(Exception):
        call()
    faulthandler.cancel_dump_traceback_later()


def case(seed: int, name: str, templates: list[bytes]) -> None:
    """Run one case in this process."""
    import mmap

    import shmlock

    rng = random.Random(seed)
    original = rng.choice(templates)
    scribbler = Scribbler(original)
    data = bytearray(original)
    attached = rng.random() < 0.6  # scribble on an arena in use
    if not attached:
        scribbler.scribble(rng, data)
    file = SHM / f"shmlock.{name}"
    file.write_bytes(data)
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as live:
        for readonly in (True, False) if rng.random() < 0.3 else (False,):
            with contextlib.suppress(OSError):
                arena = shmlock.attach(name, readonly=readonly)
                _use(arena, scribbler, live, rng, attached)
                if rng.random() < 0.5:
                    attempt(arena.close)


def _use(arena: Any, scribbler: Scribbler, live: Any, rng: random.Random, attached: bool) -> None:
    ready, done = threading.Event(), threading.Event()
    end = time.monotonic() + CASE_SECONDS

    def hold() -> None:  # a live holder
        attempt(lambda: arena.lock("/a/f").acquire(timeout=0.1))
        attempt(lambda: arena.lock(f"/{LONGER}").acquire(timeout=0.1))
        ready.set()
        done.wait()

    holder = threading.Thread(target=hold, daemon=True)
    if rng.random() < 0.5:
        holder.start()
        ready.wait()
    for _ in range(rng.choice([1, 2, 3])):
        if attached:
            for call in itertools.islice(calls(arena, rng), 20):
                attempt(call)
            scribbler.scribble(rng, live)
        for call in calls(arena, rng):
            if time.monotonic() > end:
                break
            attempt(call)
    done.set()
    if holder.ident:
        holder.join()


# ---- Many cases: the worker process -------------------------------------------------------------


def _run_case(seed: int, name: str, templates: list[bytes], deadline: float) -> str:
    """Run a case in a child; what went wrong, or ""."""
    with tempfile.TemporaryFile() as stderr:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.dup2(stderr.fileno(), 2)
                faulthandler.enable(file=2)
                case(seed, name, templates)
                status = 0
            except BaseException as error:
                sys.excepthook(type(error), error, error.__traceback__)
            finally:
                os._exit(status) if seed % 2 else sys.exit(status)
        fd = os.pidfd_open(pid)
        ended = select.select([fd], [], [], deadline)[0]
        os.close(fd)
        if not ended:
            os.kill(pid, signal.SIGABRT)  # faulthandler tells where
        _, status = os.waitpid(pid, 0)
        (SHM / f"shmlock.{name}").unlink(missing_ok=True)
        if ended and status == 0:
            return ""
        stderr.seek(0)
        what = f"ended with {_status(status)}" if ended else f"did not end in {deadline} s"
        return f"seed {seed}: {what}\n{stderr.read().decode(errors='replace')}"


def _status(status: int) -> str:
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return f"exit status {os.WEXITSTATUS(status)}"


def worker(prefix: str, seeds: list[int], deadline: float = CASE_DEADLINE) -> list[str]:
    """Run cases; the descriptions of those that failed. Stops after a few."""
    templates = [template(f"{prefix}-{size}", size) for size in (64, 256, 1024)]
    failures: list[str] = []
    for seed in seeds:
        text = _run_case(seed, prefix, templates, deadline)
        if text:
            failures.append(text)
        if len(failures) >= 5:
            break
    return failures


def run_cases(prefix: str, seeds: list[int], timeout: float) -> list[str]:
    """Run the cases in worker processes of their own, side by side."""
    count = min(WORKERS, len(seeds))
    running = [
        subprocess.Popen(
            [sys.executable, __file__, "--worker", f"{prefix}-fuzz{i}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for i in range(count)
    ]
    try:
        failures = []
        end = time.monotonic() + timeout
        for i, process in enumerate(running):
            assert process.stdin
            process.stdin.write(json.dumps(seeds[i::count]))
            process.stdin.close()
            process.stdin = None
        for process in running:
            text, _ = process.communicate(timeout=end - time.monotonic())
            assert process.returncode == 0, f"a worker ended with {process.returncode}"
            failures += json.loads(text)
        return failures
    finally:
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    pipe.close()


# ---- The tests ----------------------------------------------------------------------------------


def test_a_case_does_scribble_and_call(arena_name: str) -> None:
    """The fuzzer itself: it can tell a crash and a hang from a normal end."""
    text = procs.run(_fuzz_broken, f"{arena_name}-f")
    assert "SIGSEGV" in text[0]
    assert "did not end in 0.5 s" in text[1]
    assert text[2] == ""


def _fuzz_broken(prefix: str) -> list[str]:
    global case  # noqa: PLW0603  in this process only
    found = []
    for broken in (lambda *_: os.kill(os.getpid(), signal.SIGSEGV), lambda *_: time.sleep(60)):
        case = broken
        found.append(_run_case(1, prefix, [], 0.5))
    case = lambda *_: None  # noqa: E731
    found.append(_run_case(1, prefix, [], 30))
    return found


@pytest.mark.timeout(60 + CASES)
def test_many_scribbled_arenas(arena_name: str) -> None:
    """Every public call on every scribbled arena ends, and not by a signal."""
    seeds = list(range(FIRST, FIRST + CASES))
    failures = run_cases(arena_name, seeds, 50.0 + CASES)
    assert not failures, "\n\n".join(failures)


def test_cases_that_failed_once(arena_name: str) -> None:
    """Endless listings, restarts without end, a million looks at every entry."""
    failures = run_cases(arena_name, REGRESSIONS, 50)
    assert not failures, "\n\n".join(failures)


def _main(arguments: list[str]) -> None:
    if arguments[0] == "--worker":
        json.dump(worker(arguments[1], json.load(sys.stdin)), sys.stdout)
    else:
        name = f"fuzz-{os.getpid()}"
        faulthandler.enable()
        templates = [template(f"{name}-{size}", size) for size in (64, 256, 1024)]
        try:
            case(int(arguments[0]), name, templates)
        finally:
            (SHM / f"shmlock.{name}").unlink(missing_ok=True)


if __name__ == "__main__":
    _main(sys.argv[1:])
