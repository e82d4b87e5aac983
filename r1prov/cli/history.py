"""`r1prov history`: what was done to hosts, by whom and when."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from r1prov import output
from r1prov.cli import options
from r1prov.common.errors import Exit, UnreachableError
from r1prov.output.pace import clock
from r1prov.runs.history import History, Record, histories

if TYPE_CHECKING:
    from collections.abc import Iterator


@options.logs_in
def history(
    hosts: options.Hosts = None,
    *,
    last: Annotated[int, typer.Option("--last", min=1, help="Show so many of the newest runs of each host.")] = 10,
    site: options.SiteFile = None,
    login_options: options.LoginOptions,
    json: options.Json = False,
) -> None:
    """Say which runs changed hosts: who, when, from where, from what to what, what was mended, and how each ended.

    The last 200 runs over a host are kept on the host, whoever began them, and here, where this machine did. Exit code 4 where a
    host cannot be asked: then only what is kept here is shown.

    Example: `r1prov history gpu1`
    """
    found = histories(site, hosts or (), login_options.ask())
    away = [problem for each in found.values() for problem in each.away]
    if json:
        output.data(document(found, last))
    else:
        for name, each in found.items():
            for text in in_words(name, each, last):
                # A host tells this, so it is not given the terminal.
                output.line("".join(letter if letter.isprintable() else " " for letter in text))
            if not each.records:
                output.say(f"{name}: no run is kept")
            if each.away:
                output.say(f"{name}: only what is kept here is shown, because the host cannot be asked", "yellow")
    if away:
        raise UnreachableError(*away)


def document(found: dict[str, History], last: int) -> dict[str, Any]:
    """The histories as a JSON document. `complete` says whether the host was asked."""
    return {
        "exit": Exit.UNREACHABLE if any(each.away for each in found.values()) else Exit.OK,
        "hosts": {
            name: {
                "complete": not each.away,
                "runs": [
                    record.model_dump() | {"verb": verb(record), "state": each.state(record), "moves": moves(record)}
                    for record in each.records[-last:]
                ],
            }
            for name, each in found.items()
        },
    }


def in_words(host: str, found: History, last: int) -> Iterator[str]:
    """The newest runs over a host, one after the other, oldest first."""
    for record in found.records[-last:]:
        took = f" after {clock(_seconds(record))}" if record.ended else ""
        failed = f" (exit code {record.exit})" if record.exit and record.result != "ok" else ""
        begun = datetime.fromisoformat(record.begun).astimezone()
        who = f"{record.user}@{record.controller}"
        yield f"{host}  {begun:%Y-%m-%d %H:%M}  {who}  {record.command}: {found.state(record)}{took}{failed}"
        if changes := moves(record):
            yield f"  {', '.join(changes)}"
        done = "put right" if record.result == "ok" else "found"
        for difference in record.differences:
            yield f"  {done}: {difference}"
        if record.changes:
            count = record.changed
            yield f"  {count} {'change' if count == 1 else 'changes'}: {'; '.join(record.changes[:3])}{'; …' * (count > 3)}"
        if record.message:
            yield f"  {record.message}"
        if record.log and Path(record.log).is_file():
            yield f"  Ansible's output: {record.log}"


def verb(record: Record) -> str:
    """What was asked for: `up`, or `secrets`; the playbook of plain Ansible."""
    words = [word for word in shlex.split(record.command)[1:] if not word.startswith("-")]
    return words[0] if words else record.command


def moves(record: Record) -> list[str]:
    """What a run brought the host from and to."""
    return [
        f"{key} {record.before[key]} -> {value}" if key in record.before else f"{key} {value}"
        for key, value in record.after.items()
        if record.before.get(key) != value
    ]


def _seconds(record: Record) -> float:
    begun, ended = (datetime.fromisoformat(each).astimezone(UTC) for each in (record.begun, record.ended))
    return max(0.0, (ended - begun).total_seconds())
