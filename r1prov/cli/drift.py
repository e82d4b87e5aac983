"""`r1prov drift`: what `r1prov up` would change on hosts."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from r1prov import output
from r1prov.cli import options
from r1prov.common.errors import Exit
from r1prov.site.select import last_applied, wanted

if TYPE_CHECKING:
    from r1prov.hosts import Look


@options.logs_in
def drift(
    hosts: options.Hosts = None,
    *,
    site: options.SiteFile = None,
    login_options: options.LoginOptions,
    deep: Annotated[
        bool,
        typer.Option(
            "--deep",
            help="Also read every file that is installed, and all weights: finds a byte that a disk has changed. It takes the "
            "lock of a server, and as long as its disk takes.",
        ),
    ] = False,
    diff: Annotated[
        bool,
        typer.Option(
            "--diff",
            help="Also show how the content of files differs. Ansible checks the servers on which something differs, which takes as "
            "long as a run.",
        ),
    ] = False,
    verbose: options.Verbose = 0,
    json: options.Json = False,
) -> None:
    """Say what `up` would change on servers, and change nothing. Exit code 11: something differs; 12: that could not be told.

    Example: `r1prov drift gpu1`
    """
    asked, targets = wanted(site, hosts or ())
    early = login_options.begin(asked, targets)
    # Imported late, because hosts answer meanwhile.
    from r1prov.cli import running  # noqa: PLC0415
    from r1prov.runs import drift as looks  # noqa: PLC0415

    decision = running.settle(asked)
    login = login_options.ask()
    request = running.request("up", check=True, verbosity=verbose)
    asking = replace(request, diff=diff)  # What differs is shown at the end, and not as it happens, too.
    found = running.watched(
        asked, targets, request, lambda live: looks.drift(decision, targets, login, asking, live, early=early)
    )
    if deep:
        applied, there = last_applied(site, hosts or ())
        brought = running.settle(applied)
        reading = running.request("read", verbosity=verbose)
        damage = running.watched(applied, there, reading, lambda live: looks.read(brought, there, login, reading, live))
        found |= {name: looks.both(found[name], each) for name, each in damage.items() if name in found}
    code = exit_code(found)
    if json:
        output.data(document(found, code))
    else:
        _show(found)
    if code:
        raise typer.Exit(code)


def exit_code(found: dict[str, Look]) -> Exit:
    """The exit code. That something differs says more than that something else cannot be told."""
    if any(each.differences for each in found.values()):
        return Exit.DRIFTED
    return Exit.UNTOLD if any(each.unknown for each in found.values()) else Exit.OK


def document(found: dict[str, Look], code: Exit) -> dict[str, Any]:
    """What was found, as a JSON document. `state` is `as wanted`, `drifted` or `unknown`."""
    return {
        "exit": code,
        "hosts": {
            name: {
                "state": "drifted" if each.differences else "unknown" if each.unknown else "as wanted",
                "differences": [asdict(difference) for difference in each.differences],
                "diffs": [asdict(diff) for diff in each.diffs],
                "unknown": each.unknown,
                "stays": list(each.stays),
                "asked": each.asked,
                "seconds": each.seconds,
            }
            for name, each in found.items()
        },
    }


def _show(found: dict[str, Look]) -> None:
    rows = [(name, each.what, each.step) for name, host in found.items() for each in host.differences]
    if rows:
        output.table(("host", "what differs", "mended by"), rows)
    for name, each in found.items():
        for diff in each.diffs:
            output.write(f"\n{name}: {diff.path}, mended by {diff.step}\n{diff.diff}\n")
    for name, each in found.items():
        for text in each.stays:
            output.say(f"{name}: {text}")
        if each.unknown:
            output.say(f"{name}: it could not be told: {each.unknown}", "yellow")
        elif not each.differences:
            output.say(f"{name}: nothing differs ({each.asked} questions, {each.seconds:.1f} s)")
    if rows:
        output.say("`r1prov up` mends this.")
