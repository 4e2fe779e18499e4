# SPDX-License-Identifier: MIT
"""What a run was asked to do; goes to every worker, and back to the reader as a command."""

from __future__ import annotations

import random
import shlex
from dataclasses import dataclass

# Two neighbouring seeds must not share a worker's stream: seed 1's worker 2 is not seed 2's 1.
_SEED_STRIDE = 1_000_003


@dataclass(frozen=True)
class Plan:
    """One run of one scenario.

    `latency_us` None means the scenario's own latency; otherwise every filesystem operation
    sleeps that long, in microseconds, while its locks are held.
    """

    scenario: str
    procs: int
    seconds: float
    seed: int
    locking: str = "dentry"
    latency_us: float | None = None
    debug: bool = False
    break_rule: str | None = None
    perturb_ppm: int = 0

    def random(self, worker: int) -> random.Random:
        """The stream of choices of one worker."""
        return random.Random(self.seed * _SEED_STRIDE + worker)

    def command(self) -> str:
        """The command line that repeats this run."""
        words = ["shmlock", "stress", self.scenario, "--procs", str(self.procs)]
        words += ["--seconds", f"{self.seconds:g}", "--seed", str(self.seed)]
        words += ["--locking", self.locking]
        if self.latency_us is not None:
            words += ["--latency-us", f"{self.latency_us:g}"]
        if self.break_rule is not None:
            words += ["--break-rule", self.break_rule]
        elif self.debug:
            words.append("--debug")
        if self.perturb_ppm:
            words += ["--perturb", str(self.perturb_ppm)]
        return shlex.join(words)
