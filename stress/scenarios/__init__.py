# SPDX-License-Identifier: MIT
"""One scenario a file. A module here with a `SCENARIO` is found by name; nothing to register."""
