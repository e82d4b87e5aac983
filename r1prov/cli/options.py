"""Options that several verbs have in common."""

from __future__ import annotations

import functools
import getpass
import inspect
import os
import shlex
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from r1prov import output
from r1prov.cli import complete
from r1prov.cli.complete import SITE_VARIABLE
from r1prov.common.errors import Problem, SiteError, UnreachableError
from r1prov.common.paths import SITE_FILE
from r1prov.common.units import parse_duration
from r1prov.models.latent import Attention

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from r1prov.hosts import Login
    from r1prov.runs.early import Early
    from r1prov.site import Host, Site


def not_empty(value: str | None) -> str | None:
    """The value of an option. An empty value is refused: it comes from a variable of the shell that is not set."""
    if value == "":
        raise typer.BadParameter("it is empty; give it a value, or leave the option out")
    return value


Hosts = Annotated[
    list[str] | None,
    typer.Argument(
        help="`[user@]host[:port]` or names of ~/.ssh/config; with a site file: which of its hosts.",
        autocompletion=complete.hosts,
    ),
]
OneHost = Annotated[
    str | None,
    typer.Option("--host", help="Which of the site's hosts; the first without.", autocompletion=complete.hosts),
]
Profile = Annotated[
    str | None,
    typer.Option(
        help="The kind of server: a name of `r1prov profiles`, or a YAML file of your own.",
        callback=not_empty,
        autocompletion=complete.profiles,
    ),
]
Quant = Annotated[
    str | None,
    typer.Option(help="Which files of the model, e.g. UD-IQ1_S.", callback=not_empty, autocompletion=complete.quants),
]


def _tokens(text: str) -> int:
    """A number of tokens. Numbers are shown with commas, so people write them so."""
    try:
        return int(text)
    except ValueError:
        digits = text.replace(",", "")
        hint = digits if digits.isdecimal() else "32768"
        raise typer.BadParameter(f"`{text}` is no number of tokens: write digits alone, e.g. {hint}") from None


ContextSize = Annotated[
    int | None,
    typer.Option("--ctx-size", metavar="TOKENS", help="Tokens of context, for each slot.", parser=_tokens),
]
Slots = Annotated[
    str | None,
    typer.Option(
        "--parallel",
        metavar="N",
        help="Slots: how many are answered at once; or a floor, 'at least 8'.",
        callback=not_empty,
    ),
]
FirstToken = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="A floor: the first token of every exchange of the workload comes after this time at most, e.g. 15s.",
        callback=not_empty,
    ),
]
Workload = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="What people ask for: chat, documents, thinking, team, or a YAML file of your own.",
        callback=not_empty,
    ),
]
Form = Annotated[
    Attention | None,
    typer.Option(
        case_sensitive=False,
        help="`mla` brings files with legacy attention into MLA form; `legacy` serves them as published.",
    ),
]
Folder = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="DIR", help="Where to; without: the site's own folder.")
]


def _existing(path: Path | None) -> Path | None:
    """The site file that an option or the variable names.

    Raises:
        SiteError: there is no such file.
    """
    if path and not path.is_file():
        by = SITE_VARIABLE if os.environ.get(SITE_VARIABLE) == str(path) else "--site"
        what = "is a folder, not a site file" if path.is_dir() else "this site file does not exist"
        remedy = f"{by} names it: {'unset it, or ' if by == SITE_VARIABLE else ''}name a file that exists"
        raise SiteError(Problem(str(path), what, remedy))
    return path


def site_words(path: Path | None) -> str:
    """The words ` --site FILE` for the command line of a site; empty where r1prov finds that file without."""
    named = os.environ.get(SITE_VARIABLE) or SITE_FILE
    return "" if not path or Path(named).resolve() == path else f" --site {shlex.quote(str(path))}"


SiteFile = Annotated[
    Path | None,
    typer.Option(
        "--site",
        metavar="FILE",
        envvar=SITE_VARIABLE,
        help="The site file. Without: what R1PROV_SITE names, or r1prov.yml in this folder, if there is one.",
        callback=_existing,
    ),
]


def alone(profile: str, path: Path | None, hosts: Sequence[str]) -> str:
    """The profile, where neither a host nor a site file is named beside it, which would say of what kind the hosts are.

    Raises:
        BadParameter: something of that is named.
    """
    if hosts:
        raise typer.BadParameter(
            f"--profile and a host ({', '.join(hosts)}) exclude each other: a host's site says of what kind it is"
        )
    if path and os.environ.get(SITE_VARIABLE) != str(path):
        raise typer.BadParameter("--profile and --site exclude each other: the site says of what kind its hosts are")
    return profile


A_KIND = "name a kind of server, which need not be there: --profile 4x4090 (`r1prov profiles` lists them)"
"""What does where no site is known, for a verb that only calculates."""


def seconds(option: str, text: str) -> int:
    """The duration that an option is given, in seconds.

    Raises:
        BadParameter: it is none.
    """
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(f"{option}: {error}") from None


Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
BreakLock = Annotated[bool, typer.Option("--break-lock", help="Take hosts from another run that has certainly ended.")]
Verbose = Annotated[
    int, typer.Option("--verbose", "-v", count=True, help="Show Ansible's own output; more of it with -vv.")
]


@dataclass(frozen=True)
class LoginOptions:
    """The options by which a verb logs in to hosts. Nobody is asked for a password before `ask`."""

    ask_become_pass: bool
    ask_pass: bool
    strict_host_keys: bool
    ssh_config: Path | None

    def ask(self) -> Login:
        """Ask for the passwords that the operator wants to type. An empty sudo password means the one for ssh."""
        # Imported late, because this brings ssh, which `plan` and `explain` do without.
        from r1prov.hosts import Login, Passwords  # noqa: PLC0415

        ssh = _password("--ask-pass", "ssh password: ") if self.ask_pass else None
        sudo = None
        if self.ask_become_pass:
            prompt = "sudo password [the same]: " if self.ask_pass else "sudo password: "
            sudo = _password("--ask-become-pass", prompt) or ssh
        return Login(
            passwords=Passwords(ssh=ssh, sudo=sudo),
            strict_host_keys=self.strict_host_keys,
            ssh_config=self.ssh_config,
            tell=lambda host, text: output.say(f"{host}: {text}"),
            confirm=_confirm_host_key if sys.stdin.isatty() else None,
        )

    def begin(self, site: Site, hosts: Sequence[Host]) -> Early | None:
        """Begin to look at hosts of which something is kept, unless a password is to be asked for."""
        if self.ask_pass or self.ask_become_pass:
            return None
        from r1prov.runs.early import Early  # noqa: PLC0415 - as above

        return Early(site, hosts, self.ask())


def _password(option: str, prompt: str) -> str:
    """Ask for the password that an option wants, or read a line where there is no terminal.

    Raises:
        UnreachableError: there is nothing to read, so no host can be logged in to.
    """
    try:
        with warnings.catch_warnings(action="ignore", category=getpass.GetPassWarning):
            return getpass.getpass(prompt)
    except EOFError:
        output.say()
        remedy = "work in a terminal, or log in with a key"
        raise UnreachableError(Problem(option, "nobody can be asked for the password here", remedy)) from None


def _confirm_host_key(host: str, shown: str) -> bool:
    """Ask whether a host has the key that it shows. Who says no leaves this host out, and who stops the question stops it all."""
    with output.still():
        output.say(f"{host}: not known before; its host key is {shown}")
        try:
            return typer.confirm(f"Is that the key of {host}? A password will go there", err=True)
        except typer.Abort:
            raise KeyboardInterrupt from None


def _login(
    *,
    ask_become_pass: Annotated[
        bool, typer.Option("--ask-become-pass", "-K", help="Ask for the sudo password of the hosts.")
    ] = False,
    ask_pass: Annotated[bool, typer.Option("--ask-pass", "-k", help="Ask for the ssh password of the hosts.")] = False,
    strict_host_keys: Annotated[
        bool,
        typer.Option(
            "--strict-host-keys", help="Refuse hosts whose ssh key is not known, instead of trusting it at first sight."
        ),
    ] = False,
    ssh_config: Annotated[
        Path | None,
        typer.Option(
            "--ssh-config",
            metavar="FILE",
            envvar="R1PROV_SSH_CONFIG",
            help="Instead of ~/.ssh/config.",
            exists=True,
            resolve_path=True,
        ),
    ] = None,
) -> LoginOptions:
    return LoginOptions(ask_become_pass, ask_pass, strict_host_keys, ssh_config)


def logs_in(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the options of `_login` in the place of its parameter `login_options`."""
    ours = inspect.signature(_login, eval_str=True).parameters
    own = inspect.signature(verb, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for name, parameter in own.parameters.items():
        parameters += ours.values() if name == "login_options" else [parameter]

    @functools.wraps(verb)
    def command(*values: Any, **options: Any) -> None:
        login_options = _login(**{name: options.pop(name) for name in ours})
        verb(*values, **options, login_options=login_options)

    # Typer reads the options of a command from these.
    command.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command
