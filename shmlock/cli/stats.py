"""``shmlock stats``: how full an arena is, and what was counted in it."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from . import _output


def add_parser(subparsers: Any) -> None:
    """Add this command."""
    parser = subparsers.add_parser(
        "stats",
        help="usage and counters of an arena",
        description="Print how full an arena is, and its counters since it was made.",
    )
    parser.add_argument("arena", metavar="ARENA")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print usage and counters."""
    import shmlock

    if not args.json:
        _output.need_tables()
    with shmlock.attach(args.arena, readonly=True) as arena:
        stats = arena.stats()
    values = {
        field.name: getattr(stats, field.name)
        for field in dataclasses.fields(stats)
        if field.name != "counters"
    }
    if args.json:
        _output.print_json({**values, "counters": dict(stats.counters)})
        return 0
    rows = [(name.replace("_", " "), value) for name, value in values.items() if name != "name"]
    _output.print_table(("USAGE", "VALUE"), rows, right=("VALUE",))
    print()
    _output.print_table(("COUNTER", "SUM"), stats.counters.items(), right=("SUM",))
    return 0
