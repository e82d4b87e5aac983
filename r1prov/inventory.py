"""Decision -> an inventory folder that plain `ansible-playbook` can run.

The folder has `hosts.yml` and `group_vars/all.yml`, rendered from `templates/inventory/`. Every role gets its own values there; no
secret does: the API key and the hub's token are looked up from their files when a play runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from r1prov import __version__
from r1prov.common import paths
from r1prov.common.files import write_whole
from r1prov.common.units import gib
from r1prov.decision import Releases
from r1prov.models.catalogue import ollama_template
from r1prov.models.sources import places
from r1prov.offload.tuning import for_bench

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jinja2.bccache import Bucket

    from r1prov.decision import Decision
    from r1prov.models.catalogue import Quant
    from r1prov.site import Site

BESIDE = "{{ inventory_dir }}/.."
"""Where the site's secrets and reports lie, seen from an inventory in its usual place."""


def render(decision: Decision, folder: Path, site_dir: str = BESIDE) -> Path:
    """Write the inventory into `folder`, replacing what was rendered there before. Returns `folder`.

    Args:
        decision: what the hosts shall serve.
        folder: where to.
        site_dir: the folder with the site's `secrets` and `reports`, for Ansible to read.
    """
    texts = rendered(decision, site_dir)
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    # A group that is gone would still say something of hosts that are not in it, and `all` of every host.
    for path in (folder / "group_vars").glob("*.yml"):
        if f"group_vars/{path.name}" not in texts and _OURS in path.read_text():
            path.unlink()
    return folder


_OURS = "rendered this file from the site"
"""What a rendered file says of itself."""


def rendered(decision: Decision, site_dir: str = BESIDE) -> dict[str, str]:
    """The texts of the inventory, by their path in its folder."""
    members = _members(decision)
    hosts: dict[str, Any] = {
        "version": __version__,
        "hosts": decision.site.hosts,
        "site": decision.site.file,
        "sites": {host.name: decision.of(host.name).site.own.file for host in decision.site.hosts},
        "groups": members,
        "machines": {host: _machine(decision, host) for host in decision.plans},
        "placed": {
            host: {"arguments": decision.arguments(host), "bench": for_bench(decision.arguments(host))}
            for host in decision.tuned.keys() | decision.plans.keys()
        },
        "tuned": decision.tuned,
        "plans": decision.plans,
        "slots": {host.name: decision.slots(host.name) for host in decision.site.file.those("engine")},
        "builds": {name: each.llama_cpp.version for name, each in decision.releases.items()},
        "own": {},
    }
    texts: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, of_group in members.items():
        group = decision.of(of_group[0])
        shared, own = _programs(decision, of_group)
        hosts["own"] |= own
        texts[f"group_vars/{name}.yml"] = "all.yml.j2", {**_values(group), "site_dir": site_dir, "shared": shared}
    texts["hosts.yml"] = "hosts.yml.j2", hosts
    environment = jinja2.Environment(  # noqa: S701 -- YAML, not HTML; every value goes through the filter `yaml`
        loader=jinja2.FileSystemLoader(paths.collection() / "templates" / "inventory"),
        undefined=jinja2.StrictUndefined,
        bytecode_cache=_Compiled(),
        **_SETTINGS,
    )
    environment.filters["yaml"] = lambda value: json.dumps(value, ensure_ascii=False)  # JSON is YAML, on one line
    environment.filters["gib"] = gib
    return {path: environment.get_template(template).render(values) for path, (template, values) in texts.items()}


def _members(decision: Decision) -> dict[str, list[str]]:
    """The hosts of each group of the inventory. Where the site has no groups that is the one of all hosts."""
    site = decision.site
    if not site.groups:
        return {"all": [host.name for host in site.hosts]}
    found: dict[str, list[str]] = {}
    for host in site.hosts:
        # Ansible has groups called `all` and `ungrouped`, and takes a group for a host of the same name.
        found.setdefault(f"group_{host.group}" if host.group else "ungrouped", []).append(host.name)
    return found


_SETTINGS: dict[str, Any] = {
    "trim_blocks": True,
    "lstrip_blocks": True,
    "keep_trailing_newline": True,
    "autoescape": False,
}
"""How Jinja reads the templates."""


class _Compiled(jinja2.FileSystemBytecodeCache):
    """What Jinja has compiled of the templates, by their content and its settings. To compile them takes longer than all else here."""

    def __init__(self) -> None:
        settings = hashlib.sha256(repr(_SETTINGS).encode()).hexdigest()
        super().__init__(str(paths.cache_dir() / "templates"), f"%s-{settings[:16]}")

    def load_bytecode(self, bucket: Bucket) -> None:
        """Take what is kept, where it can be read."""
        with contextlib.suppress(OSError):
            super().load_bytecode(bucket)

    def dump_bytecode(self, bucket: Bucket) -> None:
        """Keep it, where the cache can be written to."""
        with contextlib.suppress(OSError):
            Path(self.directory).mkdir(mode=0o700, parents=True, exist_ok=True)
            super().dump_bytecode(bucket)


def _values(decision: Decision) -> dict[str, Any]:
    site, quant = decision.site.own, decision.quant
    file, machine = site.file, site.profile.machine
    return {
        "version": __version__,
        "profile_name": file.profile,
        "site": file,
        "plan": decision.plan,
        "bench": for_bench(decision.plan.arguments),
        "quant": quant,
        "gpus": machine.gpus,
        "network": machine.network,
        "cpu_threads": machine.cpu_threads,
        "backend": decision.backend,
        "question": site.profile.question,
        "temperature": site.profile.serving.temperature,
        "alias": decision.alias,
        "weights_dir": decision.weights_dir,
        "attention": decision.attention,
        "merged": decision.merged,
        "model": decision.model_file,
        "ollama_template": ollama_template(quant),
        "weights_sources": _places(site, quant),
        "token_file": next((s.token_file for s in file.sources.weights if s.type == "hub" and s.token_file), None),
        "environment": {**_proxies(site), "PIP_INDEX_URL": file.sources.pypi.index},
        "proxies": _proxies(site),
        "expect": _expect(decision, site),
    }


def _machine(decision: Decision, host: str) -> str:
    """How the machine of a host differs from that of the profile, in words that go on `The plan of this host, which has`."""
    known, ram = decision.known[host], decision.machine_of(host).ram
    told = [f"its first card at {known.link}"] if known.link else []
    told += [f"{gib(ram)} of RAM"] if ram < decision.of(host).site.profile.machine.ram else []
    return " and ".join(told)


def _programs(decision: Decision, hosts: Sequence[str]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The releases that all hosts of a group share, by program, and by host those in which they differ.

    Of a program in which they differ nothing stands in the group, because a host could not take back to a role's default what
    the group has set.
    """
    shared: dict[str, Any] = {}
    own: dict[str, dict[str, Any]] = {name: {} for name in hosts}
    for program in (field.name for field in fields(Releases)):
        of_hosts = {name: getattr(decision.releases[name], program) for name in hosts}
        one = next(iter(of_hosts.values()))
        shared[program] = one if all(each == one for each in of_hosts.values()) else None
        if not shared[program]:
            for name, release in of_hosts.items():
                own[name][program] = release
    return shared, own


def _proxies(site: Site) -> dict[str, str]:
    proxy = site.file.sources.proxy
    values = {"http_proxy": proxy.http, "https_proxy": proxy.https, "no_proxy": proxy.none_for}
    return {key: value for key, value in values.items() if value}


def _expect(decision: Decision, site: Site) -> dict[str, Any]:
    machine = site.profile.machine
    gpus = machine.gpus
    expect: dict[str, Any] = {
        "backend": decision.backend,
        "ram_bytes": site.profile.floors.ram,
        # The hosts of a pool have that together, and each of them sees its own memory only.
        "memory_floor_bytes": decision.plan.floor if machine.hosts == 1 else 0,
        "numa_nodes": machine.numa_nodes,
    }
    if machine.cpu_threads:
        expect["threads"] = machine.cpu_threads
    if gpus:
        expect |= {
            "gpu_count": gpus.count,
            "gpu_memory_bytes": gpus.memory,
            "gpu_compute_capability": gpus.compute_capability,
        }
    return expect


def _places(site: Site, quant: Quant) -> list[dict[str, Any]]:
    return [place for source in site.file.sources.weights for place in places(source, quant)]
