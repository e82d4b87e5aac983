"""The settings of all unit tests."""

from __future__ import annotations

from hypothesis import settings

# Hypothesis tries the same examples each time, and no test fails because the machine is busy.
settings.register_profile("same", derandomize=True, deadline=None, max_examples=50)
# `make thorough` tries ten times as many, and others each time.
settings.register_profile("thorough", deadline=None, max_examples=500)
settings.load_profile("same")
