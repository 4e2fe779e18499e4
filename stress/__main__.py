# SPDX-License-Identifier: MIT
"""`python -m shmlock.stress`: the same as `shmlock stress`."""

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main())
