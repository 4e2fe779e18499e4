"""Scripted races: processes that do one call at a time, stopped at pause points by the test.

    with actors.scene(arena_name) as scene:
        a, b = scene.actors(2)
        scene.run_to(a, "make:inode", "create", "x")   # a stands there, holding the name
        b.begin("create", "x")
        assert scene.settle(b).kind == "name"          # b is really waiting
        scene.go("make:inode")
        assert (a.end(), b.end()) == ("ok", "EEXIST")

An outcome is ``"ok"``, the name of an errno, or what the call returned.  Nothing here sleeps to
get an order of events: a process is at a pause point, or seen waiting, or done.
"""

import contextlib
import errno
import multiprocessing
import time
from collections.abc import Callable, Iterator
from typing import Any

import procs
import shmlock
from shmlock import debug, inspect

# Many short-lived processes: forked from a clean server, which has the library loaded but no
# arena, instead of starting an interpreter for each.
START = "forkserver"
multiprocessing.get_context(START).set_forkserver_preload(
    ["shmlock", "shmlock.debug", "shmlock.inspect"]
)

_ERRNOS = {**errno.errorcode, errno.EDEADLK: "EDEADLK"}  # Python says EDEADLOCK
PATIENCE = 20.0  # seconds; timeout of calls that must get through: a guard against hangs


# ---- In the child -------------------------------------------------------------------------------


def act(name: str) -> None:
    with shmlock.attach(name) as arena:
        held: dict[str, shmlock.NameLock] = {}
        procs.say("attached")
        while request := procs.listen():
            call, args, options = request
            procs.say(outcome(lambda: _perform(arena, held, call, *args, **options)))  # noqa: B023
        for lock in held.values():
            lock.release()


def _perform(
    arena: shmlock.Arena, held: dict[str, shmlock.NameLock], call: str, *args: Any, **options: Any
) -> Any:
    if call == "acquire":
        lock = arena.lock(args[0])
        if not lock.acquire(**options):
            return "taken"
        held[args[0]] = lock
        return "recovered" if lock.recovered else "held"
    if call == "release":
        return held.pop(args[0]).release()
    if call == "check":
        return [str(fault) for fault in arena.check(**options)]
    return getattr(arena, call)(*args, **options)


def outcome(call: Callable[[], Any]) -> Any:
    """What it returned, "ok" for None; the name of the errno that it raised."""
    try:
        result = call()
    except OSError as error:
        return _ERRNOS.get(error.errno or 0, repr(error))
    return "ok" if result is None else result


# ---- In the test --------------------------------------------------------------------------------


class Actor:
    """A process that is attached to the arena and does one call at a time."""

    def __init__(self, crew: procs.Crew, name: str) -> None:
        self.child = crew.start(act, name, start=START)
        assert self.child.hear() == "attached"
        self.pid = self.child.pid

    def begin(self, call: str, *args: Any, **options: Any) -> None:
        """Start a call."""
        self.child.tell((call, args, options))

    def end(self) -> Any:
        """The outcome of the call; hangs are found by procs."""
        return self.child.hear()

    def do(self, call: str, *args: Any, **options: Any) -> Any:
        """A whole call."""
        self.begin(call, *args, **options)
        return self.end()

    def done(self) -> bool:
        """Whether the call has ended, or the process."""
        return bool(self.child._said) or self.child._pipe.poll(0)

    def kill(self) -> None:
        """SIGKILL; nothing is left of the process on return."""
        self.child.kill()

    def leave(self) -> None:
        """End the process tidily."""
        self.child.tell(None)
        self.child.result()


class Scene:
    """An arena of the debug build and its actors."""

    def __init__(self, arena: shmlock.Arena, crew: procs.Crew) -> None:
        self.arena = arena
        self.crew = crew
        self._actors: list[Actor] = []
        self.lost = False  # nothing here is sound any more, nor meant to be

    def actor(self) -> Actor:
        made = Actor(self.crew, self.arena.name)
        self._actors.append(made)
        return made

    def actors(self, count: int) -> list[Actor]:
        return [self.actor() for _ in range(count)]

    # ---- Pause points ----

    def stop_at(self, point: str, actor: Actor | None = None) -> None:
        """Let the next task that comes by, or only this one, stop there."""
        debug.stop_at(self.arena, point, actor.pid if actor else 0)

    def run_to(self, actor: Actor, point: str, call: str, *args: Any, **options: Any) -> None:
        """Start a call and return when it stands at the point."""
        self.stop_at(point, actor)
        actor.begin(call, *args, **options)
        self.reach(actor, point)

    def reach(self, actor: Actor, point: str) -> None:
        """Wait until the actor stands at an armed point; it must."""
        met = self.first(actor, [point])
        assert met == point, f"{actor.child} ended with {actor.end()!r} without passing {point}"

    def first(self, actor: Actor, points: list[str]) -> str | None:
        """The first of some armed points at which the actor stands; None: it is done."""

        def met() -> str | None:
            return next((point for point in points if self.reached(point)), None)

        self._until(lambda: met() or actor.done(), f"{actor.child} passes {points}")
        return met()

    def reached(self, point: str) -> bool:
        """Whether somebody has stopped at an armed point."""
        with contextlib.suppress(TimeoutError):
            return bool(debug.wait_for(self.arena, point, timeout=0))
        return False

    def go(self, *points: str) -> None:
        for point in points:
            debug.go(self.arena, point)

    # ---- Waits ----

    def task(self, actor: Actor) -> inspect.Task | None:
        """The actor's slot, as anybody can see it."""
        tasks = inspect.snapshot(self.arena).tasks
        return next((task for task in tasks if task.pid == actor.pid), None)

    def waits(self, actor: Actor) -> inspect.Wait | None:
        """What the actor is seen to wait for at this instant."""
        task = self.task(actor)
        return task.waits if task else None

    def settle(self, actor: Actor) -> inspect.Wait | None:
        """Wait until the actor is done (None) or sleeps: then what it waits for."""
        seen: list[inspect.Wait] = []

        def settled() -> bool:
            wait = self.waits(actor)
            if wait:
                seen.append(wait)
            return bool(wait) or actor.done()

        self._until(settled, f"{actor.child} is done or waits")
        return seen[-1] if seen and not actor.done() else None

    def holds(self, actor: Actor) -> list[tuple[str, str]]:
        """(kind, path) of each lock that the actor holds."""
        seen = inspect.snapshot(self.arena)
        numbers = {task.task for task in seen.tasks if task.pid == actor.pid}
        return [(hold.kind, hold.path) for hold in seen.holds if hold.task in numbers]

    def _until(self, condition: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + procs.DEADLINE
        while not condition():
            if time.monotonic() > deadline:
                raise procs.Hang(f"never so: {what}")
            time.sleep(0.0005)  # leaves the processors to those it is about

    # ---- The end ----

    def leave(self) -> None:
        """All actors that still live end, tidily."""
        for actor in self._actors:
            if actor.child.alive:
                actor.leave()
        self._actors.clear()

    def sound(self) -> None:
        """Nothing is broken, and nothing half-done."""
        broken = self.arena.check(quiescent=True)
        assert broken == [], f"broken: {broken}"
        seen = debug.violations(self.arena)
        assert seen == 0, f"{seen} times two tasks were in one name's critical section"


@contextlib.contextmanager
def scene(
    name: str, broken: str | None = None, *, dentries: int = 64, tasks: int = 16
) -> Iterator[Scene]:
    """A scene in a fresh small arena, which is sound at its end, unless a rule was switched off.

    Args:
        name: of the arena.
        broken: a rule that is switched off, see ``shmlock.debug.rules()``.
        dentries: size; in the smallest arena a task reuses the fifth name that it has emptied.
        tasks: size.
    """
    arena = shmlock.create(name, debug=True, dentries=dentries, tasks=tasks)
    try:
        if broken:
            debug.break_rule(arena, broken)
        with procs.crew() as crew:
            made = Scene(arena, crew)
            yield made
            if not (broken or made.lost):
                made.leave()
                made.sound()
    finally:
        arena.close()
        with contextlib.suppress(FileNotFoundError):  # the test may have done it
            shmlock.unlink(name, force=True)
