"""What /proc tells about the processes that listings name."""

from __future__ import annotations

from pathlib import Path


def command(pid: int) -> str | None:
    """Return the name of a process's program (proc(5), comm); None: no such process."""
    try:
        return Path(f"/proc/{pid}/comm").read_bytes().decode(errors="replace").rstrip("\n")
    except OSError:
        return None


def named(pid: int) -> str:
    """Return ``pid 12 (make)``, or ``pid 12`` when its program is not known."""
    name = command(pid)
    return f"pid {pid}" if name is None else f"pid {pid} ({name})"
