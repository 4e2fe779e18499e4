"""``python -m shmlock``: the command line."""

import sys

from shmlock.cli import main

if __name__ == "__main__":
    sys.exit(main())
