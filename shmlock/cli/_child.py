"""Start the command of ``shmlock run``: fork(2), make it die with its parent, execve(2).

Done by hand, not with subprocess: a ``preexec_fn`` runs at a point that subprocess picks, while
here the order is what matters, and this process has one thread only, so that its forked copy may
run Python.  Everything that can fail for want of something is looked up before the fork.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

_PR_SET_PDEATHSIG = 1
_OWN_ERROR = 125
_CANNOT_RUN = 126
_NOT_FOUND = 127

# What the Python interpreter ignores for itself; a command expects the default.
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


def start(command: Sequence[str], mask: Iterable[int], handled: Iterable[int]) -> int:
    """Start a command and return its pid.

    If it cannot be run, that is its exit status: 126, or 127 when there is no such file.

    Requires: the main thread, and no other (PR_SET_PDEATHSIG is about the thread that forked);
    `handled` blocked.

    Args:
        command: the file, looked for as execvp(3) does, and the arguments.
        mask: signals that the command starts with blocked.
        handled: signals that have handlers here; the command gets their default action.

    Returns:
        The pid of the child, to be waited for.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    prctl, execvp = libc.prctl, libc.execvp
    words = [os.fsencode(word) for word in command]
    arguments = (ctypes.c_char_p * (len(words) + 1))(*words, None)
    parent = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        _become(prctl, execvp, words[0], arguments, parent, mask, handled)
    finally:
        os._exit(_OWN_ERROR)  # never back into the parent's code, which holds the lock


def _become(
    prctl: Any,
    execvp: Any,
    file: bytes,
    arguments: Any,
    parent: int,
    mask: Iterable[int],
    handled: Iterable[int],
) -> NoReturn:
    """In the child: turn into the command."""
    prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGTERM), *[ctypes.c_ulong(0)] * 3)
    if os.getppid() != parent:  # killed before it was asked to tell: nobody holds the lock
        os._exit(_OWN_ERROR)
    # Handlers first, then the mask: a handler of Python's must not run in here.
    for number in (*handled, *_IGNORED_BY_PYTHON):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    execvp(ctypes.c_char_p(file), arguments)
    code = ctypes.get_errno()
    text = f"shmlock: {os.fsdecode(file)}: {os.strerror(code)}\n"
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, os.fsencode(text))
    os._exit(_NOT_FOUND if code == errno.ENOENT else _CANNOT_RUN)
