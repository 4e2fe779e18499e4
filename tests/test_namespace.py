"""The namespace behaves as the os module does on a real filesystem, error for error."""

import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shmlock

LONG = "n" * 255
TOO_LONG = "n" * 256


def os_create(path: Any) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))


def calls(arena: shmlock.Arena) -> dict[str, tuple[Callable[..., Any], Callable[..., Any]]]:
    """Ours and theirs."""
    return {
        "mkdir": (arena.mkdir, os.mkdir),
        "makedirs": (arena.makedirs, os.makedirs),
        "create": (arena.create, os_create),
        "unlink": (arena.unlink, os.unlink),
        "rmdir": (arena.rmdir, os.rmdir),
        "stat": (lambda path: kind(arena.stat(path)), lambda path: kind(os.stat(path))),
        "lstat": (lambda path: kind(arena.lstat(path)), lambda path: kind(os.lstat(path))),
        "exists": (arena.exists, os.path.exists),
        "is_dir": (arena.is_dir, os.path.isdir),
        "listdir": (lambda p: sorted(arena.listdir(p)), lambda p: sorted(os.listdir(p))),
        "scandir": (
            lambda path: sorted(map(facts, arena.scandir(path))),
            lambda path: sorted(map(facts, os.scandir(path))),
        ),
    }


def kind(found: Any) -> int:
    return stat.S_IFMT(found.st_mode)


def facts(entry: Any) -> tuple[Any, ...]:
    return entry.name, entry.path, entry.is_dir(), entry.is_file(), entry.is_symlink()


def outcome(call: Callable[..., Any], path: Any) -> Any:
    try:
        return call(path)
    except OSError as error:
        return type(error), error.errno, error.filename


OPS = (
    *("mkdir", "makedirs", "create", "unlink", "rmdir"),
    *("stat", "lstat", "exists", "is_dir", "listdir", "scandir"),
)
PATHS = [
    "new",
    "new/",
    "new/.",
    "new/..",
    "new/x",
    "new//x//y/",
    "d",
    "d/",
    "d//",
    "./d",
    "d/.",
    "d/..",
    "d/../d",
    "d/new",
    "d/./new",
    "d/e",
    "d/e/..",
    "d/e/new",
    "d/f",
    "d/f/",
    "d/f/.",
    "d/f/..",
    "d/f/x",
    "empty",
    "empty/",
    "empty/.",
    "empty/..",
    "f",
    "f/",
    "f/.",
    "f/x",
    "",
    ".",
    "./",
    LONG,
    TOO_LONG,
    f"d/{LONG}",
    f"d/{TOO_LONG}",
    f"{TOO_LONG}/x",
    f"f/{TOO_LONG}",
    "d/" + "/" * 4092 + "e",
    "d/" + "/" * 4093 + "e",
    b"d/f",
    b"new\xff",
    "new-\udcff",
    Path("d/e"),
    Path("new/x"),
]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ascii(path)[:30])
@pytest.mark.parametrize("op", OPS)
def test_as_os_does(
    arena: shmlock.Arena, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, op: str, path: Any
) -> None:
    """Same result or same error, with the path as it was given; and the same tree afterwards."""
    top = tmp_path / "top"
    top.mkdir()
    monkeypatch.chdir(top)
    for directory in ("d", "d/e", "empty"):
        arena.mkdir(directory)
        os.mkdir(directory)
    for file in ("f", "d/f"):
        arena.create(file)
        os_create(file)
    ours, theirs = calls(arena)[op]
    mine, real = outcome(ours, path), outcome(theirs, path)
    if op == "makedirs" and isinstance(mine, tuple) and isinstance(real, tuple):
        mine, real = mine[:2], real[:2]  # which of the directories it names, is its own affair
    assert mine == real
    assert tree(arena.scandir, "/") == tree(os.scandir, str(top))


def tree(scandir: Any, top: str) -> dict[str, Any]:
    return {
        entry.name: tree(scandir, entry.path) if entry.is_dir() else None for entry in scandir(top)
    }


# ---- What a relative path in a real filesystem cannot show --------------------------------------


def test_paths_start_at_the_root(arena: shmlock.Arena) -> None:
    """With or without a leading slash; .. stays there."""
    arena.mkdir("/a")
    inode = arena.stat("a").st_ino
    for path in ("/a", "//a", "../a", "/../../a", "a/../a", "/./a/", b"/a", Path("/a")):
        assert arena.stat(path).st_ino == inode
    for root in ("/", "//", "..", ".", "/.."):
        assert arena.listdir(root) == ["a"]


@pytest.mark.parametrize(
    ("op", "code"),
    [
        ("rmdir", errno.EBUSY),
        ("mkdir", errno.EEXIST),
        ("create", errno.EEXIST),
        ("unlink", errno.EISDIR),
    ],
)
def test_the_root_cannot_be_changed(arena: shmlock.Arena, op: str, code: int) -> None:
    with pytest.raises(OSError) as caught:
        getattr(arena, op)("/")
    assert caught.value.errno in {code, errno.EISDIR}, "create of / is EISDIR on some filesystems"


@pytest.mark.parametrize("path", ["a\0b", b"a\0b", "\0"])
@pytest.mark.parametrize("op", [*OPS, "lock"])
def test_nul_is_a_value_error(arena: shmlock.Arena, op: str, path: Any) -> None:
    with pytest.raises(ValueError, match="embedded null byte"):
        getattr(arena, op)(path)


@pytest.mark.parametrize("path", [1, None, 1.5, ["a"]])
def test_what_is_no_path_is_a_type_error(arena: shmlock.Arena, path: Any) -> None:
    with pytest.raises(TypeError):
        arena.mkdir(path)


@pytest.mark.parametrize(
    ("timeout", "kind"),
    [
        (-1, ValueError),
        (-0.5, ValueError),
        (float("nan"), ValueError),
        (float("inf"), OverflowError),
        (threading.TIMEOUT_MAX * 2, OverflowError),
        (True, TypeError),
        ("1", TypeError),
    ],
)
def test_timeouts_are_checked(arena: shmlock.Arena, timeout: Any, kind: type[Exception]) -> None:
    for call in (arena.mkdir, arena.makedirs, arena.create, arena.unlink, arena.rmdir):
        with pytest.raises(kind):
            call("a", timeout=timeout)
    assert arena.listdir() == []


# ---- What a file and a directory are ------------------------------------------------------------


def test_stat(arena: shmlock.Arena) -> None:
    arena.create("f")
    arena.mkdir("d")
    file, directory = arena.stat("f"), arena.stat("d")
    assert stat.S_ISREG(file.st_mode)
    assert file.st_nlink == 1
    assert stat.S_ISDIR(directory.st_mode)
    assert len({file.st_ino, directory.st_ino, arena.stat("/").st_ino}) == 3
    assert arena.lstat("f") == file


def test_an_inode_number_is_not_used_again(arena: shmlock.Arena) -> None:
    seen = set()
    for _ in range(50):
        arena.create("f")
        seen.add(arena.stat("f").st_ino)
        arena.unlink("f")
    assert len(seen) == 50


def test_a_name_may_become_another_kind(arena: shmlock.Arena) -> None:
    arena.create("x")
    arena.unlink("x")
    arena.mkdir("x")
    arena.create("x/y")
    arena.unlink("x/y")
    arena.rmdir("x")
    assert not arena.exists("x")


def test_a_new_directory_of_an_old_name_is_empty(arena: shmlock.Arena) -> None:
    """Names in a removed directory are not those of the next one."""
    arena.mkdir("d")
    arena.create("d/f")
    arena.unlink("d/f")
    arena.rmdir("d")
    arena.mkdir("d")
    assert not arena.exists("d/f")
    arena.create("d/f")
    assert arena.listdir("d") == ["f"]


def test_rmdir_of_a_full_directory(arena: shmlock.Arena) -> None:
    arena.makedirs("d/e")
    with pytest.raises(OSError) as caught:
        arena.rmdir("d")
    assert caught.value.errno == errno.ENOTEMPTY
    arena.rmdir("d/e")
    arena.rmdir("d")


def test_rmdir_meets_a_persons_lock(arena: shmlock.Arena) -> None:
    """EBUSY, whether or not anything has the locked name; and at once."""
    arena.mkdir("d")
    with arena.lock("d/x"):
        with pytest.raises(OSError) as caught:
            arena.rmdir("d")
        assert caught.value.errno == errno.EBUSY
        arena.create("d/y")
    arena.unlink("d/y")
    arena.rmdir("d")


def test_makedirs_exist_ok(arena: shmlock.Arena) -> None:
    arena.makedirs("a/b/c")
    arena.makedirs("a/b/c", exist_ok=True)
    arena.makedirs("/", exist_ok=True)
    with pytest.raises(FileExistsError):
        arena.makedirs("a/b")
    arena.create("f")
    with pytest.raises(FileExistsError):
        arena.makedirs("f", exist_ok=True)
    with pytest.raises(NotADirectoryError):
        arena.makedirs("f/x", exist_ok=True)


def test_create_exist_ok(arena: shmlock.Arena) -> None:
    """As open(2) with O_CREAT and without O_EXCL."""
    arena.create("f", exist_ok=True)
    inode = arena.stat("f").st_ino
    arena.create("f", exist_ok=True)
    assert arena.stat("f").st_ino == inode
    arena.mkdir("d")
    with pytest.raises(IsADirectoryError):
        arena.create("d", exist_ok=True)
    with pytest.raises(FileNotFoundError):
        arena.create("nowhere/f", exist_ok=True)


def test_a_locked_name_is_left_alone_by_others(arena: shmlock.Arena) -> None:
    """By all changes, not by looking; the holder itself may change it."""
    errors: list[BaseException] = []

    def others() -> None:
        for call in (arena.mkdir, arena.create, arena.unlink, arena.rmdir, arena.makedirs):
            for timeout in (0, 0.01):
                try:
                    call("x", timeout=timeout)
                except OSError as error:
                    errors.append(error)
        errors.append(AssertionError(arena.exists("x")))

    with arena.lock("x"):
        for _ in range(2):
            thread = threading.Thread(target=others)
            thread.start()
            thread.join()
            arena.create("x", exist_ok=True)
        arena.unlink("x")
        arena.mkdir("x")
        arena.rmdir("x")
    kinds = [type(error) for error in errors]
    assert kinds == ([TimeoutError] * 10 + [AssertionError]) * 2
    assert [error.args for error in errors if isinstance(error, AssertionError)] == [
        (False,),
        (True,),
    ]
    assert {error.filename for error in errors if isinstance(error, OSError)} == {"x"}


# ---- Listings -----------------------------------------------------------------------------------


def test_listdir_takes_and_gives_bytes(arena: shmlock.Arena) -> None:
    arena.create(b"\xff")
    arena.create("ä")
    assert sorted(arena.listdir(b"/")) == sorted([b"\xff", "ä".encode()])
    assert sorted(arena.listdir("/")) == sorted(["\udcff", "ä"])
    assert arena.exists("\udcff")


def test_a_long_listing(arena: shmlock.Arena) -> None:
    """More than fits the first buffer, long names among them."""
    names = {f"{n:04}" + "x" * (n % 200) for n in range(1000)}
    for name in names:
        arena.create(name)
    found = arena.listdir()
    assert len(found) == len(names)
    assert set(found) == names


def test_scandir(arena: shmlock.Arena) -> None:
    """Entries know what they are, and are paths."""
    arena.makedirs("d/sub")
    arena.create("d/file")
    with arena.scandir("d") as entries:
        found = {entry.name: entry for entry in entries}
    assert set(found) == {"sub", "file"}
    assert found["sub"].path == "d/sub"
    assert found["sub"].is_dir()
    assert not found["sub"].is_file()
    assert found["file"].is_file()
    assert not found["file"].is_symlink()
    assert found["file"].inode() == arena.stat("d/file").st_ino
    assert found["file"].stat() == arena.stat(found["file"])
    assert repr(found["file"]) == "<Entry 'file'>"
    entries = arena.scandir("d")
    entries.close()
    assert list(entries) == []
    assert {entry.path for entry in arena.scandir(b"d")} == {b"d/sub", b"d/file"}
    assert {entry.path for entry in arena.scandir()} == {"/d"}


def test_what_lasts_is_listed_exactly_once(arena: shmlock.Arena) -> None:
    """While another thread makes and removes names all the time."""
    arena.mkdir("d")
    lasting = {f"keep{n}" for n in range(60)}
    for name in lasting:
        arena.create(f"d/{name}")
    done = threading.Event()
    rounds = 0

    def churn() -> None:
        nonlocal rounds
        while not done.is_set():
            for n in range(40):
                arena.create(f"d/new{n}")
            for n in range(40):
                arena.unlink(f"d/new{n}")
            rounds += 1

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        listed = 0
        while rounds < 10 or listed < 50:
            found = [name for name in arena.listdir("d") if name.startswith("keep")]
            listed += 1
            assert sorted(found) == sorted(lasting)
            assert thread.is_alive()
    finally:
        done.set()
        thread.join()
