"""What a shell script of the host sets for the programs that come after it, such as the proxies of a rented machine."""

from __future__ import annotations

import os
import subprocess

LIMIT_S = 20
_ITS_OWN = {"_", "SHLVL", "PWD", "OLDPWD", "COLUMNS", "LINES"}
"""What bash sets itself."""


class SourcedError(Exception):
    """A script cannot be sourced; the message says why."""


def variables(script: str) -> dict[str, str]:
    """The variables that a script sets to other values than they have here. None of them is set for this process.

    Args:
        script: the file; without one there are no variables.

    Raises:
        SourcedError: bash cannot source it.
    """
    if not script:
        return {}
    command = ["bash", "-c", '. "$0" >&2 && exec env --null', script]
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SourcedError(f"{script} cannot be sourced: {error}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise SourcedError(f"{script} cannot be sourced: {said or f'it ends with {done.returncode}'}")
    pairs = [each.partition("=") for each in done.stdout.decode(errors="replace").split("\0") if each]
    return {name: value for name, _, value in pairs if name not in _ITS_OWN and os.environ.get(name) != value}
