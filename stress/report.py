# SPDX-License-Identifier: MIT
"""What people see: one line of progress while it runs, a table and one word at the end.

With rich when it is installed and somebody looks; plain text otherwise.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from .harness import Progress
from .plan import Plan
from .result import Result, shortened
from .scenario import Scenario

_PLAIN_S = 2.0  # between two plain lines of progress
_WIDTH = 100


def error(text: str) -> None:
    """One line about what the user did wrong or what could not be done."""
    print(f"shmlock stress: {text}", file=sys.stderr)


def heading(plan: Plan, scenario: Scenario) -> str:
    """What is about to run."""
    return (
        f"{scenario.name}: {scenario.rule}\n"
        f"{plan.procs} processes, {plan.seconds:g} s, seed {plan.seed}, locking {plan.locking}"
        + (f", latency {plan.latency_us:g} us" if plan.latency_us is not None else "")
        + (", debug build" if plan.debug else "")
        + (f", WITHOUT the rule {plan.break_rule}" if plan.break_rule else "")
    )


@contextmanager
def progress(plan: Plan, *, quiet: bool) -> Iterator[Progress]:
    """Something to pass to harness.run(); writes to stderr.

    Args:
        plan: the run.
        quiet: only for a terminal, not into a file.
    """
    stream = sys.stderr
    if stream.isatty():
        bar = _rich_bar(stream)
        if bar is not None:
            with bar:
                yield _on_bar(bar, plan)
            return
    yield _silent if quiet and not stream.isatty() else _PlainLines(plan, stream)


def _silent(seconds: float, ops: int, in_flight: int) -> None:
    pass


def _status(plan: Plan, seconds: float, ops: int, in_flight: int) -> str:
    rate = ops / seconds if seconds else 0
    return f"{ops:,} calls, {rate:,.0f}/s, {in_flight} in flight"


class _PlainLines:
    """Now and then a line."""

    def __init__(self, plan: Plan, stream: TextIO) -> None:
        self._plan = plan
        self._stream = stream
        self._next = _PLAIN_S

    def __call__(self, seconds: float, ops: int, in_flight: int) -> None:
        if seconds >= self._next:
            self._next = seconds + _PLAIN_S
            status = _status(self._plan, seconds, ops, in_flight)
            print(f"{seconds:.0f} of {self._plan.seconds:g} s: {status}", file=self._stream)


def _rich_bar(stream: TextIO) -> Any:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar
    except ImportError:
        return None
    return Bar(
        TextColumn("{task.fields[plan].scenario}"),
        BarColumn(20),
        TextColumn("{task.fields[status]}"),
        console=Console(file=stream),
        transient=True,
    )


def _on_bar(bar: Any, plan: Plan) -> Progress:
    task = bar.add_task("", total=plan.seconds, plan=plan, status="starting")

    def tell(seconds: float, ops: int, in_flight: int) -> None:
        status = _status(plan, seconds, ops, in_flight)
        bar.update(task, completed=seconds, status=status)

    return tell


def show(result: Result) -> None:
    """Print the table, the violations, the word, and on failure the command that repeats it."""
    _table(list(_rows(result)))
    for note in result.notes:
        print(f"note: {note}")
    for violation in shortened([*result.violations, *result.missed]):
        print("!!! " + violation.rstrip().replace("\n", "\n    "))
    if result.passed:
        print("PASS")
    else:
        print(f"repeat: {result.plan.command()}")
        print("FAIL")


def _rows(result: Result) -> Iterator[tuple[str, str]]:
    yield "operations", f"{result.ops:,} in {result.took:.1f} s: {result.ops_per_s:,.0f}/s"
    if result.worker_ops:
        fewest, most = min(result.worker_ops), max(result.worker_ops)
        yield "by worker", f"fewest {fewest:,}, most {most:,}"
    named = result.as_json()
    yield "calls", _counts(named["by_op"])
    yield "errors", _counts(named["by_errno"])
    yield "in flight", f"up to {result.max_in_flight} names locked at once in one directory"
    yield "coverage", _counts(result.coverage)


def _counts(counts: Mapping[str, int]) -> str:
    """Largest first; zeroes tell nothing to people."""
    largest = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {n:,}" for name, n in largest if n) or "none"


def _table(rows: list[tuple[str, str]]) -> None:
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        _plain_table(rows)
        return
    console = Console()
    if not console.is_terminal:
        _plain_table(rows)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for label, text in rows:
        table.add_row(label, Text(text))
    console.print(table)


def _plain_table(rows: list[tuple[str, str]]) -> None:
    margin = max(len(label) for label, _ in rows) + 2
    for label, text in rows:
        lines = textwrap.wrap(text, _WIDTH - margin) or [""]
        print(f"{label:<{margin}}{lines[0]}")
        for line in lines[1:]:
            print(" " * margin + line)
