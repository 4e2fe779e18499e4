"""``shmlock run``: hold the lock on a name while a command runs, as flock(1) does.

Who can do what to the lock:

- This process holds it and stays until the command has ended, whatever signal comes: all that can
  be caught are passed on to the command.  Nothing of the arena is left in the command: the mapping
  goes with execve(2), and no file descriptor of it is inherited.
- When this process is killed (SIGKILL, or a fault), the kernel gives the lock to the next in line
  at once, marked `recovered`, and sends SIGTERM to the command (PR_SET_PDEATHSIG, prctl(2)).  Only
  to the command: not to what it has started, and not if it is set-user-ID or has capabilities
  (execve(2) clears the setting then).  A command that goes on in spite of SIGTERM runs without
  the lock.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from . import _child, _output, _process

if TYPE_CHECKING:
    import shmlock

_TIMED_OUT = 124
_OWN_ERROR = 125
_SI_KERNEL = 0x80

# Not passed on: what cannot be caught, what a fault of this very process causes, job control (the
# terminal stops and continues the command too, and a stopped `run` keeps the lock), limits of this
# process, and what is ignored unless asked for.
_KEPT = frozenset(
    {
        *(signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGPIPE),
        *(signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP),
        *(signal.SIGABRT, signal.SIGSYS, signal.SIGXCPU, signal.SIGXFSZ),
        *(signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCONT),
        *(signal.SIGWINCH, signal.SIGURG),
    }
)
_KEYBOARD = frozenset({signal.SIGINT, signal.SIGQUIT})


class _Ended(BaseException):
    """A signal came before the command was started."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def add_parser(subparsers: Any) -> None:
    """Add this command."""
    parser = subparsers.add_parser(
        "run",
        help="hold the lock on a name while a command runs",
        usage="shmlock run [-h] ARENA PATH [--timeout S] -- COMMAND...",
        description="Hold the lock on PATH while COMMAND runs. The arena and the parent "
        "directories are made if need be. Signals are passed on to COMMAND.",
        epilog="Exit status: that of COMMAND, 128+N if signal N killed it; 124 the lock was not "
        "to be had in time; 125 an error of shmlock's own; 126 COMMAND cannot be run; 127 it is "
        "not found. If this process is killed, COMMAND gets SIGTERM and the lock goes to the "
        "next in line, marked as recovered.",
    )
    parser.add_argument("arena", metavar="ARENA")
    parser.add_argument("path", metavar="PATH")
    parser.add_argument(
        "--timeout",
        metavar="S",
        type=_seconds,
        help="wait for the lock this many seconds at most (0: do not wait); for ever if not given",
    )
    parser.set_defaults(run=run, command=None, parser=parser)


def split_command(words: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """Cut ``run``'s COMMAND off, at the first ``--``; argparse would look for options in it."""
    if not words or words[0] != "run" or "--" not in words:
        return list(words), None
    cut = list(words).index("--")
    return list(words[:cut]), list(words[cut + 1 :])


def run(args: argparse.Namespace) -> int:
    """Hold the lock, run the command, return the exit status."""
    if not args.command:
        args.parser.error("which command? write it after --")
    signals = _passed_on()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    handlers = {number: signal.signal(number, _end) for number in signals}
    handlers[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        try:
            return _hold_and_run(args, signals, mask)
        finally:
            # A signal that came after the command's end changes nothing: its status is the answer.
            signal.pthread_sigmask(signal.SIG_BLOCK, signals)
            while signal.sigtimedwait(signals, 0) is not None:
                pass
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    except _Ended as ended:
        return 128 + ended.number
    except (OSError, ValueError) as error:
        _output.complain(_output.describe(error))
        return _OWN_ERROR


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= threading.TIMEOUT_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def _passed_on() -> set[int]:
    """Return the signals to pass on: not those that were ignored already, as under nohup(1)."""
    return {
        int(number)
        for number in signal.valid_signals() - _KEPT
        if signal.getsignal(number) is not signal.SIG_IGN
    }


def _end(number: int, _frame: FrameType | None) -> None:
    raise _Ended(number)


def _hold_and_run(args: argparse.Namespace, signals: set[int], mask: set[int]) -> int:
    import shmlock

    with shmlock.open(args.arena) as arena:
        arena.timeout = args.timeout  # also for making the parents
        lock = arena.lock(args.path, parents=True)
        if not _acquire(lock, args.timeout):
            _output.complain(_late(lock, args))
            return _TIMED_OUT
        # From here on signals are collected, not acted on: nothing interrupts this process
        # between having the lock and having handed the signals on.
        signal.pthread_sigmask(signal.SIG_BLOCK, signals | {signal.SIGCHLD})
        try:
            if lock.recovered:
                _output.complain(
                    f"{args.path}: the last holder of this lock died; what it did may be half done"
                )
            return _supervise(args.command, mask, signals)
        finally:
            _release(lock)


def _acquire(lock: shmlock.NameLock, timeout: float | None) -> bool:
    try:
        if timeout is None:
            return lock.acquire()
        if timeout == 0:
            return lock.acquire(blocking=False)
        return lock.acquire(timeout=timeout)
    except TimeoutError:
        return False


def _late(lock: shmlock.NameLock, args: argparse.Namespace) -> str:
    owner = lock.owner()
    waited = f"not free within {args.timeout:g} s" if args.timeout else "not free"
    if owner is None:
        return f"{args.path}: {waited}"
    return f"{args.path}: {waited}, held by {_process.named(owner.pid)}"


def _release(lock: shmlock.NameLock) -> None:
    try:
        lock.release()
    except (OSError, RuntimeError) as error:  # the command's status is still worth having
        _output.complain(f"releasing the lock: {_output.describe(error)}")


def _supervise(command: Sequence[str], mask: set[int], signals: set[int]) -> int:
    """Start the command, pass signals on until it has ended, return its status."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    child = _child.start(command, mask, signals)
    while True:
        info = signal.sigwaitinfo(signals | {signal.SIGCHLD})
        if info.si_signo != signal.SIGCHLD:
            _pass_on(info, child)
            continue
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _pass_on(info: signal.struct_siginfo, child: int) -> None:
    """Send a signal to the command, unless the terminal did so already.

    What is typed at a terminal goes to a whole process group; a second copy would be taken for a
    second Ctrl-C.
    """
    typed = info.si_signo in _KEYBOARD and info.si_code == _SI_KERNEL
    if not (typed and os.getpgid(child) == os.getpgrp()):
        os.kill(child, info.si_signo)
