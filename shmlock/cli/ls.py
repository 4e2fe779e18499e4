"""``shmlock ls``: the arenas on this machine, also those that cannot be used from here."""

from __future__ import annotations

import argparse
from typing import Any

from . import _objects, _output


def add_parser(subparsers: Any) -> None:
    """Add this command."""
    parser = subparsers.add_parser(
        "ls",
        help="the arenas on this machine",
        description="List the arenas on this machine, also damaged and foreign ones.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the arenas."""
    if not args.json:
        _output.need_tables()
    found = _objects.arenas()
    leftovers = _objects.leftovers()
    if args.json:
        _output.print_json({"arenas": found, "leftovers": leftovers})
        return 0
    rows = [
        (
            each["name"],
            _output.size(each["size"]),
            None if each["used"] is None else f"{each['used']}/{each['dentries']}",
            each["live_tasks"],
            each["locking"],
            each["build"],
            each["state"],
        )
        for each in found
    ]
    _output.print_table(
        ("NAME", "SIZE", "DENTRIES", "TASKS", "LOCKING", "BUILD", "STATE"),
        rows,
        right=("SIZE", "DENTRIES", "TASKS"),
    )
    for each in found:
        if each["detail"]:
            print(_output.printable(f"{each['name']}: {each['detail']}"))
    for each in leftovers:
        print(
            _output.printable(
                f"{each['name']}: {_output.size(each['size'])} left by a creator that died; "
                "shmlock rm --stale removes it"
            )
        )
    return 0
