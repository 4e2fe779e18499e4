"""The command line, ``shmlock`` or ``python -m shmlock``.

One module per command, each with ``add_parser(subparsers)`` and ``run(args) -> int``; what they
share is in the modules with an underscore.  `main` turns every error that a user can cause into
one line on stderr.

Exit status: 0, 1 an error (or a broken invariant), 2 usage, 130 after Ctrl-C, 141 when the reader
of the output has gone; `run` and `stress` have more of their own.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from . import _output, check, locks, ls, rm, run, stats, tree

__all__ = ["main"]

_COMMANDS = {
    "ls": ls,
    "tree": tree,
    "locks": locks,
    "stats": stats,
    "check": check,
    "rm": rm,
    "run": run,
}

_NOWHERE = logging.NullHandler()

_INTERRUPTED = 128 + 2
_BROKEN_PIPE = 128 + 13
_COULD_NOT_RUN = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Args:
        argv: the arguments after the program's name; None for those of this process.

    Returns:
        The exit status. Usage errors, ``--help`` and ``--version`` return like everything else.
    """
    _output.prepare()
    # Recoveries and the like are logged for programs; here one line per error is promised.
    logging.getLogger("shmlock").addHandler(_NOWHERE)
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _dispatch(words)
        if sys.stdout is not None:
            sys.stdout.flush()
    except SystemExit as end:  # argparse
        return end.code if isinstance(end.code, int) else 1
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return _BROKEN_PIPE
    except _output.UserError as error:
        _output.complain(str(error))
        return _error(words)
    except (OSError, ValueError) as error:
        _output.complain(_output.describe(error))
        _drop_output_if_broken()
        return _error(words)
    return status


def _error(words: Sequence[str]) -> int:
    """Return the status of an error: `stress` has another meaning for 1."""
    return _COULD_NOT_RUN if words[:1] == ["stress"] else 1


def _dispatch(words: list[str]) -> int:
    words, command = run.split_command(words)
    parser = _parser(words)
    args, unknown = parser.parse_known_args(words)
    if unknown:
        hint = " (write -- before COMMAND)" if words[0] == "run" else ""
        getattr(args, "parser", parser).error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    if command is not None:
        args.command = command
    run_command = getattr(args, "run", None)
    if run_command is None:
        parser.print_usage(sys.stderr)
        _output.complain("say which command; --help lists them")
        return 2
    status: int = run_command(args)
    return status


class _Parser(argparse.ArgumentParser):
    """Options in full only, also those of the commands, which are of this class, too."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    from shmlock import __version__

    parser = _Parser(
        prog="shmlock",
        description="Look at, check, remove and use arenas: shared-memory locks on names.",
    )
    parser.add_argument("--version", action="version", version=f"shmlock {__version__}")
    subparsers = parser.add_subparsers(
        title="commands",
        metavar="COMMAND",
    )
    for module in _COMMANDS.values():
        module.add_parser(subparsers)
    if not words or words[0] not in _COMMANDS:  # the others need not wait for its imports
        from shmlock.stress import command as stress

        stress.add_parser(subparsers)
    return parser


def _drop_output() -> None:
    """Point stdout at /dev/null, so that the flush at exit does not complain a second time."""
    try:
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError, AttributeError):
        pass


def _drop_output_if_broken() -> None:
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        _drop_output()
