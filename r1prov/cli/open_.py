"""`r1prov open`: the chat page and the API of a server, from here."""

from __future__ import annotations

import signal

from r1prov import output
from r1prov.cli import options, show
from r1prov.hosts import visit
from r1prov.site.select import last_applied


@options.logs_in
def open_(
    *,
    host: options.OneHost = None,
    site: options.SiteFile = None,
    login_options: options.LoginOptions,
    json: options.Json = False,
) -> None:
    """Open a tunnel to the chat page and the API, and say who logs in how. Ctrl-C closes it.

    Example: `r1prov open --host gpu1`
    """
    login = login_options.ask()
    with visit.opened(site, host, login) as (server, doors):
        if json:
            output.data(
                {
                    "host": server.name,
                    "page": doors.page,
                    "email": doors.email,
                    "password_file": str(doors.password_file),
                    "api": doors.api,
                    "key_file": str(doors.key_file) if doors.key_file else None,
                    "gateway": doors.gateway,
                    "authority": str(doors.authority) if doors.authority else None,
                }
            )
        else:
            if doors.page:
                output.write(f"{doors.page}\n")
                output.say(f"  the chat page; log in as {doors.email} with the password in {doors.password_file}")
            output.write(f"{doors.api}\n")
            output.say(f"  the API; {f'its key is in {doors.key_file}' if doors.key_file else 'Ollama, without a key'}")
            if doors.gateway:
                trust = f"; their machines must trust {doors.authority}" if doors.authority else ""
                output.say(f"{doors.gateway}\n  page and API for others, through the gateway{trust}")
        show.authority_news(last_applied(site, ())[0])
        if server.local:
            return
        output.say("Ctrl-C closes it.", "dim")
        try:
            signal.pause()
        except KeyboardInterrupt:
            output.say("\nClosed.")
