"""Listings of a directory: the entries that ``listdir`` and ``scandir`` give."""

import stat
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Self

    from shmlock._lib import Build, CData
    from shmlock.namespace import Namespace
    from shmlock.stats import StatResult

AnyPath = TypeVar("AnyPath", str, bytes)

_HEAD = struct.Struct("=QIB")  # see shmlock_listdir() in csrc/shmlock.h
_FIRST_BYTES = 16384


class RawEntry(NamedTuple):
    """One entry as it was found."""

    ino: int
    mode: int


def read(build: "Build", pointer: "CData", raw: bytes) -> int | dict[bytes, RawEntry]:
    """All entries of a directory by name, or -errno.

    A name that was removed and made again meanwhile may be met twice: the last one counts.
    """
    size = _FIRST_BYTES
    while True:
        buffer = build.ffi.new("char[]", size)
        needed = build.lib.shmlock_listdir(pointer, raw, buffer, size)
        if needed < 0:
            return needed
        if needed <= size:
            return _parse(build.ffi.buffer(buffer, needed)[:])
        size = needed + needed // 4  # it may have grown again by then


def _parse(data: bytes) -> dict[bytes, RawEntry]:
    entries = {}
    at = 0
    while at < len(data):
        ino, mode, length = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        entries[data[at : at + length]] = RawEntry(ino, mode)
        at += length
    return entries


class Entry(Generic[AnyPath]):
    """An entry of a directory, with ``os.DirEntry``'s manners.

    What it is, is known without asking the arena again, and is as of the listing.
    """

    __slots__ = ("_arena", "_ino", "_mode", "name", "path")

    name: AnyPath
    """The entry's name."""
    path: AnyPath
    """The path given to ``scandir()`` joined with the name."""

    def __init__(self, arena: "Namespace", name: AnyPath, path: AnyPath, raw: RawEntry) -> None:
        """Made by ``Arena.scandir()``."""
        self._arena = arena
        self._ino, self._mode = raw
        self.name = name
        self.path = path

    def inode(self) -> int:
        """Number of the inode, not followed if it is a symlink."""
        return self._ino

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Whether it is a directory, or a symlink to one."""
        return stat.S_ISDIR(self._type(follow_symlinks))

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Whether it is a regular file, or a symlink to one."""
        return stat.S_ISREG(self._type(follow_symlinks))

    def is_symlink(self) -> bool:
        """Whether it is a symlink."""
        return stat.S_ISLNK(self._mode)

    def stat(self, *, follow_symlinks: bool = True) -> "StatResult":
        """What ``Arena.stat()`` (or ``lstat()``) says about the path now."""
        return self._arena.stat(self.path) if follow_symlinks else self._arena.lstat(self.path)

    def _type(self, follow: bool) -> int:
        if not (follow and self.is_symlink()):
            return self._mode
        try:
            return self._arena.stat(self.path).st_mode
        except FileNotFoundError:  # a dangling symlink, as os.DirEntry has it
            return 0

    def __fspath__(self) -> AnyPath:
        """The path, so that an entry can be passed where a path is wanted."""
        return self.path

    def __repr__(self) -> str:
        """As ``os.DirEntry``."""
        return f"<Entry {self.name!r}>"


class Scan(Generic[AnyPath]):
    """The iterator that ``Arena.scandir()`` returns; a context manager, as that of ``os``.

    The entries are those of the moment of the call; nothing is locked meanwhile.
    """

    def __init__(self, entries: Iterator[Entry[AnyPath]]) -> None:
        """Made by ``Arena.scandir()``."""
        self._entries: Iterator[Entry[AnyPath]] = entries

    def __iter__(self) -> "Self":
        """Itself."""
        return self

    def __next__(self) -> Entry[AnyPath]:
        """The next entry."""
        return next(self._entries)

    def close(self) -> None:
        """Forget the rest."""
        self._entries = iter(())

    def __enter__(self) -> "Self":
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()
