"""The rules of docs/locking.md, each as a scripted race between real processes.

Most tests run twice: with the rule in force all is right; with the rule switched off
(``shmlock.debug.break_rule``) the same script comes to a demonstrably wrong end, which is how we
know that the test tests the rule.

What no script can show: a barrier left out (on x86 a locked compare-and-swap is one; the pairs of
pause points of test_rule_pairs.py show both orders, and ``shmlock stress`` runs without a script),
and a claim for reuse that is not judged again under the lock (no pause point can stand between
two instructions; the same stress runs cover it).
"""

import pytest

import procs
import shmlock
from actors import PATIENCE, Actor, Scene, outcome, scene
from shmlock import debug


def on_and_off(rule: str) -> pytest.MarkDecorator:
    """Run the test with the rule in force (broken is None) and without it."""
    return pytest.mark.parametrize("broken", [None, rule], ids=["on", f"without-{rule}"])


def known(scene: Scene, *names: str) -> None:
    """Make names known: cached, with nothing there."""
    for name in names:
        scene.arena.create(name)
        scene.arena.unlink(name)


def fill_ring(actor: Actor) -> None:
    """Empty three more names after one: then the actor's next new name reuses that one's cell."""
    for n in range(3):
        actor.do("create", f"filler{n}")
        actor.do("unlink", f"filler{n}")


# ---- P1: one operation per name at a time -------------------------------------------------------


@on_and_off("mutual-exclusion")
def test_one_operation_at_a_time_on_a_name(arena_name: str, broken: str | None) -> None:
    """P1. Without it two tasks are inside one name's critical section, and the judge sees it."""
    with scene(arena_name, broken) as s:
        a, b = s.actors(2)
        s.run_to(a, "make:inode", "create", "x")
        b.begin("create", "x")
        if broken:
            b.end()
            assert debug.violations(s.arena) > 0
            return
        wait = s.settle(b)
        assert wait is not None
        assert (wait.kind, wait.path, wait.holder) == ("name", "/x", s.task(a).task)  # type: ignore[union-attr]
        assert s.holds(a) == [("operation", "/x")]
        s.go("make:inode")
        assert (a.end(), b.end()) == ("ok", "EEXIST")


@on_and_off("mutual-exclusion")
def test_one_person_at_a_time(arena_name: str, broken: str | None) -> None:
    """P1 for a NameLock."""
    with scene(arena_name, broken) as s:
        a, b = s.actors(2)
        assert a.do("acquire", "x") == "held"
        assert b.do("acquire", "x", blocking=False) == ("held" if broken else "taken")
        if not broken:
            assert b.do("create", "x", timeout=0) == "ETIMEDOUT"


@pytest.mark.parametrize(
    ("first", "second", "outcomes"),
    [
        ("create", "create", ("ok", "EEXIST")),
        ("mkdir", "create", ("ok", "EEXIST")),
        ("create", "unlink", ("ok", "ok")),
        ("mkdir", "rmdir", ("ok", "ok")),
        ("mkdir", "unlink", ("ok", "EISDIR")),
        ("create", "rmdir", ("ok", "ENOTDIR")),
        ("acquire", "create", ("held", "ETIMEDOUT")),
    ],
)
def test_the_second_is_judged_after_the_first(
    arena_name: str, first: str, second: str, outcomes: tuple[str, str]
) -> None:
    """While the first has the name of a known nothing, the second gives no answer."""
    with scene(arena_name) as s:
        a, b = s.actors(2)
        known(s, "x")
        s.run_to(a, "lock:checked", first, "x")
        b.begin(second, "x", timeout=PATIENCE if outcomes[1] != "ETIMEDOUT" else 0.2)
        wait = s.settle(b)
        s.go("lock:checked")
        assert (a.end(), b.end()) == outcomes
        assert wait is not None, "it answered while somebody was at work on the name"
        assert wait.kind == "name"


@pytest.mark.parametrize(
    ("make", "first", "second"),
    [("create", "unlink", "create"), ("mkdir", "rmdir", "mkdir"), ("create", "unlink", "unlink")],
)
def test_no_answer_about_a_name_on_its_way_out(
    arena_name: str, make: str, first: str, second: str
) -> None:
    """The same for a name that something has: it may be gone in a moment."""
    with scene(arena_name) as s:
        a, b = s.actors(2)
        a.do(make, "x")
        s.run_to(a, "lock:checked", first, "x")
        b.begin(second, "x")
        wait = s.settle(b)
        s.go("lock:checked")
        assert (a.end(), b.end()) == ("ok", "ENOENT" if second == "unlink" else "ok")
        assert wait is not None


def test_other_names_pass(arena_name: str) -> None:
    """P4: operations on different names of one directory hold no lock in common."""
    with scene(arena_name) as s:
        a, b = s.actors(2)
        a.do("mkdir", "d")
        s.run_to(a, "make:inode", "create", "d/x")
        for call in ("create", "unlink", "mkdir", "rmdir"):
            assert b.do(call, "d/y") == "ok"
        assert b.do("acquire", "d/z") == "held"
        assert b.do("release", "d/z") == "ok"
        assert b.do("exists", "d/x") is False
        assert b.do("listdir", "d") == []
        s.go("make:inode")
        assert a.end() == "ok"


# ---- R3, R4: the lock word and its record -------------------------------------------------------


@on_and_off("R3")
def test_unlock_wakes_all(arena_name: str, broken: str | None) -> None:
    """R3: two sleep, the owner unlocks, one gets the lock; the other must have been woken too.

    Else it sleeps on, announced to nobody: its announcement went with the unlock.  (Until the cap
    of its sleep, which is why nothing hangs for good.  A capped sleep ends the call, which then
    begins again and passes ``lock:recorded``; a woken one only looks again and passes
    ``lock:before-sleep``.  So which of the two comes first tells them apart without a clock.)
    """
    with scene(arena_name, broken) as s:
        owner, *waiters = s.actors(3)
        seen: list[str | None] = []
        for attempt in range(20):
            name = f"x{attempt}"
            owner.do("acquire", name)
            for waiter in waiters:
                waiter.begin("create", name, timeout=PATIENCE)
                assert s.settle(waiter) is not None
            for point in ("lock:claimed", "lock:before-sleep", "lock:recorded"):
                s.stop_at(point)
            if s.reached("lock:before-sleep") or s.reached("lock:recorded"):
                seen.append(None)  # a cap has passed just now: no result
            owner.do("release", name)
            s._until(lambda: s.reached("lock:claimed"), "somebody gets the lock")
            s._until(
                lambda: s.reached("lock:before-sleep") or s.reached("lock:recorded"),
                "the other looks again",
            )
            if len(seen) <= attempt:
                seen.append("capped" if s.reached("lock:recorded") else "woken")
            s.go("lock:claimed", "lock:before-sleep", "lock:recorded")
            assert sorted(waiter.end() for waiter in waiters) == ["EEXIST", "ok"]
            if (broken and seen[3:]) or (not broken and "woken" in seen):
                break
        assert ("woken" in seen) == (broken is None)
        assert not broken or "capped" in seen


@on_and_off("R4")
def test_recorded_before_claimed(arena_name: str, broken: str | None) -> None:
    """R4: killed right after the claim, the record lets recovery free the lock."""
    with scene(arena_name, broken) as s:
        a, b = s.actors(2)
        known(s, "x")
        s.run_to(a, "lock:claimed", "create", "x")
        a.kill()
        debug.mend_rule(s.arena, "R4")  # it was about the dead one only
        assert b.do("create", "x", timeout=PATIENCE) == ("EUCLEAN" if broken else "ok")


def test_a_record_without_a_lock(arena_name: str) -> None:
    """R4's other side: recorded, not yet claimed, and killed; somebody else's lock stays his."""
    with scene(arena_name) as s:
        a, b, c = s.actors(3)
        known(s, "x")
        s.run_to(a, "lock:recorded", "create", "x")
        assert b.do("acquire", "x") == "held"
        a.kill()
        assert s.arena.check() == []  # it sweeps
        assert c.do("acquire", "x", blocking=False) == "taken"
        assert b.do("release", "x") == "ok"
        assert c.do("acquire", "x") == "held"


# ---- dentry_lock: claim, match, neither dying nor dead ------------------------------------------


@on_and_off("match")
@pytest.mark.parametrize("point", ["lookup:done", "lock:recorded"])
def test_a_name_reused_between_lookup_and_lock(
    arena_name: str, broken: str | None, point: str
) -> None:
    """Match: what was looked up has become another name. Without it the wrong name is made."""
    with scene(arena_name, broken) as s:
        a, b = s.actors(2)
        a.do("create", "x")
        a.do("unlink", "x")
        fill_ring(a)
        s.run_to(b, point, "create", "x")
        assert s.arena.stats().counters["recycled"] == 0
        a.do("create", "y")  # in the cell that was x
        a.do("unlink", "y")
        assert s.arena.stats().counters["recycled"] == 1
        s.go(point)
        assert b.end() == "ok"
        assert s.arena.exists("x") == (broken is None)
        assert s.arena.exists("y") == (broken is not None)


@on_and_off("match")
def test_a_lock_on_a_reused_name(arena_name: str, broken: str | None) -> None:
    """The same for a person's lock: the right name is locked."""
    with scene(arena_name, broken) as s:
        a, b = s.actors(2)
        a.do("create", "x")
        a.do("unlink", "x")
        fill_ring(a)
        s.run_to(b, "lock:recorded", "acquire", "x")
        a.do("create", "y")
        a.do("unlink", "y")
        s.go("lock:recorded")
        assert b.end() == "held"
        assert s.arena.lock("x").locked() == (broken is None)
        assert s.arena.lock("y").locked() == (broken is not None)


@on_and_off("dying-check")
@pytest.mark.parametrize("name", ["known", "new"])
@pytest.mark.parametrize("point", ["rmdir:dying", "rmdir:drained"])
def test_nothing_starts_in_a_dying_directory(
    arena_name: str, broken: str | None, name: str, point: str
) -> None:
    """P2: it waits, with empty hands. Without the check it is made in a directory that dies."""
    with scene(arena_name, broken) as s:
        a, b = s.actors(2)
        s.arena.mkdir("d")
        known(s, "d/known")
        s.run_to(a, point, "rmdir", "d")
        b.begin("create", f"d/{name}")
        if broken:
            assert b.end() == "ok", "it did not wait"
            s.go(point)
            removed = a.end()
            # Looked at before: made, and gone with the directory. Later: this script cannot tell.
            assert (removed, s.arena.exists(f"d/{name}")) in (
                [("ok", False)] if point == "rmdir:drained" else [("ENOTEMPTY", True)]
            )
            return
        wait = s.settle(b)
        assert wait is not None
        assert (wait.kind, wait.path) == ("S_DYING", "/d")
        assert s.holds(b) == []
        s.go(point)
        assert (a.end(), b.end()) == ("ok", "ENOENT")


def test_waiters_for_a_removal_that_fails_go_on(arena_name: str) -> None:
    """S_DYING means wait, not fail: the removal may come to nothing."""
    with scene(arena_name) as s:
        a, b, *waiters = s.actors(5)
        s.arena.mkdir("d")
        s.run_to(a, "make:inode", "create", "d/x")
        s.run_to(b, "rmdir:before-sleep", "rmdir", "d")
        for n, waiter in enumerate(waiters):
            waiter.begin("create", f"d/w{n}")
        assert [s.settle(waiter).kind for waiter in waiters] == ["S_DYING"] * 3  # type: ignore[union-attr]
        s.go("make:inode", "rmdir:before-sleep")
        assert (a.end(), b.end()) == ("ok", "ENOTEMPTY")
        assert [waiter.end() for waiter in waiters] == ["ok"] * 3
        assert sorted(s.arena.listdir("d")) == ["w0", "w1", "w2", "x"]


@on_and_off("drain")
@pytest.mark.parametrize("name", ["known", "new"])
def test_a_removal_waits_for_operations_in_flight(
    arena_name: str, broken: str | None, name: str
) -> None:
    """P2. Without the drain both succeed: a file made in a directory that is gone."""
    with scene(arena_name, broken) as s:
        a, b = s.actors(2)
        s.arena.mkdir("d")
        known(s, "d/known")
        s.run_to(a, "lock:checked", "create", f"d/{name}")
        b.begin("rmdir", "d")
        if broken:
            assert b.end() == "ok", "it did not wait"
            s.go("lock:checked")
            assert a.end() == "ok"
            assert not s.arena.exists(f"d/{name}")
            assert s.arena.check() != []
            return
        wait = s.settle(b)
        assert wait is not None
        assert (wait.kind, wait.path) == ("drain", f"/d/{name}")
        assert sorted(s.holds(b)) == [("S_DYING", "/d"), ("operation", "/d")]
        s.go("lock:checked")
        assert (a.end(), b.end()) == ("ok", "ENOTEMPTY")


def test_a_drain_is_for_what_is_in_flight_not_for_what_comes(arena_name: str) -> None:
    """A removal gets its turn though others keep asking: they wait for S_DYING."""
    with scene(arena_name) as s:
        a, b, c = s.actors(3)
        s.arena.mkdir("d")
        s.arena.create("d/x")
        s.run_to(a, "lock:checked", "unlink", "d/x")
        b.begin("rmdir", "d")
        assert s.settle(b).kind == "drain"  # type: ignore[union-attr]
        c.begin("create", "d/y")
        assert s.settle(c).kind == "S_DYING"  # type: ignore[union-attr]
        s.go("lock:checked")
        assert (a.end(), b.end(), c.end()) == ("ok", "ok", "ENOENT")


# ---- F3: wait for S_DYING with empty hands ------------------------------------------------------


@on_and_off("F3")
def test_a_creator_meets_a_removal_with_a_name_in_hand(arena_name: str, broken: str | None) -> None:
    """F3, as in H5: the name that it holds is one that the removal waits for. A circle without."""
    with scene(arena_name, broken) as s:
        a, b = s.actors(2)
        s.arena.mkdir("d")
        known(s, "d/x")
        s.run_to(a, "lock:recorded", "create", "d/x")
        s.run_to(b, "rmdir:dying", "rmdir", "d")
        s.go("lock:recorded")
        if broken:
            assert s.settle(a) is not None
            assert s.holds(a) == [("operation", "/d/x")]
            s.go("rmdir:dying")
            assert "EDEADLK" in (a.end(), b.end()), "nobody but the search for circles ends it"
            return
        wait = s.settle(a)
        assert wait is not None
        assert wait.kind == "S_DYING"
        assert s.holds(a) == []
        s.go("rmdir:dying")
        assert (b.end(), a.end()) == ("ok", "ENOENT")
        assert s.arena.stats().counters["deadlocks"] == 0


@pytest.mark.parametrize("call", ["create", "mkdir", "unlink", "acquire"])
def test_a_new_name_met_by_a_drain(arena_name: str, call: str) -> None:
    """H6-like: hashed and locked, then S_DYING, and the drain waits for it; it lets go."""
    with scene(arena_name) as s:
        a, b = s.actors(2)
        s.arena.mkdir("d")
        if call == "unlink":
            s.arena.create("d/x")
        point = "lock:claimed" if call == "unlink" else "new-name:hashed"
        s.run_to(a, point, call, "d/x")
        b.begin("rmdir", "d")
        assert s.settle(b).kind in ({"drain"} if call != "acquire" else {"drain", "S_DYING"})  # type: ignore[union-attr]
        s.go(point)
        outcomes = (a.end(), b.end())
        if call == "unlink":
            # Nobody but the removal itself stood in its way: it waited, then took it out.
            assert outcomes in [("ok", "ok"), ("ok", "ENOTEMPTY")]
        else:
            assert outcomes == ("ENOENT", "ok")


def test_a_persons_lock_and_another_name_in_a_dying_directory(arena_name: str) -> None:
    """H5 with a person: holding one name, waiting for S_DYING with another. EBUSY, no circle."""
    with scene(arena_name) as s:
        a, b = s.actors(2)
        s.arena.mkdir("d")
        known(s, "d/x", "d/y")
        s.run_to(b, "rmdir:locked", "rmdir", "d")  # it saw no person's lock
        assert a.do("acquire", "d/x") == "held"
        s.stop_at("rmdir:dying", b)
        s.go("rmdir:locked")
        s.reach(b, "rmdir:dying")
        for name in ("d/y", "d/x"):  # another one, and the one that is locked
            a.begin("create", name)
            assert s.settle(a).kind == "S_DYING"  # type: ignore[union-attr]
            if name == "d/y":
                s.go("rmdir:dying")
                assert (b.end(), a.end()) == ("EBUSY", "ok")
                a.do("unlink", "d/y")
                a.do("release", "d/x")
                s.run_to(b, "rmdir:locked", "rmdir", "d")
                a.do("acquire", "d/x")
                s.stop_at("rmdir:dying", b)
                s.go("rmdir:locked")
                s.reach(b, "rmdir:dying")
        s.go("rmdir:dying")
        assert (b.end(), a.end()) == ("EBUSY", "ok")
        assert s.arena.stats().counters["deadlocks"] == 0


# ---- F4, F5: never sleep on what is no longer what one wants ------------------------------------


def test_a_waiter_whose_name_becomes_another_one(arena_name: str) -> None:
    """F4 with immobile names: the cell waited for is reused. The waiter starts again from the path.

    Between the unlock and the waiter's next look the cell is claimed by who reuses it and then
    stands still: the waiter finds the word locked, and must not sleep on it.
    """
    with scene(arena_name) as s:
        a, b = s.actors(2)
        a.do("create", "x")
        a.do("unlink", "x")
        fill_ring(a)
        s.run_to(a, "lock:checked", "acquire", "x")
        s.run_to(b, "lock:before-sleep", "create", "x")
        s.stop_at("lock:before-sleep", b)  # the first time was a try that does not wait
        s.reach(b, "lock:before-sleep")
        s.go("lock:checked")
        assert a.end() == "held"
        assert a.do("release", "x") == "ok"
        s.run_to(a, "new-name:hashed", "create", "y")
        assert s.arena.stats().counters["recycled"] == 1
        sleeps = s.arena.stats().counters["sleeps"]
        s.go("lock:before-sleep")
        assert b.end() == "ok"
        # One that came back at once, since the word had changed; none on the foreign lock (which
        # would have ended with the cap of a sleep, when a call begins again).
        assert s.arena.stats().counters["sleeps"] == sleeps + 1
        assert s.arena.listdir() == ["x"]
        s.go("new-name:hashed")
        assert a.end() == "ok"


def test_the_death_of_its_directory_ends_a_wait(arena_name: str) -> None:
    """F4: a waiter for a name in a directory that dies meanwhile gets ENOENT, as its holder does.

    The holder came too late: it claims after the drain, finds the directory dead, and lets go.
    """
    with scene(arena_name) as s:
        remover, late, waiter = s.actors(3)
        s.arena.mkdir("d")
        known(s, "d/x")
        s.run_to(late, "lock:recorded", "create", "d/x")
        s.run_to(waiter, "lookup:done", "create", "d/x", timeout=PATIENCE)
        s.run_to(remover, "rmdir:drained", "rmdir", "d")
        s.stop_at("lock:claimed", late)
        s.go("lock:recorded")
        s.reach(late, "lock:claimed")
        s.go("lookup:done")
        assert s.settle(waiter).kind == "name"  # type: ignore[union-attr]
        s.go("rmdir:drained")
        assert remover.end() == "ok"
        assert s.settle(waiter) is not None, "still held"
        s.go("lock:claimed")
        assert (late.end(), waiter.end()) == ("ENOENT", "ENOENT")


@on_and_off("F5")
def test_a_drained_child_that_becomes_a_name_elsewhere(arena_name: str, broken: str | None) -> None:
    """F5, as in H8: the child that the drain waits for is reused in another directory.

    With immobile names only reclaim can take a child away.  Without the rule the removal waits for
    an operation on a name of a directory that it has nothing to do with.
    """
    with scene(arena_name, broken) as s:
        a, b = s.actors(2)
        s.arena.mkdir("d")
        s.arena.mkdir("e")
        a.do("create", "d/x")
        s.run_to(a, "remove:committed", "unlink", "d/x")
        s.run_to(b, "rmdir:before-sleep", "rmdir", "d")
        s.go("remove:committed")
        assert a.end() == "ok"
        fill_ring(a)
        s.run_to(a, "new-name:hashed", "create", "e/y")
        assert s.arena.stats().counters["recycled"] == 1
        s.go("rmdir:before-sleep")
        if broken:
            wait = s.settle(b)
            assert wait is not None
            assert (wait.kind, wait.path) == ("drain", "/e/y")
            return
        assert b.end() == "ok"
        s.go("new-name:hashed")
        assert a.end() == "ok"
        assert s.arena.listdir("e") == ["y"]


def test_children_reused_elsewhere_under_the_drains_scan(arena_name: str) -> None:
    """Trap 2: the scan stands at one child while those round it get lives elsewhere.

    They are not taken for children (a false ENOTEMPTY), and the scan does not follow them.
    """
    with scene(arena_name) as s:
        a, b, c = s.actors(3)
        s.arena.mkdir("d")
        s.arena.mkdir("e")
        names = [f"d/{n}" for n in range(7)]
        for name in names:
            a.do("create", name)
        for name in names:
            if name != "d/3":
                a.do("unlink", name)
        s.run_to(c, "remove:committed", "unlink", "d/3")
        s.run_to(b, "rmdir:before-sleep", "rmdir", "d")
        for n in range(6):
            assert a.do("create", f"e/{n}") == "ok"
        assert s.arena.stats().counters["recycled"] >= 3
        s.go("remove:committed", "rmdir:before-sleep")
        assert (c.end(), b.end()) == ("ok", "ok")
        assert sorted(s.arena.listdir("e")) == [str(n) for n in range(6)]
        assert s.arena.listdir() == ["e"]


def test_a_live_child_is_not_missed_by_the_scan(arena_name: str) -> None:
    """Trap 2, the other way: made behind the early look, before S_DYING, in a reused cell."""
    with scene(arena_name) as s:
        a, b = s.actors(2)
        s.arena.mkdir("d")
        for n in range(4):
            a.do("create", f"d/{n}")
        for n in (3, 2, 1, 0):
            a.do("unlink", f"d/{n}")
        s.run_to(b, "rmdir:locked", "rmdir", "d")
        assert a.do("create", "d/live") == "ok"
        assert s.arena.stats().counters["recycled"] == 1
        s.go("rmdir:locked")
        assert b.end() == "ENOTEMPTY"
        assert s.arena.listdir("d") == ["live"]


# ---- F9: what the lookup said is asked again under the lock -------------------------------------

F9_CASES = {
    # what is at x, the call that is held up, what others do meanwhile, right, without F9
    "made-meanwhile": (None, "create", ["create"], "EEXIST", "ok"),
    "made-meanwhile-mkdir": (None, "mkdir", ["mkdir"], "EEXIST", "ok"),
    "gone-meanwhile": ("create", "unlink", ["unlink"], "ENOENT", "ok"),
    "gone-meanwhile-rmdir": ("mkdir", "rmdir", ["rmdir"], "ENOENT", "ENOTDIR"),
    # (The type is the inode's, and a name that is made again has the same one: the cell's own.)
    "now-a-directory": ("create", "unlink", ["unlink", "mkdir"], "EISDIR", None),
    "now-a-file": ("mkdir", "rmdir", ["rmdir", "create"], "ENOTDIR", None),
    "another-file": ("create", "unlink", ["unlink", "create"], "ok", None),
    "another-directory": ("mkdir", "rmdir", ["rmdir", "mkdir"], "ok", None),
    "free-again": (None, "create", ["create", "unlink"], "ok", None),
}


@pytest.mark.parametrize(
    ("broken", "case"),
    [(None, case) for case in F9_CASES] + [("F9", case) for case in F9_CASES if F9_CASES[case][-1]],
)
def test_judged_under_the_lock(arena_name: str, broken: str | None, case: str) -> None:
    """F9: existence and type may have changed between lookup and lock."""
    before, call, meanwhile, right, wrong = F9_CASES[case]
    with scene(arena_name, broken) as s:
        a, b = s.actors(2)
        known(s, "x")
        if before:
            b.do(before, "x")
        s.run_to(a, "lookup:done", call, "x")
        for other in meanwhile:
            assert b.do(other, "x") == "ok"
        s.go("lookup:done")
        assert a.end() == (wrong if broken else right)
        if not broken:
            gone = {"ENOENT": True, "ok": call in {"unlink", "rmdir"}}.get(right, False)
            assert s.arena.exists("x") != gone
            assert s.arena.listdir() == ([] if gone else ["x"])


def test_the_same_new_name_by_two(arena_name: str) -> None:
    """F9 for a name that neither found: one hashes it, the other finds that out (no second x)."""
    with scene(arena_name) as s:
        a, b = s.actors(2)
        s.run_to(a, "new-name:listed", "create", "x")
        assert b.do("create", "x") == "ok"
        s.go("new-name:listed")
        assert a.end() == "EEXIST"
        assert s.arena.stats().counters["names_lost_race"] == 1
        assert s.arena.listdir() == ["x"]


def make_and_remove(name: str, rounds: int) -> set[str]:
    with shmlock.attach(name) as arena:
        calls = [lambda: arena.mkdir("d"), lambda: arena.rmdir("d")]
        return {outcome(call) for _ in range(rounds) for call in calls}


def test_removals_that_race_never_call_it_a_file(arena: shmlock.Arena) -> None:
    """F9 without the lock: an answer from the lookup alone is of one moment.

    No pause point can stand between reading where a name points and reading what is there, so
    this one is not scripted: of so many rounds some get in between (ENOTDIR, when it was wrong).
    """
    ends = procs.run_all(make_and_remove, [(arena.name, 60_000)] * 3)
    assert set().union(*ends) <= {"ok", "EEXIST", "ENOENT"}
    assert {"ok", "EEXIST", "ENOENT"} <= set().union(*ends), "they did race"


# ---- M9: the early ENOTEMPTY and EBUSY ----------------------------------------------------------


@on_and_off("M9")
def test_a_child_on_its_way_out_is_not_judged(arena_name: str, broken: str | None) -> None:
    """M9: a live child that is locked is waited for, not answered for."""
    with scene(arena_name, broken) as s:
        a, b = s.actors(2)
        s.arena.mkdir("d")
        s.arena.create("d/x")
        s.run_to(a, "lock:checked", "unlink", "d/x")
        b.begin("rmdir", "d")
        wait = s.settle(b)
        s.go("lock:checked")
        assert a.end() == "ok"
        assert b.end() == ("ENOTEMPTY" if broken else "ok")
        assert (wait is None) == (broken is not None)


def test_an_unlocked_live_child_answers_at_once(arena_name: str) -> None:
    """M9: no S_DYING, so operations in the directory are not held up."""
    with scene(arena_name) as s:
        a, b, c = s.actors(3)
        s.arena.mkdir("d")
        s.arena.create("d/live")
        s.run_to(a, "make:inode", "create", "d/x")  # in flight, and not waited for
        s.stop_at("rmdir:locked")
        assert b.do("rmdir", "d") == "ENOTEMPTY"
        assert not s.reached("rmdir:locked")
        assert c.do("create", "d/y") == "ok"
        s.go("make:inode")
        assert a.end() == "ok"


@pytest.mark.parametrize("live", [False, True])
def test_a_persons_lock_makes_a_removal_busy(arena_name: str, live: bool) -> None:
    """EBUSY at once, without S_DYING, whether or not anything has the name."""
    with scene(arena_name) as s:
        a, b = s.actors(2)
        s.arena.mkdir("d")
        if live:
            s.arena.create("d/x")
        assert a.do("acquire", "d/x") == "held"
        s.stop_at("rmdir:locked")
        for who in (a, b):  # its own lock, too
            assert who.do("rmdir", "d") == "EBUSY"
        assert not s.reached("rmdir:locked")
        assert a.do("release", "d/x") == "ok"
        s.go("rmdir:locked")
        assert b.do("rmdir", "d") == ("ENOTEMPTY" if live else "ok")


@pytest.mark.parametrize("point", ["rmdir:locked", "rmdir:before-sleep"])
def test_a_persons_lock_that_comes_in_between(arena_name: str, point: str) -> None:
    """Taken after the early look: EBUSY from the drain, S_DYING is cleared, others go on."""
    with scene(arena_name) as s:
        a, b, c, d = s.actors(4)
        s.arena.mkdir("d")
        known(s, "d/p")
        if point == "rmdir:locked":
            s.run_to(b, point, "rmdir", "d")
            assert a.do("acquire", "d/p") == "held"
        else:
            # Claimed before S_DYING, seen by the drain as an operation's lock or as a person's.
            s.arena.create("d/x")
            s.run_to(c, "remove:committed", "unlink", "d/x")
            s.run_to(a, "lock:recorded", "acquire", "d/p")
            s.run_to(b, "rmdir:locked", "rmdir", "d")
            s.stop_at("lock:checked", a)
            s.go("lock:recorded")
            s.reach(a, "lock:checked")
            s.go("rmdir:locked")
            s.settle(b)
            s.go("lock:checked", "remove:committed")
            assert (a.end(), c.end()) == ("held", "ok")
        s.go(point)
        assert b.end() == "EBUSY"
        assert d.do("create", "d/after") == "ok"
        assert a.do("release", "d/p") == "ok"


# ---- Directories that come back under the same path ---------------------------------------------


LONG = "n" * 60


@pytest.mark.parametrize("name", ["known", "new", LONG], ids=["known", "new", "long"])
@pytest.mark.parametrize("call", ["create", "mkdir"])
def test_who_walked_before_the_removal_arrives_after_the_next_mkdir(
    arena_name: str, call: str, name: str
) -> None:
    """Trap 3: the directory's inode line is in use again, by another directory of that path.

    The late creator must not get into the new directory by the old one's number, and not into the
    dead one either.  Where the name is known, it went with the directory: "match" sends him back
    to the path, and he gets into the new one.  (The number is asked for twice, by the list of
    blocks and after the claim: no one rule that is switched off breaks this.)
    """
    with scene(arena_name) as s:
        a, b = s.actors(2)
        assert b.do("mkdir", "d") == "ok"
        known(s, "d/known")
        before = s.arena.stat("d").st_ino
        s.run_to(a, "lookup:done", call, f"d/{name}")
        assert b.do("rmdir", "d") == "ok"
        assert b.do("mkdir", "d") == "ok"
        after = s.arena.stat("d").st_ino
        assert before != after
        assert before & 0xFFFFFFFF == after & 0xFFFFFFFF, "it is the same line, used again"
        s.go("lookup:done")
        ended = a.end()
        there = s.arena.listdir("d")
        if name == "known":
            assert (ended, there) == ("ok", [name])
        else:
            assert (ended, there) == ("ENOENT", [])
        assert b.do("create", "d/other") == "ok"


@pytest.mark.parametrize("point", ["new-name:written", "new-name:hashed", "lock:claimed"])
def test_a_person_who_walked_before_the_removal(arena_name: str, point: str) -> None:
    """Trap 3 for a NameLock, whose first try does not wait: the next one walks anew."""
    with scene(arena_name) as s:
        a, b, c = s.actors(3)
        assert b.do("mkdir", "d") == "ok"
        if point == "lock:claimed":
            known(s, "d/x")
        s.run_to(a, point, "acquire", "d/x")
        b.begin("rmdir", "d")
        if point == "new-name:written":
            assert (b.end(), b.do("mkdir", "d")) == ("ok", "ok")
            s.go(point)
            assert a.end() == "held"
            assert s.arena.lock("d/x").locked()
            assert c.do("rmdir", "d") == "EBUSY"
        else:
            s.settle(b)
            s.go(point)
            assert (a.end(), b.end()) in [("held", "EBUSY"), ("ENOENT", "ok")]


@on_and_off("dying-check")
def test_a_name_still_cached_in_a_dead_directory(arena_name: str, broken: str | None) -> None:
    """N4: it is found, but its lock is refused for good: ENOENT, not one try after the other."""
    with scene(arena_name, broken) as s:
        remover, late, later = s.actors(3)
        s.arena.mkdir("d")
        known(s, "d/x")
        s.run_to(late, "lock:recorded", "create", "d/x")
        s.run_to(later, "lookup:done", "create", "d/x", timeout=PATIENCE)
        s.run_to(remover, "rmdir:drained", "rmdir", "d")
        s.stop_at("lock:claimed", late)
        s.go("lock:recorded")
        s.reach(late, "lock:claimed")  # so the removal cannot take this name out of the cache
        s.go("rmdir:drained")
        assert remover.end() == "ok"
        s.go("lock:claimed")
        if broken:
            assert late.end() == "ok", "made in a dead directory"
            assert s.arena.check() != []
            return
        assert late.end() == "ENOENT"
        retries = s.arena.stats().counters["retries"]
        s.go("lookup:done")
        assert later.end() == "ENOENT"
        assert s.arena.stats().counters["retries"] - retries <= 2
        assert s.arena.mkdir("d") is None  # type: ignore[func-returns-value]
        assert s.arena.listdir("d") == []


def test_a_lookup_of_a_name_that_moves_reads_again(arena_name: str) -> None:
    """Trap 1: a name between two identities is read again, not skipped: no second one gets in.

    The cell is claimed and taken out of its chain (recycle:unhashed), so a lookup of the old name
    misses and one of the new name does not find it yet; both names end up once.
    """
    with scene(arena_name) as s:
        a, b, c = s.actors(3)
        a.do("create", "x")
        a.do("unlink", "x")
        fill_ring(a)
        s.run_to(a, "recycle:unhashed", "create", "y")
        assert b.do("create", "x") == "ok"
        assert c.do("create", "y") == "ok"
        s.go("recycle:unhashed")
        assert a.end() == "EEXIST"
        assert sorted(s.arena.listdir()) == ["x", "y"]


def test_who_wants_a_name_that_is_just_being_reused(arena_name: str) -> None:
    """Trap 4: claimed for reuse, still hashed. Who wants it waits, then makes it anew."""
    with scene(arena_name) as s:
        a, b = s.actors(2)
        a.do("create", "x")
        a.do("unlink", "x")
        fill_ring(a)
        s.run_to(a, "recycle:locked", "create", "y")
        b.begin("create", "x", timeout=PATIENCE)
        assert s.settle(b).path == "/x"  # type: ignore[union-attr]
        s.go("recycle:locked")
        assert (a.end(), b.end()) == ("ok", "ok")
        assert sorted(s.arena.listdir()) == ["x", "y"]


def test_a_name_in_use_again_is_not_reused(arena_name: str) -> None:
    """Trap 4: the ring remembers it as empty, but it is not, or is a person's: left alone."""
    with scene(arena_name) as s:
        a, b = s.actors(2)
        for name in ("x", "p"):
            a.do("create", name)
            a.do("unlink", name)
        fill_ring(a)
        assert b.do("mkdir", "x") == "ok"
        assert b.do("acquire", "p") == "held"
        for n in range(6):
            assert a.do("create", f"y{n}") == "ok"
        assert s.arena.is_dir("x")
        assert s.arena.lock("p").locked()
        assert b.do("create", "x/in") == "ok"
        assert b.do("release", "p") == "ok"


# ---- i_rwsem ------------------------------------------------------------------------------------


def test_two_removals_of_one_directory(arena_name: str) -> None:
    """The second waits for the name, then there is nothing to remove."""
    with scene(arena_name) as s:
        a, b = s.actors(2)
        s.arena.mkdir("d")
        s.run_to(a, "rmdir:dying", "rmdir", "d")
        b.begin("rmdir", "d", timeout=procs.DEADLINE)
        wait = s.settle(b)
        assert wait is not None
        assert (wait.kind, wait.path) == ("name", "/d")
        s.go("rmdir:dying")
        assert (a.end(), b.end()) == ("ok", "ENOENT")


def test_a_removal_under_a_removal(arena_name: str) -> None:
    """A removal of d while d/e is being removed: drains it, and succeeds after it."""
    with scene(arena_name) as s:
        a, b = s.actors(2)
        s.arena.makedirs("d/e")
        s.run_to(a, "rmdir:dead", "rmdir", "d/e")
        b.begin("rmdir", "d")
        wait = s.settle(b)
        assert wait is not None
        assert (wait.kind, wait.path) == ("drain", "/d/e")
        s.go("rmdir:dead")
        assert (a.end(), b.end()) == ("ok", "ok")
        assert s.arena.listdir() == []
