"""``shmlock check``: does an arena keep its invariants?"""

from __future__ import annotations

import argparse
from typing import Any

from . import _output


def add_parser(subparsers: Any) -> None:
    """Add this command."""
    parser = subparsers.add_parser(
        "check",
        help="look for broken invariants",
        description="Walk every structure of an arena and print the invariants that do not hold. "
        "Changes nothing, and may be used while the arena is in use.",
        epilog="Exit status: 0 sound, 1 an invariant is broken (or the arena cannot be read).",
    )
    parser.add_argument("arena", metavar="ARENA")
    parser.add_argument(
        "--quiescent",
        action="store_true",
        help="nobody is using it: also no name may be locked and every task slot accounted for",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what is broken; 1 if anything is."""
    import shmlock

    with shmlock.attach(args.arena, readonly=True) as arena:
        faults = arena.check(quiescent=args.quiescent)
    if args.json:
        _output.print_json(
            {
                "arena": args.arena,
                "sound": not faults,
                "quiescent": args.quiescent,
                "faults": [fault._asdict() for fault in faults],
            }
        )
    elif faults:
        for fault in faults:
            print(_output.printable(str(fault)))
    else:
        print(f"{args.arena}: sound")
    return 1 if faults else 0
