"""The exceptions that the standard library has no class for.

Everything else is the ``OSError`` subclass that ``os`` would raise.  All of them pickle.
"""


class ArenaMismatch(OSError):
    """The object of that name is no arena, or not one that this process can use.

    The message names what was found, what was expected, and what to do.
    ``errno`` is EINVAL, ``filename`` the arena's name.
    """


class ArenaDamaged(OSError):
    """The arena's bytes make no sense: somebody wrote into it who should not have.

    ``errno`` is EUCLEAN.  Nothing was followed out of the arena and nothing was changed.
    """


class DeadlockError(OSError):
    """Waiting would never have ended: the tasks wait for one another in a circle.

    Raised in exactly one task of the circle; the message names pids, tids and paths.
    ``errno`` is EDEADLK.  The call has changed nothing; what the task held before, it still
    holds: release something and try again.
    """
