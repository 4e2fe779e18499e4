"""One process: an arena answers every sequence of calls, errno by errno, as the kernel's tmpfs.

Each sequence begins with an empty root, in an arena and in a directory of a tmpfs.  `..` cannot
leave an arena's root, but would leave that directory; so the kernel's side runs in a child process
with a root of its own where that is allowed, and else skips the paths that climb above the root.

Compared: errno, what a path leads to, the entries of each listing, and in the end the whole tree.
"""

import errno
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import procs

SEQUENCES = int(os.environ.get("SHMLOCK_DIFFERENTIAL_SEQUENCES", "4000"))
FIRST = int(os.environ.get("SHMLOCK_DIFFERENTIAL_FIRST", "0"))
LENGTH = 40
CHUNKS = 2

#: Few, so that they meet. Byte strings: a name need not be UTF-8.
NAMES = [
    *(b"a", b"b", b"c", b"d" * 31, b"e" * 32, b"\xff\xfe", b"...", b"f g\n"),
    b"l" * 255,
    b"m" * 256,  # one too long
]
DOTS = [b".", b"..", b""]

Outcome = tuple[str, object]


# ---- Paths --------------------------------------------------------------------------------------


def make_path(rng: random.Random) -> bytes:
    """A relative path that may have about everything that path_resolution(7) speaks of."""
    kind = rng.random()
    if kind < 0.02:
        return rng.choice([b"", b"/", b"//", b".", b"..", b"./", b"../", b"/.", b"/..", b"./."])
    if kind < 0.05:
        return long_path(rng)
    depth = rng.choice([1, 1, 1, 2, 2, 2, 3, 3, 4, 6])
    # Mostly short names, so that most paths lead somewhere.
    parts = [rng.choice(NAMES[:3] if rng.random() < 0.8 else NAMES) for _ in range(depth)]
    while rng.random() < 0.25:
        parts.insert(rng.randrange(len(parts) + 1), rng.choice(DOTS))
    path = b"/".join(parts)
    if rng.random() < 0.3:
        path = b"/" * rng.choice([1, 2]) + path
    if rng.random() < 0.1:
        path += rng.choice([b"/", b"//", b"/.", b"/..", b"/./", b"/../", b"/../a"])
    bare = path.rstrip(b"/")
    too_long = len(bare.rpartition(b"/")[2]) > 255
    return bare if too_long else path  # see test_too_long_and_a_slash


def long_path(rng: random.Random) -> bytes:
    """Around the longest that is allowed: 4095 bytes."""
    size = rng.choice([4093, 4094, 4095, 4096, 4097, 5000])
    last = rng.choice([b"a", b"b", b"c"])
    filler = rng.choice([b"./", b"/", b"a/../"])
    path = filler * (size // len(filler))
    return b"/" * (size - len(path) - len(last)) + path[: size - len(last)] + last


# ---- The kernel's side --------------------------------------------------------------------------


class Kernel:
    """The calls of an arena, made on a directory that is root and working folder here."""

    def mkdir(self, path: bytes) -> None:
        os.mkdir(path)

    def create(self, path: bytes) -> None:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC))

    def unlink(self, path: bytes) -> None:
        os.unlink(path)

    def rmdir(self, path: bytes) -> None:
        os.rmdir(path)

    def stat(self, path: bytes) -> os.stat_result:
        return os.stat(path)

    def lstat(self, path: bytes) -> os.stat_result:
        return os.lstat(path)

    def listdir(self, path: bytes) -> list[bytes]:
        return os.listdir(path)


def enter_root(top: str) -> bool:
    """Make `top` this process's root, if that is allowed here."""
    os.chdir(top)
    try:
        os.chroot(".")
    except PermissionError:
        return False
    return True


def climbs(path: bytes) -> bool:
    """Whether a path may go above where it starts."""
    depth = 0
    for part in path.split(b"/"):
        depth += -1 if part == b".." else 0 if part in (b"", b".") else 1
        if depth < 0:
            return True
    return False


# ---- Comparing ----------------------------------------------------------------------------------


def outcome(call: Callable[[], Any]) -> Outcome:
    """What a call did, in a form that can be compared."""
    try:
        result = call()
    except OSError as error:
        assert error.errno is not None
        return "error", (errno.errorcode[error.errno], type(error).__name__)
    if isinstance(result, list):
        assert len(set(result)) == len(result), f"listed twice: {result}"
        return "names", frozenset(result)
    if result is None:
        return "done", None
    return "is", (stat.S_IFMT(result.st_mode), stat.S_ISDIR(result.st_mode) or result.st_nlink)


CALLS = ["mkdir"] * 5 + ["create"] * 4 + ["unlink"] * 3 + ["rmdir"] * 3
CALLS += ["stat", "stat", "lstat", "listdir"]


def sequence(seed: int, arena: Any, kernel: Any, confined: bool) -> None:
    """One sequence of calls on both; AssertionError where they differ."""
    rng = random.Random(seed)
    done: list[tuple[str, bytes]] = []
    for _ in range(LENGTH):
        name, path = rng.choice(CALLS), make_path(rng)
        if not confined and (path.startswith(b"/") or climbs(path)):
            continue
        done.append((name, path))
        ours = outcome(lambda name=name, path=path: getattr(arena, name)(path))
        theirs = outcome(lambda name=name, path=path: getattr(kernel, name)(path))
        assert ours == theirs, (
            f"seed {seed}: {name}({path[:300]!r}, {len(path)} bytes): arena {ours}, "
            f"kernel {theirs}, after {[(n, p[:40]) for n, p in done]}"
        )
    ours, theirs = tree(arena, b"."), tree(kernel, b".")
    assert ours == theirs, f"seed {seed}: the trees differ: arena {ours}, kernel {theirs}"


def tree(side: Any, path: bytes) -> dict[bytes, object]:
    """All names below, and what they are."""
    found: dict[bytes, object] = {}
    for name in side.listdir(path):
        below = path + b"/" + name
        is_dir = stat.S_ISDIR(side.stat(below).st_mode)
        found[name] = tree(side, below) if is_dir else "file"
    return found


def clear(side: Any, path: bytes) -> None:
    """Remove everything below."""
    for name in side.listdir(path):
        below = path + b"/" + name
        if stat.S_ISDIR(side.stat(below).st_mode):
            clear(side, below)
            side.rmdir(below)
        else:
            side.unlink(below)


def compare(arena_name: str, top: str, first: int, count: int) -> tuple[bool, int]:
    """Run sequences; whether the root was changed, and how many ran."""
    import shmlock

    arena = shmlock.attach(arena_name)
    arena.listdir()  # what the first call imports is out of reach later
    outcome(lambda: arena.stat("nothing"))
    kernel = Kernel()
    confined = enter_root(top)
    for seed in range(first, first + count):
        sequence(seed, arena, kernel, confined)
        clear(arena, b".")
        clear(kernel, b".")
    arena.close()
    return confined, count


# ---- The tests ----------------------------------------------------------------------------------


@pytest.fixture
def on_tmpfs(arena_name: str) -> Any:
    """A fresh directory of a tmpfs; not named as an arena is."""
    top = Path("/dev/shm") / f"dir-{arena_name}"
    top.mkdir()
    yield str(top)
    for path in sorted(top.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    top.rmdir()


@pytest.mark.timeout(60 + SEQUENCES // 50)
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_same_as_tmpfs(arena: Any, on_tmpfs: str, chunk: int) -> None:
    """Every call of every sequence: the same result or the same errno and exception class."""
    count = SEQUENCES // CHUNKS
    first = FIRST + chunk * count
    with procs.crew() as crew:
        child = crew.start(compare, arena.name, on_tmpfs, first, count)
        _, ran = child.result(timeout=30 + SEQUENCES / 50)
    assert ran == count


def test_a_difference_is_seen(arena: Any, on_tmpfs: str) -> None:
    """The comparison itself: a file too many on one side makes it fail."""
    arena.create("a")
    with pytest.raises(AssertionError, match="seed"):
        procs.run(compare, arena.name, on_tmpfs, 0, 20)


@pytest.mark.parametrize(
    ("call", "path", "wanted"),
    [
        # A process has no root to compare with where chroot(2) is not allowed: path_resolution(7).
        ("stat", "..", None),
        ("stat", "/../..", None),
        ("listdir", "..", None),
        ("mkdir", "../new", None),
        ("mkdir", "..", errno.EEXIST),
        ("create", "..", errno.EEXIST),
        ("create", "a/", errno.EISDIR),
        ("unlink", "..", errno.EISDIR),
        ("unlink", "/", errno.EISDIR),
        ("rmdir", "..", errno.ENOTEMPTY),
        ("rmdir", "/", errno.EBUSY),
        ("rmdir", ".", errno.EINVAL),
        ("mkdir", "", errno.ENOENT),
        ("stat", "", errno.ENOENT),
        ("mkdir", "x" * 256, errno.ENAMETOOLONG),
        ("stat", "x" * 256 + "/..", errno.ENAMETOOLONG),
        ("mkdir", "./" * 2047 + "x", None),  # 4095 bytes
        ("mkdir", "./" * 2047 + "/x", errno.ENAMETOOLONG),  # 4096
    ],
)
def test_at_the_root(arena: Any, call: str, path: str, wanted: int | None) -> None:
    """What the root, and what is too long, is answered; as tmpfs at a process's root."""
    if wanted is None:
        getattr(arena, call)(path)
        return
    with pytest.raises(OSError) as caught:
        getattr(arena, call)(path)
    assert caught.value.errno == wanted


def test_too_long_and_a_slash(arena: Any) -> None:
    """open(2) with O_CREAT looks at the slash before it looks at the length."""
    with pytest.raises(IsADirectoryError):
        arena.create("x" * 256 + "/")
