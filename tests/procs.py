"""Functions run in real processes: results and exceptions come back, nothing is left running.

    def holder(name):                         # module level, so that spawn can find it
        with shmlock.attach(name) as arena, arena.lock("/a"):
            procs.say("held")                 # -> child.hear() in the test
            procs.listen()                    # <- child.tell(...) in the test

    with procs.crew() as crew:
        child = crew.start(holder, arena.name)
        assert child.hear() == "held"
        child.kill()

No wait here is a measure of speed: DEADLINE is a guard against hangs and nothing else.
"""

import contextlib
import ctypes
import faulthandler
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

DEADLINE = 30.0  # seconds
PR_SET_PDEATHSIG = 1  # prctl(2)
STACKS = signal.SIGUSR2  # a child that gets it writes the stack of each thread to stderr

SPAWN = multiprocessing.get_context("spawn")

#: What the arenas of this test process start with (set by conftest.py).
arena_prefix = ""
#: Every process that was started here, also dead ones (what they left in /dev/shm is ours).
started_pids: set[int] = set()
_running: list["Child"] = []


class Hang(AssertionError):
    """Something did not happen before the deadline; the message says who waits for what."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}\n{who_waits_for_what()}")


class ChildDied(AssertionError):
    """A child ended without a result."""


class _RemoteTraceback(Exception):
    """Shown as the cause of an exception that came from a child."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


# ---- In the child -------------------------------------------------------------------------------

_pipe: Connection | None = None


def say(value: Any) -> None:
    """Send a value to the test, which gets it from `child.hear()`."""
    assert _pipe is not None, "only in a process started by procs"
    _pipe.send(("said", value))


def listen() -> Any:
    """Wait for the value of the test's `child.tell()`."""
    assert _pipe is not None, "only in a process started by procs"
    if not _pipe.poll(DEADLINE):
        raise TimeoutError("the test told this process nothing")
    return _pipe.recv()


def _child_main(
    pipe: Connection, parent: int, target: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    global _pipe  # noqa: PLW0603  a process has one
    _pipe = pipe
    # A child must not outlive the test process, however that ended. (One of the fork server's has
    # another parent; that server ends with the test process, and the pipe then breaks.)
    if os.getppid() == parent:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # Descriptor 2, since pytest has its own idea of sys.stderr and a forked child inherits that.
    faulthandler.register(STACKS, file=2, all_threads=True)
    try:
        answer = ("result", target(*args))
        raw = pickle.dumps(answer)
    except BaseException as error:
        raw = _pickled_error(error)
    pipe.send_bytes(raw)


def _pickled_error(error: BaseException) -> bytes:
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    try:
        raw = pickle.dumps(("error", error, text))
        pickle.loads(raw)
    except Exception:
        raw = pickle.dumps(("error", RuntimeError(repr(error)), text))
    return raw


# ---- In the test --------------------------------------------------------------------------------


class Child:
    """One process, running one function. Made by `Crew.start`."""

    def __init__(self, target: Callable[..., Any], args: tuple[Any, ...], start: str) -> None:
        context = multiprocessing.get_context(start)
        self.name = getattr(target, "__name__", repr(target))
        self._pipe, theirs = context.Pipe()
        self._said: list[Any] = []
        self._answer: tuple[Any, ...] | None = None
        self._process = context.Process(  # type: ignore[attr-defined]
            target=_child_main, args=(theirs, os.getpid(), target, args), name=self.name
        )
        with warnings.catch_warnings():
            # Python 3.12+ warns of fork in a process with threads. A test that says
            # start="fork" is about just that.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process.start()
        theirs.close()
        started_pids.add(self.pid)
        _running.append(self)

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    @property
    def alive(self) -> bool:
        return bool(self._process.is_alive())

    @property
    def exitcode(self) -> int | None:
        code: int | None = self._process.exitcode
        return code

    def tell(self, value: Any = None) -> None:
        """Let the child's `procs.listen()` return a value."""
        self._pipe.send(value)

    def hear(self, timeout: float = DEADLINE) -> Any:
        """The next value that the child has said."""
        if not self._said:
            self._receive(timeout, "say something")
        if not self._said:
            self.result()  # raises what the child raised
            raise AssertionError(f"{self} ended without saying what the test waits for")
        return self._said.pop(0)

    def result(self, timeout: float = DEADLINE) -> Any:
        """What the function returned; what it raised is raised here. The process has ended."""
        end = time.monotonic() + timeout
        while self._answer is None:
            self._receive(end - time.monotonic(), "end")
        self.wait(DEADLINE)
        if self._answer[0] == "error":
            _, error, text = self._answer
            raise error from _RemoteTraceback(text)
        return self._answer[1]

    def wait(self, timeout: float = DEADLINE) -> int:
        """Wait for the process to end, whatever comes of it, and return its exit code."""
        self._process.join(timeout)
        if self.exitcode is None:
            self._fail_for_hang("exit")
        assert self.exitcode is not None
        return self.exitcode

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, and wait until nothing is left of it."""
        self._process.kill()
        self._process.join(DEADLINE)
        assert self.exitcode is not None, f"{self} survived SIGKILL"

    def reap(self) -> None:
        """Make sure that it has ended and free what it took here."""
        if self.alive:
            self.kill()
        else:
            self._process.join(DEADLINE)
        self._pipe.close()
        if self in _running:
            _running.remove(self)

    def _receive(self, timeout: float, what: str) -> None:
        if self._answer is not None:
            return
        if not self._pipe.poll(max(timeout, 0)):
            self._fail_for_hang(what)
        try:
            message = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(DEADLINE)
            raise ChildDied(f"{self} died, exit code {self.exitcode}") from None
        if message[0] == "said":
            self._said.append(message[1])
        else:
            self._answer = message

    def _fail_for_hang(self, what: str) -> None:
        hang = Hang(f"{self} was to {what}, and did not. (Its stack is in the captured stderr.)")
        with contextlib.suppress(ProcessLookupError):  # after the look at who waits for what
            self.signal(STACKS)
        raise hang

    def __repr__(self) -> str:
        return f"{self.name}[{self.pid}]"


class Crew:
    """Processes of one test; all are gone when the `with` block is."""

    def __init__(self) -> None:
        self.children: list[Child] = []

    def start(self, target: Callable[..., Any], *args: Any, start: str = "spawn") -> Child:
        """Start a process; `start` may be "fork" or "forkserver" where that is what is tested."""
        child = Child(target, args, start)
        self.children.append(child)
        return child

    def results(self) -> list[Any]:
        """The results of all, in the order of their start."""
        return [child.result() for child in self.children]


@contextlib.contextmanager
def crew() -> Iterator[Crew]:
    """A `Crew`, whose processes are killed and reaped whatever happens."""
    made = Crew()
    try:
        yield made
    finally:
        for child in made.children:
            child.reap()


def run(target: Callable[..., Any], *args: Any, start: str = "spawn") -> Any:
    """Run one function in one process and return its result."""
    with crew() as made:
        return made.start(target, *args, start=start).result()


def run_all(target: Callable[..., Any], args: list[tuple[Any, ...]]) -> list[Any]:
    """Run a function in a process for each tuple of arguments, at once; return the results."""
    with crew() as made:
        for each in args:
            made.start(target, *each)
        return made.results()


def barrier(parties: int) -> Any:
    """A barrier to hand to children: `barrier.wait()`; breaks for all at the deadline."""
    return SPAWN.Barrier(parties, timeout=DEADLINE)


# ---- When something hangs -----------------------------------------------------------------------


def my_arenas() -> list[str]:
    """Names of the arenas that this test process has in /dev/shm."""
    start = f"shmlock.{arena_prefix}"
    return sorted(
        name[len("shmlock.") :] for name in os.listdir("/dev/shm") if name.startswith(start)
    )


def who_waits_for_what() -> str:
    """Text for a failure: the arenas' locks and waits, and what each child is doing."""
    lines = []
    for name in my_arenas():
        lines += [f"--- arena {name}", _described(name)]
    for child in list(_running):
        lines.append(f"--- child {child}: {_doing(child)}")
    return "\n".join(lines) or "(no arena and no child is left to say who waits for what)"


def _described(name: str) -> str:
    # In a process of its own: whatever made the test hang, or a damaged arena, must not stop this.
    code = "import sys; from shmlock.inspect import describe; print(describe(sys.argv[1]))"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, name],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "(describing it hangs, too)"
    return (done.stdout if done.returncode == 0 else done.stderr).rstrip()


def _doing(child: Child) -> str:
    if not child.alive:
        return f"ended, exit code {child.exitcode}"
    try:
        state = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0]
        where = Path(f"/proc/{child.pid}/wchan").read_text()
    except OSError as error:
        return str(error)
    return f"state {state}, in {where or 'user space'}"
