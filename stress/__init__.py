# SPDX-License-Identifier: MIT
"""`shmlock stress`: real processes contend for names in one arena, and judges watch.

`scenario.py` says what a scenario is, `scenarios/` has one a file, `harness.py` runs one on N
processes, `worker.py` is what runs in each, `judge.py` decides afterwards, `report.py` tells
people, `command.py` is the command line.
"""
