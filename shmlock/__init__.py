"""Locks on names, in shared memory, between processes that need know nothing but an arena's name.

The locking is the one proposed for directories in the Linux VFS: each name has a lock of its own.
"""

import sys

if sys.platform != "linux":
    raise ImportError("shmlock works on Linux only: it needs futexes, robust mutexes and /dev/shm.")

from shmlock._lib import LAYOUT_VERSION
from shmlock.arena import Arena
from shmlock.attach import arenas, attach, create, open, temporary, unlink
from shmlock.errors import ArenaDamaged, ArenaMismatch, DeadlockError
from shmlock.listing import Entry
from shmlock.locks import NameLock
from shmlock.stats import Fault, Owner, StatResult, Stats

__version__ = "0.1.0"

__all__ = [
    "LAYOUT_VERSION",
    "Arena",
    "ArenaDamaged",
    "ArenaMismatch",
    "DeadlockError",
    "Entry",
    "Fault",
    "NameLock",
    "Owner",
    "StatResult",
    "Stats",
    "__version__",
    "arenas",
    "attach",
    "create",
    "open",
    "temporary",
    "unlink",
]
