"""A removal against one operation in the directory, stopped at every pair of pause points.

P2 and the pair of barriers D1/D2 (dlock.h): the operation claims, then looks for S_DYING; the
removal sets S_DYING, then looks for claims; whatever the order, at least one sees the other.  So
the directory never goes with something made in it, and nobody waits for ever.

The pause points give every order of the steps, on a machine that keeps them in order (an x86
locked instruction is a full barrier): weaker ones, and orders within a step, are for
``shmlock stress``.
"""

from typing import Any

import pytest

from actors import Actor, Scene, scene
from shmlock import debug

# operation on a name in d -> the outcomes (operation, rmdir d) that some order of the two gives.
CREATES = {("ok", "ENOTEMPTY"), ("ENOENT", "ok")}
OPERATIONS: dict[str, tuple[str, set[tuple[str, str]]]] = {
    "create-known": ("create", CREATES),
    "create-new": ("create", CREATES),
    "mkdir-long": ("mkdir", CREATES),
    "unlink": ("unlink", {("ok", "ENOTEMPTY"), ("ok", "ok")}),
    "acquire": ("acquire", {("held", "EBUSY"), ("ENOENT", "ok")}),
}


def prepare(s: Scene, case: str, number: int) -> str:
    """Directory d, empty but for the name that is to be operated on; that name."""
    arena = s.arena
    if not arena.exists("d"):
        arena.mkdir("d")
    for name in arena.listdir("d"):
        path = f"d/{name}"
        (arena.rmdir if arena.is_dir(path) else arena.unlink)(path)
    path = {"create-new": f"d/n{number}", "mkdir-long": f"d/{number:060}"}.get(case, "d/x")
    if case in {"create-known", "unlink"}:
        arena.create(path)
    if case == "create-known":
        arena.unlink(path)
    return path


def points_of(s: Scene, actor: Actor, call: str, path: str) -> list[str]:
    """The pause points that a call passes when undisturbed, in the order of their first time."""
    armed = list(debug.points())
    for point in armed:
        s.stop_at(point, actor)
    actor.begin(call, path)
    passed = []
    while met := s.first(actor, armed):
        passed.append(met)
        armed.remove(met)
        s.go(met)
    s.go(*armed)
    assert actor.end() in {"ok", "held"}
    if call == "acquire":
        actor.do("release", path)
    return passed


def race(
    s: Scene, case: str, number: int, actors: tuple[Actor, Actor], points: tuple[str, str], who: int
) -> tuple[Any, Any, bool]:
    """Both run to their points, as far as they get; then one goes on, then the other."""
    call, allowed = OPERATIONS[case]
    path = prepare(s, case, number)
    requests = ((call, path), ("rmdir", "d"))
    order = (who, 1 - who)
    # The same point cannot stop two: the second to come then goes on at once.
    if points[0] == points[1]:
        return None, None, False
    met = [False, False]
    for n in order:
        s.stop_at(points[n], actors[n])
        actors[n].begin(*requests[n])
        s._until(
            lambda n=n: s.reached(points[n]) or s.waits(actors[n]) or actors[n].done(),  # type: ignore[misc]
            f"{case} {points} {order}: {n} stands, waits or is done",
        )
        met[n] = s.reached(points[n])
    for n in reversed(order):
        s.go(points[n])
        s.settle(actors[n])
    s.go(*points)
    ended = (actors[0].end(), actors[1].end())
    assert ended in allowed, f"{case}, stopped at {points}, order {order}"
    if ended[0] == "held":
        actors[0].do("release", path)
    made = ended[0] == "ok" and call != "unlink"
    assert s.arena.exists(path) == made
    assert s.arena.exists("d") == (ended[1] != "ok")
    return *ended, all(met)


@pytest.mark.parametrize("case", OPERATIONS)
def test_a_removal_at_every_pair_of_points(arena_name: str, case: str) -> None:
    """Each outcome is one that some order gives; both outcomes are seen; nothing is left over."""
    with scene(arena_name) as s:
        a, b = s.actors(2)
        call, allowed = OPERATIONS[case]
        operation = points_of(s, a, call, prepare(s, case, 0))
        prepare(s, "", 0)
        removal = points_of(s, b, "rmdir", "d")
        assert {"lock:checked", "unlock:cleared"} <= set(operation)
        assert {"rmdir:locked", "rmdir:dying", "rmdir:drained", "rmdir:dead"} <= set(removal)
        seen = set()
        both_stood = 0
        number = 0
        for p in operation:
            for q in removal:
                for who in (0, 1):
                    number += 1
                    *ended, stood = race(s, case, number, (a, b), (p, q), who)
                    seen.add(tuple(ended))
                    both_stood += stood
            assert s.arena.check() == []
        assert allowed <= seen
        assert both_stood > len(removal), "the two did meet"
        assert s.arena.stats().counters["deadlocks"] == 0
