"""What calls return: small immutable records, copied out of the arena."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


class StatResult(NamedTuple):
    """What ``Arena.stat()`` tells; the fields of ``os.stat_result`` that an arena has."""

    st_mode: int
    """Type and permissions, for the functions of the ``stat`` module."""
    st_ino: int
    """Number of the inode; never used again for another one."""
    st_nlink: int
    """Links to it."""
    st_size: int
    """Length of a symlink's target in bytes; else 0."""


class Owner(NamedTuple):
    """Who holds a lock."""

    pid: int
    tid: int
    """Thread, as ``threading.get_native_id()`` has it."""
    since: float | None
    """When it was taken, as ``time.time()`` (good to about 10 ms); None when not known."""


class Fault(str):
    """One broken invariant, found by ``Arena.check()``: a line of text, and what it is made of."""

    __slots__ = ("cell", "expected", "found", "invariant", "text")

    invariant: int
    cell: int
    found: int
    expected: int
    text: str
    """What the invariant says."""

    def __new__(cls, invariant: int, cell: int, found: int, expected: int, text: str) -> "Fault":
        """Made by ``Arena.check()``."""
        line = f"I{invariant} cell {cell}: {text} (found {found}, expected {expected})"
        self = super().__new__(cls, line)
        self.invariant = invariant
        self.cell = cell
        self.found = found
        self.expected = expected
        self.text = text
        return self

    def __getnewargs__(self) -> tuple[int, int, int, int, str]:  # type: ignore[override]
        """For pickle."""
        return self.invariant, self.cell, self.found, self.expected, self.text

    def _asdict(self) -> dict[str, int | str]:
        return {
            "invariant": self.invariant,
            "cell": self.cell,
            "found": self.found,
            "expected": self.expected,
            "text": self.text,
        }


@dataclass(frozen=True)
class Stats:
    """An arena's size, what of it is in use, and what was counted since it was made."""

    name: str
    locking: str
    size: int
    """Bytes of shared memory."""
    tasks: int
    """Task slots."""
    live_tasks: int
    """Task slots taken by a living thread."""
    dentries: int
    """Capacity in cells: names with their inodes, and what is below."""
    used: int
    """Cells in use; the rest is free."""
    positive: int
    """Names that point to an inode."""
    negative: int
    """Names kept though nothing has them; taken away when room is needed."""
    locked: int
    """Names locked at this instant."""
    blocks: int
    """Cells that list a directory's names."""
    texts: int
    """Cells with the text of long names and of symlinks."""
    stock: int
    """Cells that tasks have set aside for their next names."""
    inodes: int
    directories: int
    counters: Mapping[str, int]
    """By name, summed over all tasks that there ever were."""
