"""Asks a host by one of our programs for hosts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from r1prov.common.errors import Problem, UnreachableError

if TYPE_CHECKING:
    from r1prov.hosts.connection import HostConnection


def ask(connection: HostConnection, program: str, job: dict[str, Any], cannot: str, timeout_s: float) -> dict[str, Any]:
    """Run a program on a host as root, and return what it tells.

    Args:
        connection: to the host.
        program: the text of the program. Its function `main` takes the job and prints a JSON object.
        job: what the program is asked.
        cannot: what fails where the program tells nothing, e.g. `it cannot be looked at`.
        timeout_s: how long it may take, in seconds.

    Raises:
        UnreachableError: the connection is lost, or the program tells nothing.
    """
    # Everything goes through stdin: argument lists have a limit, and everybody on the host may read them.
    script = f"{program}\n\nmain(json.loads({json.dumps(job)!r}))\n"
    result = connection.run(["python3", "-I", "-"], script, root=True, timeout_s=timeout_s)
    try:
        said: dict[str, Any] = json.loads(result.out)
    except ValueError:
        reason = result.err.strip().rpartition("\n")[2] or "no reason given"
        remedy = "log in there by hand, and see whether `sudo python3 --version` works"
        raise UnreachableError(Problem(connection.host.name, f"{cannot}: {reason}", remedy)) from None
    return said
