"""``shmlock rm``: remove an arena, or all that nobody uses."""

from __future__ import annotations

import argparse
import errno
from typing import Any

from . import _output, _process


def add_parser(subparsers: Any) -> None:
    """Add this command."""
    parser = subparsers.add_parser(
        "rm",
        help="remove an arena, or all that nobody uses",
        usage="shmlock rm [-h] [--force] ARENA...\n"
        "       shmlock rm [-h] [--json] --stale [ARENA...]",
        description="Remove arenas.",
    )
    parser.add_argument("arenas", metavar="ARENA", nargs="*")
    parser.add_argument(
        "--force",
        action="store_true",
        help="even if it is in use (its users get ESTALE on new locks), damaged or foreign",
    )
    parser.add_argument(
        "--stale",
        action="store_true",
        help="remove every arena (or those of the arenas named) without a live task, and what "
        "creators that died half-way have left",
    )
    parser.add_argument("--json", action="store_true", help="with --stale: print one JSON object")
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Remove what was asked for."""
    if args.stale:
        if args.force:
            args.parser.error("--stale never takes what is in use: not with --force")
        return _remove_stale(args)
    if args.json:
        args.parser.error("--json only goes with --stale")
    if not args.arenas:
        args.parser.error("which arena? (or --stale)")
    return max([_remove(name, force=args.force) for name in args.arenas])


def _remove(name: str, *, force: bool) -> int:
    import shmlock

    try:
        shmlock.unlink(name, force=force)
    except (OSError, ValueError) as error:
        _output.complain(_explained(name, error))
        return 1
    return 0


def _explained(name: str, error: OSError | ValueError) -> str:
    import shmlock

    if isinstance(error, shmlock.ArenaMismatch):
        return _output.describe(error).replace("force=True", "--force")
    if isinstance(error, OSError) and error.errno == errno.EBUSY:
        users = ", ".join(_process.named(pid) for pid in _users(name))
        return f"{name}: in use by {users or 'somebody'}; end that, or use --force"
    return _output.describe(error)


def _users(name: str) -> list[int]:
    """Return the processes that have live tasks in an arena, as far as it can be told."""
    import shmlock
    from shmlock import inspect

    try:
        with shmlock.attach(name, any_owner=True, readonly=True) as arena:
            tasks = inspect.snapshot(arena).tasks
    except (OSError, ValueError):
        return []
    return sorted({task.pid for task in tasks if task.state == "live"})


def _remove_stale(args: argparse.Namespace) -> int:
    import shmlock
    from shmlock import segment

    removed: list[str] = []
    kept: list[dict[str, str]] = []
    for name in args.arenas or shmlock.arenas():
        try:
            shmlock.unlink(name)  # never one with live tasks: looked up with attaching held off
        except FileNotFoundError:
            pass
        except OSError as error:
            kept.append({"name": name, "reason": _explained(name, error)})
        else:
            removed.append(name)
    leftovers = segment.remove_leftovers()
    if args.json:
        _output.print_json({"removed": removed, "kept": kept, "leftovers": leftovers})
        return 0
    for name in removed:
        print(_output.printable(f"removed {name}"))
    for each in kept:
        print(_output.printable(f"kept {each['reason']}"))
    if leftovers:
        print(f"removed {_output.counted(leftovers, 'half-made arena')} of dead creators")
    return 0
