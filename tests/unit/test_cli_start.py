"""Tests which modules a verb imports: a verb that only calculates must not import the libraries of the others."""

import os
import subprocess
import sys

import pytest

from r1prov.cli.verbs import VERBS, command
from r1prov.common.errors import Exit

SLOW = {"ansible_runner", "cryptography", "httpx", "jinja2", "numpy", "paramiko", "pypi_simple", "zxcvbn"}


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("plan", "--quant", "UD-IQ1_S"),
        ("explain", "--gpus", "1x24GiB", "--ram", "480GiB", "--", "-ngl", "7", "-c", "512"),
    ],
)
def test_what_only_calculates_does_not_load_ansible_or_ssh(words: tuple[str, ...]) -> None:
    script = f"""
import sys
from r1prov.cli import main
try:
    main({words!r})
finally:
    # A library that is read late is there by its name alone.
    loaded = {{name.partition(".")[0] for name in sys.modules if "." in name}}
    print("loaded:", *sorted({SLOW!r} & loaded), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout
    assert done.stderr.splitlines()[-1] == "loaded:"


@pytest.mark.parametrize("words", [("plan",), ("plan", "--json"), ("profiles",), ("--help",)])
def test_a_reader_that_goes_away_is_no_defect(words: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command = [sys.executable, "-c", f"from r1prov.cli import main; main({words!r})"]
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (Exit.UNREAD, "")


@pytest.mark.parametrize("verb", VERBS)
def test_the_list_says_what_the_verb_says(verb: str) -> None:
    assert command(verb).help.split("\n\n")[0].replace("\n", " ") == VERBS[verb][1]


def test_a_group_of_one_verb_is_a_group() -> None:
    assert "rotate" in command("secrets").commands


def test_a_look_begins_before_what_shows_it_is_imported() -> None:
    script = "import sys, r1prov.cli.drift, r1prov.runs.early; print({'rich', 'jinja2', 'r1prov.decision'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
