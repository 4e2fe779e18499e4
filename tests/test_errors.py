"""Errors: the right class with errno and names, that survive pickling."""

import copy
import errno
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import shmlock
from shmlock import _lib

OWN = (shmlock.ArenaMismatch, shmlock.ArenaDamaged, shmlock.DeadlockError)


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("names", [(), ("a",), (b"a", None, "b")])
def test_own_errors_pickle(kind: type[OSError], names: tuple[Any, ...]) -> None:
    error = kind(errno.EDEADLK, "text", *names)
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(other) is kind
        assert other.args == error.args
        assert (other.errno, other.strerror) == (errno.EDEADLK, "text")
        assert (other.filename, other.filename2) == (error.filename, error.filename2)
        assert str(other) == str(error)


@pytest.mark.parametrize("kind", OWN)
def test_own_errors_are_oserrors(kind: type[Exception]) -> None:
    assert issubclass(kind, OSError)


CLASSES = {
    errno.ENOENT: FileNotFoundError,
    errno.EEXIST: FileExistsError,
    errno.ENOTDIR: NotADirectoryError,
    errno.EISDIR: IsADirectoryError,
    errno.EPERM: PermissionError,
    errno.ETIMEDOUT: TimeoutError,
    errno.EDEADLK: shmlock.DeadlockError,
    errno.EUCLEAN: shmlock.ArenaDamaged,
    errno.EAGAIN: BlockingIOError,
    **dict.fromkeys(
        (
            *(errno.ENOTEMPTY, errno.EBUSY, errno.EINVAL, errno.ENAMETOOLONG, errno.ELOOP),
            *(errno.ENOSPC, errno.ESTALE, errno.ENOTRECOVERABLE, errno.ENOLCK, errno.EROFS),
            *(errno.ENOMEM, errno.ENOSYS),
        ),
        OSError,
    ),
}


@pytest.mark.parametrize("code", CLASSES, ids=errno.errorcode.get)
@pytest.mark.parametrize("path", ["p", b"p", Path("p"), None])
def test_each_errno_has_its_class(arena: shmlock.Arena, code: int, path: Any) -> None:
    """That of os; with the path as it was given, and without one the arena's name."""
    error = arena._failure(-code, path)
    assert type(error) is CLASSES[code]
    assert isinstance(error, OSError)
    assert error.errno == code
    assert error.filename == (arena.name if path is None else os.fspath(path))
    assert error.strerror
    other = pickle.loads(pickle.dumps(error))
    assert (type(other), other.args, str(other)) == (type(error), error.args, str(error))


def test_two_paths(arena: shmlock.Arena) -> None:
    error = _lib.failure(arena._build, arena._pointer, arena.name, -errno.EXDEV, Path("a"), b"b")
    assert isinstance(error, OSError)
    assert (error.filename, error.filename2) == ("a", b"b")
    assert pickle.loads(pickle.dumps(error)).filename2 == b"b"


def test_closed_is_a_value_error(arena: shmlock.Arena) -> None:
    assert type(arena._failure(-errno.EBADF)) is ValueError


def test_a_real_error_pickles(arena: shmlock.Arena) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        arena.unlink(Path("no/such"))
    other = pickle.loads(pickle.dumps(caught.value))
    assert (type(other), other.filename) == (FileNotFoundError, "no/such")


# ---- Logging ------------------------------------------------------------------------------------


def test_a_deadlock_is_logged_once(arena: shmlock.Arena, caplog: pytest.LogCaptureFixture) -> None:
    lock = arena.lock("a")
    with (
        caplog.at_level(logging.WARNING, "shmlock"),
        lock,
        pytest.raises(shmlock.DeadlockError) as caught,
    ):
        lock.acquire()
    (record,) = caplog.records
    assert record.name == "shmlock"
    assert arena.name in record.getMessage()
    assert caught.value.strerror in record.getMessage()


def test_a_poisoned_arena_is_logged_once(
    arena: shmlock.Arena, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "shmlock"):
        for _ in range(3):
            assert "poisoned" in str(arena._failure(-errno.ENOTRECOVERABLE, "a"))
    assert len([r for r in caplog.records if "poisoned" in r.getMessage()]) == 1


# ---- The package --------------------------------------------------------------------------------


def test_all_is_sorted_and_complete() -> None:
    assert sorted(shmlock.__all__) == sorted(set(shmlock.__all__))
    assert shmlock.__all__ == sorted(shmlock.__all__, key=sort_key)
    assert all(hasattr(shmlock, name) for name in shmlock.__all__)


def sort_key(name: str) -> tuple[int, str]:
    """Constants, classes, the rest: as isort."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def test_elsewhere_the_import_fails_with_one_sentence() -> None:
    code = "import sys; sys.platform = 'darwin'; import shmlock"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: shmlock works on Linux only")


def test_versions() -> None:
    assert shmlock.__version__.count(".") == 2
    assert isinstance(shmlock.LAYOUT_VERSION, int)
    assert shmlock.LAYOUT_VERSION >= 1
