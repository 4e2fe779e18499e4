"""What every command prints with: messages, JSON, tables, and text that is safe for a terminal."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterable, Sequence

_EXTRA = "pip install 'shmlock-vfs[cli]'"
_WIDE = 10_000  # columns: never fold a name; a terminal can do that and it can still be copied


class UserError(Exception):
    """Something to tell the user in one line; exit status 1."""


def prepare() -> None:
    """Make stdout and stderr take any text: names are bytes and need not fit the encoding."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def complain(message: str) -> None:
    """Print one line on stderr."""
    if sys.stderr is None:
        return
    with contextlib.suppress(OSError):  # nobody reads it; the exit status still says it
        print("shmlock:", printable(" ".join(message.split())), file=sys.stderr, flush=True)


def describe(error: BaseException) -> str:
    """Return what an exception has to say, without its class and errno."""
    if isinstance(error, OSError) and error.strerror:
        where = [os.fsdecode(name) for name in (error.filename, error.filename2) if name]
        return ": ".join([*[" -> ".join(where)] * bool(where), str(error.strerror)])
    return str(error) or type(error).__name__


def printable(text: str | bytes) -> str:
    r"""Return text with whatever a terminal might act on, or cannot show, written as ``\x1b``."""
    text = os.fsdecode(text)
    return text if text.isprintable() else "".join(map(_printable_character, text))


def _printable_character(character: str) -> str:
    if character.isprintable():
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was no UTF-8, see os.fsdecode
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def print_json(value: object) -> None:
    """Print one JSON value; bytes that are no UTF-8 come out as ``os.fsdecode`` has them."""
    print(json.dumps(value, indent=2))


def need_tables() -> None:
    """Fail early, before any work is done, when tables cannot be printed.

    Raises:
        UserError: rich is not installed.
    """
    try:
        import rich.table  # noqa: F401
    except ImportError:
        raise UserError(f"tables need the package rich: {_EXTRA} (or use --json)") from None


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], right: Iterable[str] = ()
) -> None:
    """Print a table in the manner of lslocks(8): a heading, aligned columns, no lines.

    Args:
        columns: headings.
        rows: cells, as many as there are columns; None is printed as ``-``.
        right: headings of the columns to be aligned to the right.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False, width=_WIDE)
    table = Table(box=None, pad_edge=False, header_style="bold")
    numbers = frozenset(right)
    for name in columns:
        table.add_column(Text(name), justify="right" if name in numbers else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text("-" if cell is None else printable(str(cell))) for cell in row))
    with console.capture() as captured:
        console.print(table)
    # Trailing blanks are only padding; and sys.stdout, unlike rich, never fails on a character.
    for line in captured.get().splitlines():
        print(line.rstrip())


def size(count: int) -> str:
    """Return a number of bytes as ``64.0 MiB``."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"


def age(seconds: float | None) -> str | None:
    """Return a span as ``0.25s``, ``42s``, ``3m07s``, ``2h05m`` or ``4d03h``."""
    if seconds is None:
        return None
    seconds = max(seconds, 0.0)
    if seconds < 10:
        return f"{seconds:.2f}s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return ``1 task``, ``2 tasks``."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"
