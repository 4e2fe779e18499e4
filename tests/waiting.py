"""Waiting until something is really so, in this process or another one."""

import os
import threading
import time

import procs
import shmlock
from shmlock import inspect


def until_waiting(arena: shmlock.Arena, pid: int) -> inspect.Task:
    """Poll until a task of the process is seen to wait for a lock."""
    deadline = time.monotonic() + procs.DEADLINE
    while time.monotonic() < deadline:
        for task in inspect.snapshot(arena).tasks:
            if task.pid == pid and task.waits:
                return task
    raise procs.Hang(f"process {pid} never waited")


def join(thread: threading.Thread) -> None:
    """Join a thread, and wait until the system is done with it too.

    Before Python 3.13 a thread may be joined before its last C code has run, which is what gives
    its task slot back.
    """
    thread.join()
    deadline = time.monotonic() + procs.DEADLINE
    while os.path.exists(f"/proc/self/task/{thread.native_id}"):
        if time.monotonic() > deadline:
            raise procs.Hang(f"thread {thread.native_id} never ended")
