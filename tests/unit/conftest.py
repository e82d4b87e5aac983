"""The settings of all unit tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Hypothesis tries the same examples each time, and no test fails because the machine is busy.
settings.register_profile("same", derandomize=True, deadline=None, max_examples=50)
# `make thorough` tries ten times as many, and others each time.
settings.register_profile("thorough", deadline=None, max_examples=500)
settings.load_profile("same")


@pytest.fixture(autouse=True)
def process_as_it_was() -> Iterator[None]:
    """Put back what all tests of a worker share, and what the programs that they start inherit.

    A module's `main` sets the locale of its own process, for instance, and a command of r1prov heeds signals. Here that is the process
    of tests that happen to run later.
    """
    environment, folder = dict(os.environ), Path.cwd()
    signals = {each: signal.getsignal(each) for each in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
    yield
    for name in os.environ.keys() - environment.keys() - {"PYTEST_CURRENT_TEST"}:  # pytest itself removes the last one
        del os.environ[name]
    os.environ.update(environment)
    os.chdir(folder)
    for each, handler in signals.items():
        signal.signal(each, handler)
