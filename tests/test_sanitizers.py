"""The C core under ASan, UBSan and TSan, in short; `.ci/run` does it at length."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "c" / "run.sh"
SKIPPED = 77  # the script's exit status when a sanitizer does not work here


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("sanitizer", "build"), [("asan", "debug"), ("ubsan", "release"), ("tsan", "debug")]
)
def test_no_report(sanitizer: str, build: str) -> None:
    """Threads on one mapping, and processes that are killed: no report and no wrong answer."""
    seed = str(int.from_bytes(os.urandom(3), "little"))
    command = ["bash", str(SCRIPT), "--seconds", "1", "--seed", seed, "--build", build, sanitizer]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode == SKIPPED:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}"
    assert "sanitizers: no report" in done.stdout
