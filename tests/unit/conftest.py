"""The settings of all unit tests."""

from __future__ import annotations

import os

from hypothesis import settings

# Pytest's workers are given a terminal of 80 columns, which they do not have. What is printed has the width of a pipe.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)

# Hypothesis tries the same examples each time, and no test fails because the machine is busy.
settings.register_profile("same", derandomize=True, deadline=None, max_examples=50)
# `make thorough` tries ten times as many, and others each time.
settings.register_profile("thorough", deadline=None, max_examples=500)
settings.load_profile("same")
