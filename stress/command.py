# SPDX-License-Identifier: MIT
"""The command line: `shmlock stress`, also `python -m shmlock.stress`.

Exit status: 0 passed, 1 a rule was broken, 2 usage, 3 could not run, or the run did not get to
where it was sent; 130 and 143 after Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from shmlock import debug

from . import harness, report
from . import scenario as scenarios
from .plan import Plan
from .result import INTERRUPTED, NOT_REACHED, Result, status_of, verdict

_SECONDS = 10.0
_MOST_PROCS = 1024
_MOST_SECONDS = 7 * 86400.0
_TERMINATED = 128 + signal.SIGTERM


class _Terminated(KeyboardInterrupt):
    """SIGTERM; ends a run in the same good order as Ctrl-C."""


def add_parser(subparsers: Any) -> None:
    """Add `stress` to the parsers of `shmlock`."""
    parser = subparsers.add_parser(
        "stress",
        help="the main job: real processes, verified",
        **_description(),
    )
    _add_arguments(parser)


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m shmlock.stress`."""
    parser = argparse.ArgumentParser(prog="shmlock stress", **_description())
    _add_arguments(parser)
    try:
        return run(parser.parse_args(argv))
    except SystemExit as end:  # argparse
        return end.code if isinstance(end.code, int) else 1


def _description() -> dict[str, Any]:
    return {
        "description": "Let real processes contend for names in an arena of its own, and judge "
        "every answer. Without a SCENARIO: a mix of everything.",
        "epilog": "Exit status: 0 pass, 1 a rule was broken, 2 usage, 3 could not run or did not "
        "reach what it aims at.",
        "allow_abbrev": False,
    }


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scenario", metavar="SCENARIO", nargs="*", help="see --list")
    parser.add_argument("--all", action="store_true", help="every scenario, one after the other")
    parser.add_argument("--list", action="store_true", help="tell the scenarios, run none")
    parser.add_argument(
        "--procs",
        metavar="N",
        type=_number(int, 1, _MOST_PROCS),
        help="worker processes (as many as cores, at least 2)",
    )
    parser.add_argument(
        "--seconds",
        metavar="S",
        type=_number(float, 0.1, _MOST_SECONDS),
        default=_SECONDS,
        help=f"length of each scenario ({_SECONDS:g})",
    )
    parser.add_argument(
        "--seed",
        metavar="N",
        type=_number(int, 0, 2**63 - 1),
        help="the workers' random choices (another one each time)",
    )
    parser.add_argument(
        "--locking",
        choices=("inode", "both", "dentry"),
        default="dentry",
        help="how directories are locked (dentry)",
    )
    parser.add_argument(
        "--latency-us",
        metavar="U",
        type=_number(float, 0, 1e6),
        help="each filesystem operation sleeps U microseconds with its locks held",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--keep", action="store_true", help="leave the arena behind, to be looked at"
    )
    parser.add_argument(
        "--debug", action="store_true", help="use the debug build: assertions, a judge in the core"
    )
    parser.add_argument(
        "--perturb",
        metavar="PPM",
        type=_number(int, 0, 1_000_000),
        default=0,
        help="debug build: chance in a million of a delay at each of its pause points",
    )
    parser.add_argument(
        "--break-rule",
        metavar="RULE",
        help="debug build: switch a rule off; the run has to fail",
    )
    parser.set_defaults(run=run, parser=parser)


def _number(kind: Callable[[str], Any], low: float, high: float) -> Callable[[str], Any]:
    """A type for argparse: a number from low to high."""

    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low:g} to {high:g}")
        return value

    return convert


def run(args: argparse.Namespace) -> int:
    """Run what the arguments say; returns the exit status."""
    known = scenarios.load()
    if args.list:
        _list(known, as_json=args.json)
        return 0
    names = list(known) if args.all else args.scenario or [scenarios.DEFAULT]
    for name in names:
        if name not in known:
            args.parser.error(f"no scenario {name!r}; there are: {', '.join(known)}")
    if args.break_rule is not None:
        _check_rule(args)
    plans = [_plan(args, name) for name in names]
    try:
        with _sigterm_interrupts():
            results = [_one(plan, known[plan.scenario], args) for plan in plans]
    except harness.CouldNotRunError as error:
        report.error(str(error))
        return NOT_REACHED
    except _Terminated:
        report.error("ended by SIGTERM; the workers are gone, no verdict")
        return _TERMINATED
    except KeyboardInterrupt:
        report.error("interrupted; the workers are gone, no verdict")
        return INTERRUPTED
    if args.json:
        _print_json(results)
    elif len(results) > 1:
        _summary(results)
    return status_of(results)


def _plan(args: argparse.Namespace, scenario: str) -> Plan:
    return Plan(
        scenario=scenario,
        procs=args.procs or max(2, len(os.sched_getaffinity(0))),
        seconds=args.seconds,
        seed=secrets.randbits(32) if args.seed is None else args.seed,
        locking=args.locking,
        latency_us=args.latency_us,
        debug=args.debug or args.break_rule is not None or args.perturb > 0,
        break_rule=args.break_rule,
        perturb_ppm=args.perturb,
    )


def _one(plan: Plan, scenario: scenarios.Scenario, args: argparse.Namespace) -> Result:
    if not args.json:
        print(report.heading(plan, scenario), flush=True)
    with report.progress(plan, quiet=args.json) as progress:
        result = harness.run(plan, scenario, progress, keep=args.keep)
    if not args.json:
        report.show(result)
    elif not result.passed:
        report.error(f"failed; repeat: {plan.command()}")
    return result


def _check_rule(args: argparse.Namespace) -> None:
    rules = debug.rules()
    if args.break_rule not in rules:
        args.parser.error(f"no rule {args.break_rule!r}; there are: {', '.join(rules)}")


def _list(known: dict[str, scenarios.Scenario], *, as_json: bool) -> None:
    if as_json:
        listed = [
            {"name": each.name, "rule": each.rule, "shared": each.shared} for each in known.values()
        ]
        print(json.dumps(listed, indent=2))
        return
    for each in known.values():
        print(f"{each.name}\n  rule: {each.rule}\n  shared: {each.shared}")


def _print_json(results: list[Result]) -> None:
    objects = [result.as_json() for result in results]
    if len(objects) == 1:
        print(json.dumps(objects[0], indent=2))
        return
    passed = all(result.passed for result in results)
    print(json.dumps({"verdict": verdict(passed), "runs": objects}, indent=2))


def _summary(results: list[Result]) -> None:
    failed = [result.plan.scenario for result in results if not result.passed]
    print()
    print(f"{len(results)} scenarios, {len(failed)} failed: {', '.join(failed) or 'none'}")
    print("FAIL" if failed else "PASS")


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM, too, end the workers and remove the arena."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
