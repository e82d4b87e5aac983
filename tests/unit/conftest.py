"""What holds for all unit tests."""

from __future__ import annotations

from hypothesis import settings

# The examples are the same each time, and none fails because the machine is busy with other things.
settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")
