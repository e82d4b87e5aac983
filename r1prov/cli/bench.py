"""`r1prov bench`: measure what runs."""

from __future__ import annotations

from typing import Annotated

import typer

from r1prov import output
from r1prov.cli import options, running, show
from r1prov.runs.tuning import require_llama_server
from r1prov.site.select import last_applied


@options.logs_in
def bench(
    hosts: options.Hosts = None,
    *,
    site: options.SiteFile = None,
    llama_bench: Annotated[
        bool,
        typer.Option(
            "--llama-bench",
            help="Run llama-bench too. It loads a second copy of the model: the service stops meanwhile.",
        ),
    ] = False,
    login_options: options.LoginOptions,
    verbose: options.Verbose = 0,
    json: options.Json = False,
) -> None:
    """Measure prompt and decode rates of the running servers, beside the published figures.

    Example: `r1prov bench gpu1`
    """
    applied, targets = last_applied(site, hosts or ())
    if llama_bench:
        require_llama_server(applied)
    decision = running.settle(applied)
    login = login_options.ask()
    request = running.request("bench", {"r1prov_llama_bench": True} if llama_bench else {}, verbosity=verbose)
    done = running.run(decision, targets, login, request)
    if json:
        output.data(done.report.as_json())
    else:
        show.benchmark(done.report, done.decision.site, talk=False)
    if done.error:
        raise done.error
