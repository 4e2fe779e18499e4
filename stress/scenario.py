# SPDX-License-Identifier: MIT
"""What a scenario is, and where they are found.

Each module in `scenarios/` has one `SCENARIO`. Its docstring names the kernel rule attacked
and what a broken lock would show.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import scenarios

if TYPE_CHECKING:
    from .worker import Worker

Step = Callable[[], object]
"""One small piece of a worker's job: a few calls and what is to be said about them."""


@dataclass(frozen=True)
class Aim:
    """A coverage counter that has to be above zero, or the run was not where it was sent.

    A run of fewer than `from_ops` operations is too short to be blamed.
    """

    counter: str
    from_ops: int = 20_000


@dataclass(frozen=True)
class Scenario:
    """One stress scenario. Everything in it runs on the public Python API only.

    Attributes:
        name: a sentence in kebab-case.
        rule: the rule attacked, for people.
        shared: what the workers share.
        setup: builds what must be there before the first worker starts.
        worker: gives one worker's steps, each with its weight.
        allowed_errnos: per operation, the errnos that it may end with. Any other is a violation.
        aims: counters that must be above zero.
        marks: size of the occupancy table: names that are held by people.
        dentries: size of the arena.
        sleep_us, spin_us: how long each filesystem operation takes while its locks are held.
        stutter: have that latency for a while and none for a longer while, by turns: operations
            that overlap, and operations that follow each other as fast as they can.
    """

    name: str
    rule: str
    shared: str
    setup: Callable[[Worker], None]
    worker: Callable[[Worker], Sequence[tuple[int, Step]]]
    allowed_errnos: Mapping[str, frozenset[int]]
    aims: tuple[Aim, ...] = ()
    marks: int = 0
    dentries: int = 4096
    sleep_us: float = 0.0
    spin_us: float = 0.0
    stutter: bool = False


DEFAULT = "everything-mixed"


def load() -> dict[str, Scenario]:
    """All scenarios by name, the default first, the others in alphabetical order."""
    found: dict[str, Scenario] = {}
    for module in pkgutil.iter_modules(scenarios.__path__):
        scenario = importlib.import_module(f"{scenarios.__name__}.{module.name}").SCENARIO
        found[scenario.name] = scenario
    return dict(sorted(found.items(), key=lambda item: (item[0] != DEFAULT, item[0])))
