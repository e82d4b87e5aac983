"""Decision -> an inventory folder that plain `ansible-playbook` can run.

The folder has `hosts.yml` and `group_vars/all.yml`, rendered from `templates/inventory/`. Every role gets its own values there; no
secret does: the API key and the hub's token are looked up from their files when a play runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from r1prov import __version__
from r1prov.common import paths
from r1prov.common.files import write_whole
from r1prov.common.units import GIB, gib
from r1prov.models.sources import places
from r1prov.offload.tuning import for_bench

if TYPE_CHECKING:
    from r1prov.decision import Decision
    from r1prov.models.catalogue import Quant
    from r1prov.site import Site

DRIVER_FOR_WHEELS = "580"
"""The oldest NVIDIA driver for CUDA 13, the toolkit that PyPI carries."""

BUILD_BYTES = {"cpu": 2 * 10**9, "cuda": 8 * 10**9}
"""Disk for sources, build tree, toolkit and releases, rounded up from what was measured."""

PAGE_BYTES = 4 * 10**9
"""Disk for the chat page: its packages, their cache, and what people upload at first."""

R1_TEMPLATE = "<｜User｜>{{ .System }} {{ .Prompt }}<｜Assistant｜>"  # noqa: RUF001 - R1 spells its special tokens with these bars
"""R1's turn for Ollama, as the published guides write it. A model of one's own brings its template in its file."""

WEIGHTS_RESERVE_BYTES = 2 * GIB
"""What the transfer leaves free on its disk: the default of the role's `weights_reserve_bytes`."""


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
    return folder


def rendered(decision: Decision, site_dir: str = BESIDE) -> dict[str, str]:
    """The texts of the inventory, by their path in its folder."""
    values = {**_values(decision), "site_dir": site_dir}
    values["tuned"] = {
        host: {
            "what": tuned.what,
            "arguments": tuned.arguments,
            "bench": ["--model", decision.model_file, *for_bench(tuned.arguments, decision.plan)],
        }
        for host, tuned in decision.tuned.items()
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(paths.collection() / "templates" / "inventory"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 -- YAML, not HTML; every value goes through the filter `yaml`
    )
    environment.filters["yaml"] = lambda value: json.dumps(value, ensure_ascii=False)  # JSON is YAML, on one line
    environment.filters["gib"] = gib
    return {
        path: environment.get_template(template).render(values)
        for path, template in (("hosts.yml", "hosts.yml.j2"), ("group_vars/all.yml", "all.yml.j2"))
    }


def _values(decision: Decision) -> dict[str, Any]:
    site, quant = decision.site, decision.quant
    file, machine = site.file, site.profile.machine
    return {
        "version": __version__,
        "profile_name": file.profile,
        "hosts": file.hosts,
        "site": file,
        "plan": decision.plan,
        "releases": decision.releases,
        "quant": quant,
        "gpus": machine.gpus,
        "backend": decision.backend,
        "question": site.profile.question,
        "temperature": site.profile.serving.temperature,
        "alias": decision.alias,
        "weights_dir": decision.weights_dir,
        "attention": decision.attention,
        "merged": decision.merged,
        "model": decision.model_file,
        "ollama_template": R1_TEMPLATE if quant.repo.endswith("/DeepSeek-R1-GGUF") else "",
        "weights_sources": _places(site, quant),
        "token_file": next((s.token_file for s in file.sources.weights if s.type == "hub" and s.token_file), None),
        "environment": _environment(site),
        "proxies": _proxies(site),
        "expect": _expect(decision),
        "disk": _disk(decision),
        "ports": _ports(site),
        "reach": _reach(decision),
    }


def _environment(site: Site) -> dict[str, str]:
    """What every task's programs see: proxies, the package index, the certificate authorities, the apt mirror."""
    sources = site.file.sources
    values = {
        **_proxies(site),
        "PIP_INDEX_URL": sources.pypi.index,
        "APT_CONFIG": "/etc/r1prov/build_deps/apt.conf" if sources.apt.mirror else "",
    }
    if sources.ca_certificates:
        # pip and requests bring their own list of authorities unless told to use the system's
        values |= dict.fromkeys(
            ("PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"), "/etc/ssl/certs/ca-certificates.crt"
        )
    return {key: value for key, value in values.items() if value}


def _proxies(site: Site) -> dict[str, str]:
    proxy = site.file.sources.proxy
    values = {"http_proxy": proxy.http, "https_proxy": proxy.https, "no_proxy": proxy.none_for}
    return {key: value for key, value in values.items() if value}


def _expect(decision: Decision) -> dict[str, Any]:
    site, machine = decision.site, decision.site.profile.machine
    gpus = machine.gpus
    expect: dict[str, Any] = {
        "backend": decision.backend,
        "ram_bytes": site.profile.floors.ram,
        "memory_floor_bytes": decision.plan.floor,
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
        if site.file.sources.cuda.type == "pypi":
            expect["driver_minimum"] = DRIVER_FOR_WHEELS
    return expect


def _ports(site: Site) -> list[dict[str, Any]]:
    """Every port that a service of ours listens on, and whose it is."""
    file = site.file
    ports = {"llama-server": file.service.port}
    if file.ollama.enabled:
        ports["ollama"] = file.ollama.port
    if file.open_webui.enabled:
        ports |= {"open-webui": file.open_webui.port, "embeddings": file.open_webui.embeddings_port}
    listeners = [*ports.items(), *(("gateway", port) for port in (file.gateway.ports if file.gateway else ()))]
    return [{"port": port, "unit": f"r1prov-{name}.service"} for name, port in listeners]


def _disk(decision: Decision) -> list[dict[str, Any]]:
    """Every copy that will be written, and the files that count as a part of it that is there."""
    site, quant, weights_dir, merged = decision.site, decision.quant, decision.weights_dir, decision.merged
    build, model_bytes = BUILD_BYTES[decision.backend], decision.plan.model_bytes
    one = _folder(f"{weights_dir}/{merged}", model_bytes) if merged else []
    # What was merged as published is as good as the shards to make the form that is served of.
    whole = [{"path": f"{weights_dir}/{name}", "bytes": quant.bytes} for name in _stand_ins(quant, merged)]
    shards = [
        {"path": f"{weights_dir}/{name}", "bytes": file.bytes}
        for file in quant.files
        for name in (file.name, f".incoming/{file.sha256}")  # whole, or on its way
    ]
    copies = [
        ("the weights, and 2 GiB that stay free", weights_dir, quant.bytes + WEIGHTS_RESERVE_BYTES, whole + shards),
        ("building llama.cpp", "/var/cache/r1prov", build, _folder("/opt/r1prov/llama.cpp/current/bin", build)),
    ]
    if merged:
        copies.append(("the one file that is made of them", weights_dir, model_bytes, one))
    if site.file.open_webui.enabled:
        copies.append(
            ("the chat page", "/opt/r1prov", PAGE_BYTES, _folder("/opt/r1prov/open-webui/current", PAGE_BYTES))
        )
    return [{"path": path, "bytes": n_bytes, "what": what, "have": have} for what, path, n_bytes, have in copies]


def _stand_ins(quant: Quant, merged: str) -> list[str]:
    """Files that may be there in place of the published ones."""
    return sorted({merged, f"{quant.folder or quant.name}.gguf"}) if merged else []


def _any_of(quant: Quant, merged: str) -> str:
    """A pattern of the names of `_stand_ins`."""
    name = f"{quant.folder or quant.name}.gguf"
    return merged if merged == name else name.replace(".gguf", ".*gguf")


def _folder(path: str, n_bytes: int) -> list[dict[str, Any]]:
    """A file or folder that, where it is there, holds all of it."""
    return [{"path": path, "bytes": n_bytes}]


def _reach(decision: Decision) -> list[dict[str, Any]]:
    """What the host must be able to reach, and the files (globs) that make each needless once they are all there."""
    site, quant, backend, merged = decision.site, decision.quant, decision.backend, decision.merged
    sources, version, weights_dir = site.file.sources, decision.releases.llama_cpp.version, decision.weights_dir
    llama_cpp = {
        "pypi": f"{sources.pypi.index.rstrip('/')}/llama-cpp-python/",
        "git": sources.llama_cpp.git_url,
        "archive": sources.llama_cpp.archive,
    }[sources.llama_cpp.type]
    names = [file.name for file in quant.files]
    reach = [
        {
            "what": "the weights",
            "any_of": [place.get("endpoint") or place.get("url") or place["path"] for place in _places(site, quant)],
            "have": [f"{weights_dir}/{name}" for name in ([_any_of(quant, merged)] if merged else names)],
        }
    ]
    if not Path(llama_cpp).is_file():  # a file of the controller travels with the run
        release = f"/opt/r1prov/llama.cpp/releases/{version}-{backend}-*/bin/llama-server"
        reach.append({"what": "the source of llama.cpp", "any_of": [llama_cpp], "have": [release]})
    if sources.apt.mirror.startswith("http"):
        reach.append({"what": "the apt mirror", "any_of": [sources.apt.mirror], "have": ["/usr/bin/ninja"]})
    if backend == "cuda" and sources.cuda.type == "pypi":
        toolkit = f"{sources.pypi.index.rstrip('/')}/cuda-toolkit/"
        reach.append({"what": "the CUDA toolkit", "any_of": [toolkit], "have": ["/opt/r1prov/cuda/current/bin/nvcc"]})
    if site.file.ollama.enabled and not Path(site.file.ollama_archive).is_file():
        release = f"/opt/r1prov/ollama/releases/{decision.releases.ollama.version}-*/bin/ollama"
        reach.append({"what": "Ollama", "any_of": [site.file.ollama_archive], "have": [release]})
    if site.file.open_webui.enabled:
        page = f"/opt/r1prov/open-webui/releases/{decision.releases.open_webui.version}-*/bin/open-webui"
        index = f"{sources.pypi.index.rstrip('/')}/open-webui/"
        reach.append({"what": "the chat page", "any_of": [index], "have": [page]})
    return reach


def _places(site: Site, quant: Quant) -> list[dict[str, Any]]:
    return [place for source in site.file.sources.weights for place in places(source, quant)]
