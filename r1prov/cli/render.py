"""`r1prov render`: the inventory for plain ansible-playbook."""

from __future__ import annotations

from r1prov import inventory, output
from r1prov.cli import options  # noqa: TC001 - Typer reads the annotations when it runs
from r1prov.hosts import adopt
from r1prov.runs import secrets
from r1prov.runs.run import settle
from r1prov.site.select import select
from r1prov.site.state import SiteState


def render(
    hosts: options.Hosts = None,
    *,
    profile: options.Profile = None,
    site: options.SiteFile = None,
    quant: options.Quant = None,
    ctx_size: options.ContextSize = None,
    parallel: options.Slots = None,
    first_token: options.FirstToken = None,
    output_dir: options.Folder = None,
) -> None:
    """Write the inventory that `ansible-playbook -i DIR playbooks/up.yml` runs. Contacts no host.

    Example: `r1prov render --profile 4x4090 gpu1.example.com -o inventory-gpu1`
    """
    wanted, _ = select(
        site,
        hosts or (),
        profile=profile,
        quant=quant,
        context_per_slot=ctx_size,
        slots=parallel,
        first_token=first_token,
    )
    state = SiteState.of(wanted.path)
    decision = settle(wanted, output.say)
    for path in secrets.provide(wanted):
        hint = "; `r1prov up` would have asked the hosts first whether they have one"
        output.say(f"made {path}{hint if path.parent == state.secrets else ''}")
    for name in adopt(wanted.hosts, state.known_hosts):
        output.say(
            f"{name}: its host key is not known here, so ansible-playbook will refuse it; ssh to it once, and render again"
        )
    decision, remarks = decision.with_tuned(state.all_tuned(wanted.hosts), {})
    for name, text in remarks.items():
        output.say(f"{name} {text}")
    beside = (output_dir, str(state.root)) if output_dir else (state.inventory, inventory.BESIDE)
    output.write(f"{inventory.render(decision, *beside)}\n")
