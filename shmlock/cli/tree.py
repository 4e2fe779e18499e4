"""``shmlock tree``: the namespace of an arena, with marks at what is locked or being removed.

Nothing is locked while it walks: on a live arena each directory is shown as it was at some moment.
It keeps one listing per level and does not recurse, so no depth is too much for it.
"""

from __future__ import annotations

import argparse
import json
import posixpath
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import _marks, _output

if TYPE_CHECKING:
    import shmlock

_LINES = ("├── ", "└── ", "│   ", "    ")
_ASCII = ("|-- ", "`-- ", "|   ", "    ")
_ENTER, _LEAVE = True, False


@dataclass(frozen=True)
class _Node:
    name: str
    path: str
    kind: str | None  # None: a locked name that nothing has
    ino: int | None


def add_parser(subparsers: Any) -> None:
    """Add this command."""
    parser = subparsers.add_parser(
        "tree",
        help="the namespace, with lock and S_DYING marks",
        description="Print the names in an arena, directories first, with marks at what is "
        "locked or being removed (S_DYING).",
    )
    parser.add_argument("arena", metavar="ARENA")
    parser.add_argument("path", metavar="PATH", nargs="?", default="/", help="where to start")
    parser.add_argument("--json", action="store_true", help="print one JSON object, nested")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the tree."""
    import shmlock

    with shmlock.attach(args.arena, readonly=True) as arena:
        marks = _marks.by_path(arena)
        steps = _walk(arena, _top(arena, args.path), marks)
        if args.json:
            _print_json(steps, marks)
        else:
            _print_text(steps, marks)
    return 0


def _top(arena: shmlock.Arena, path: str) -> _Node:
    found = arena.lstat(path)
    absolute = posixpath.normpath("/" + path.lstrip("/"))
    return _Node(absolute, absolute, _marks.kind(found.st_mode), found.st_ino)


def _walk(
    arena: shmlock.Arena, top: _Node, marks: _marks.Marks
) -> Iterator[tuple[bool, _Node, bool]]:
    """Yield (enter or leave, node, whether it is the last of its directory), depth first."""
    absent = _absent(marks)
    todo = [iter([(top, True)])]
    inside: list[tuple[_Node, bool]] = []
    while todo:
        step = next(todo[-1], None)
        if step is None:
            todo.pop()
            if inside:
                yield (_LEAVE, *inside.pop())
            continue
        node, last = step
        yield _ENTER, node, last
        inside.append(step)
        children = _children(arena, node, absent) if node.kind == "directory" else []
        todo.append(iter([(child, child is children[-1]) for child in children]))


def _absent(marks: _marks.Marks) -> dict[str, list[str]]:
    """Return the names that are marked, by the path of their directory."""
    names: dict[str, list[str]] = {}
    for path in marks:
        directory, name = posixpath.split(path)
        if name:
            names.setdefault(directory, []).append(name)
    return names


def _children(
    arena: shmlock.Arena, node: _Node, absent: Mapping[str, Sequence[str]]
) -> list[_Node]:
    try:
        entries = list(arena.scandir(node.path))
    except (FileNotFoundError, NotADirectoryError):
        entries = []  # removed meanwhile
    children = [
        _Node(
            entry.name, posixpath.join(node.path, entry.name), _marks.kind_of(entry), entry.inode()
        )
        for entry in entries
    ]
    there = {child.name for child in children}
    for name in absent.get(node.path, ()):
        if name not in there:
            children.append(_Node(name, posixpath.join(node.path, name), None, None))
    return sorted(children, key=lambda child: (child.kind != "directory", child.name))


def _print_text(steps: Iterator[tuple[bool, _Node, bool]], marks: _marks.Marks) -> None:
    branch, corner, line, blank = _LINES if _can_print(_LINES) else _ASCII
    before: list[str] = []
    top = True
    counts: dict[str | None, int] = {}
    for enter, node, last in steps:
        if not enter:
            if before:
                before.pop()
            continue
        lead = "" if top else "".join(before) + (corner if last else branch)
        print(lead + _text(node, marks))
        if not top:
            before.append(blank if last else line)
            counts[node.kind] = counts.get(node.kind, 0) + 1
        top = False
    directories = counts.pop("directory", 0)
    missing = counts.pop(None, 0)
    print(
        f"\n{_output.counted(directories, 'directory', 'directories')}, "
        f"{_output.counted(sum(counts.values()), 'file')}"
        + (f", {_output.counted(missing, 'locked name')} that nothing has" if missing else "")
    )


def _can_print(texts: Sequence[str]) -> bool:
    try:
        "".join(texts).encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _text(node: _Node, marks: _marks.Marks) -> str:
    name = _output.printable(node.name)
    if node.kind == "directory" and not name.endswith("/"):
        name += "/"
    notes = [_marks.text(mark) for mark in marks.get(node.path, ())]
    if node.kind is None:
        notes.append("no such entry")
    return f"{name}  [{_output.printable('; '.join(notes))}]" if notes else name


def _print_json(steps: Iterator[tuple[bool, _Node, bool]], marks: _marks.Marks) -> None:
    """Print nested objects, each line as it comes: json.dumps() recurses, and gives up."""
    depth = 0
    first = True
    for enter, node, _last in steps:
        if not enter:
            depth -= 1
            print("]}" if node.kind == "directory" else "}", end="")
            first = False
            continue
        if depth:
            print("" if first else ",", end="\n" + " " * min(depth, 60))
        print(json.dumps(_record(node, marks))[:-1], end="")
        if node.kind == "directory":
            print(', "children": [', end="")
        depth += 1
        first = True
    print()


def _record(node: _Node, marks: _marks.Marks) -> dict[str, Any]:
    found = marks.get(node.path, ())
    return {
        "name": node.name,
        "type": node.kind,
        "ino": node.ino,
        "locks": [_marks.record(mark) for mark in found],
        "dying": any(mark.hold.kind == _marks.DYING for mark in found),
    }
