"""`r1prov lab`: throwaway hosts on this machine, for tests and the demo."""

from __future__ import annotations

import json
import os
from typing import Annotated

import typer

from r1prov import lab, output
from r1prov.cli.command import App

app = App(no_args_is_help=True, help="Throwaway hosts on this machine: real systemd or none, real ssh. Needs root.")


def _say(line: str) -> None:
    output.say(line)


@app.command()
def up(
    name: str,
    *,
    release: Annotated[str, typer.Option(help=f"Debian release: {', '.join(lab.RELEASES)}.")] = "bookworm",
    container: Annotated[
        bool, typer.Option(help="A rented container without systemd: a script starts sshd, a data disk lies apart.")
    ] = False,
    image: Annotated[str, typer.Option(help="An image that `keep` has made, instead of the bare release.")] = "",
    bpf: Annotated[
        bool, typer.Option(help="Let the host use BPF, as a server may and many containers may not.")
    ] = False,
    rules: Annotated[
        bool, typer.Option(help="Let root of a container change the rules of its network, as few platforms do.")
    ] = False,
    bind: Annotated[list[str] | None, typer.Option(help="A folder to show to the host, as HERE:THERE.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print address, key and known_hosts as JSON.")] = False,
) -> None:
    """Boot a fresh host: a minimal Debian with sshd and python3, nothing else."""
    host = lab.up(
        name,
        release,  # type: ignore[arg-type] # up() checks the release
        image=image,
        container=container,
        bpf=bpf,
        rules=rules,
        binds=bind or (),
        say=_say,
    )
    typer.echo(json.dumps(_facts(host)) if as_json else host.address)


@app.command()
def keep(name: str, image: str) -> None:
    """Shut a host down and keep its disk as an image, which other hosts boot from: `up --image`."""
    lab.keep(name, image, say=_say)


@app.command()
def restart(name: str) -> None:
    """End all processes of a host at once and boot it again from its disk. A container then runs its /etc/autodl.sh."""
    lab.restart(lab.get(name))
    output.say(f"{name} is up again")


@app.command()
def rebuild(name: str) -> None:
    """Throw away what was changed on a host's disk, and boot it as it was at first. A container's data disks stay."""
    lab.rebuild(lab.get(name))
    output.say(f"{name} is up again, as it was at first")


@app.command()
def down(
    name: Annotated[str | None, typer.Argument()] = None,
    every: Annotated[bool, typer.Option("--all", help="Every host, and what crashed runs left.")] = False,
) -> None:
    """Remove a host and everything it left on this machine."""
    if every == bool(name):
        raise typer.BadParameter("give either the name of a host or --all")
    if name:
        lab.down(name, say=_say)
    else:
        lab.down_all(say=_say)


@app.command("list")
def list_hosts(as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False) -> None:
    """List the hosts."""
    facts = [_facts(host) for host in lab.hosts()]
    if as_json:
        typer.echo(json.dumps(facts))
        return
    columns = ("name", "address", "release", "kind", "state")
    output.table(columns, [[fact[column] for column in columns] for fact in facts])


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def ssh(name: str, command: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """Log in to a host as root, or run a command there (a shell line, as ssh takes it)."""
    host = lab.get(name)
    os.execvp("ssh", [*host.ssh_argv(), *(command or [])])  # noqa: S606 - ssh takes over the terminal


def _facts(host: lab.LabHost) -> dict[str, str]:
    return {
        "name": host.name,
        "address": host.address,
        "release": host.release,
        "kind": "container" if host.container else "server",
        "state": "running" if host.running else "stopped",
        "user": "root",
        "key": str(host.key),
        "known_hosts": str(host.known_hosts),
        "console": str(host.directory / "console.log"),
    }
