"""What all tests have in common."""

from __future__ import annotations

import os

# Pytest's workers are given a terminal of 80 columns, which they do not have. What is printed has the width of a pipe.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)
