"""Site + plan -> an inventory folder that plain `ansible-playbook` can run.

The folder has `hosts.yml` and `group_vars/all.yml`, rendered from `templates/inventory/`. Every role gets its own values there; no
secret does: the API key and the hub's token are looked up from their files when a play runs.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from r1prov import __version__, catalogue, paths
from r1prov.machine import BEST_ON_GPUS
from r1prov.offload import DYNAMIC_QUANTS, Plan, best_on_gpus, plan
from r1prov.site import Hub, ModelScope
from r1prov.units import GIB, gib

if TYPE_CHECKING:
    from r1prov.catalogue import Quant
    from r1prov.site import Site, WeightSource

DRIVER_FOR_WHEELS = "580"
"""The oldest NVIDIA driver for CUDA 13, the toolkit that PyPI carries."""

BUILD_BYTES = {"cpu": 2 * 10**9, "cuda": 8 * 10**9}
"""Disk for sources, build tree, toolkit and releases, rounded up from what was measured."""

WEIGHTS_RESERVE_BYTES = 2 * GIB
"""What the transfer leaves free on its disk: the default of the role's `weights_reserve_bytes`."""


def plan_for(site: Site) -> tuple[Quant, Plan]:
    """The files that the site serves, and where they lie.

    Raises:
        SiteError: unknown quant, or one that cannot be placed.
    """
    serving, machine = site.profile.serving, site.profile.machine
    if site.profile.model and site.profile.model.name == serving.quant:
        return site.profile.model, plan(site.profile.model, machine, serving)
    if serving.quant == BEST_ON_GPUS:
        best = best_on_gpus([catalogue.quant(name) for name in DYNAMIC_QUANTS], machine, serving)
        return catalogue.quant(best.quant), best
    quant = catalogue.quant(serving.quant)
    return quant, plan(quant, machine, serving)


BESIDE = "{{ inventory_dir }}/.."
"""Where the site's secrets and reports lie, seen from an inventory in its usual place."""


def render(site: Site, folder: Path, site_dir: str = BESIDE) -> Path:
    """Write the inventory of `site` into `folder`, replacing what was rendered there before. Returns `folder`.

    Args:
        site: whose.
        folder: where to.
        site_dir: what holds the site's `secrets` and `reports`, for Ansible to read.

    Raises:
        SiteError: the site cannot be planned.
    """
    texts = rendered(site, site_dir)
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as part:
            part.write(text)
        Path(part.name).replace(path)
    return folder


def rendered(site: Site, site_dir: str = BESIDE) -> dict[str, str]:
    """The texts of the inventory by their path in its folder."""
    values = {**_values(site), "site_dir": site_dir}
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


def _values(site: Site) -> dict[str, Any]:
    quant, plan_ = plan_for(site)
    file, machine = site.file, site.profile.machine
    backend = "cuda" if machine.gpus else "cpu"
    weights_dir = f"{file.data_dir}/models/{quant.folder or quant.name}"
    return {
        "version": __version__,
        "profile_name": file.profile,
        "hosts": file.hosts,
        "site": file,
        "plan": plan_,
        "quant": quant,
        "gpus": machine.gpus,
        "backend": backend,
        "question": site.profile.question,
        "alias": file.service.alias or quant.folder or quant.name,
        "weights_dir": weights_dir,
        "model": f"{weights_dir}/{quant.files[0].name}",
        "weights_sources": _places(site, quant),
        "token_file": next((s.token_file for s in file.sources.weights if s.type == "hub" and s.token_file), None),
        "environment": _environment(site),
        "proxies": _proxies(site),
        "expect": _expect(site, plan_),
        "disk": _disk(weights_dir, quant, backend),
        "ports": [{"port": file.service.port, "unit": "r1prov-llama-server.service"}],
        "reach": _reach(site, quant, weights_dir, backend),
    }


def _weight_sources(source: WeightSource, quant: Quant) -> list[dict[str, Any]]:
    """A source as role `weights` takes it. A mirror or folder may hold the quant's folder or the bare files."""
    if isinstance(source, Hub | ModelScope):
        revision = quant.revision if source.type == "hub" else "master"  # ModelScope counts its own commits
        return [
            {
                "type": source.type,
                "endpoint": source.endpoint.rstrip("/"),
                "repo": quant.repo,
                "revision": revision,
                "folder": quant.folder,
            }
        ]
    key, base = ("url", source.url) if source.type == "http" else ("path", source.path)
    places = dict.fromkeys((f"{base.rstrip('/')}/{quant.folder}".rstrip("/"), base.rstrip("/")))
    return [{"type": source.type, key: place} for place in places]


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


def _expect(site: Site, plan_: Plan) -> dict[str, Any]:
    gpus = site.profile.machine.gpus
    expect: dict[str, Any] = {
        "backend": "cuda" if gpus else "cpu",
        "ram_bytes": site.profile.floors.ram,
        "memory_floor_bytes": plan_.floor,
    }
    if gpus:
        expect |= {
            "gpu_count": gpus.count,
            "gpu_memory_bytes": gpus.memory,
            "gpu_compute_capability": gpus.compute_capability,
        }
        if site.file.sources.cuda.type == "pypi":
            expect["driver_minimum"] = DRIVER_FOR_WHEELS
    return expect


def _disk(weights_dir: str, quant: Quant, backend: str) -> list[dict[str, Any]]:
    have = [
        {"path": f"{weights_dir}/{name}", "bytes": file.bytes}
        for file in quant.files
        for name in (file.name, f".incoming/{file.sha256}")  # whole, or on its way
    ]
    built = [{"path": "/opt/r1prov/llama.cpp/current/bin", "bytes": BUILD_BYTES[backend]}]
    return [
        {"path": weights_dir, "bytes": quant.bytes + WEIGHTS_RESERVE_BYTES, "what": "the weights", "have": have},
        {"path": "/var/cache/r1prov", "bytes": BUILD_BYTES[backend], "what": "building llama.cpp", "have": built},
    ]


def _reach(site: Site, quant: Quant, weights_dir: str, backend: str) -> list[dict[str, Any]]:
    """What the host must be able to reach, and the files (globs) that make each needless once they are all there."""
    sources, version = site.file.sources, site.file.llama_cpp_version
    llama_cpp = {
        "pypi": f"{sources.pypi.index.rstrip('/')}/llama-cpp-python/",
        "git": sources.llama_cpp.git_url,
        "archive": sources.llama_cpp.archive,
    }[sources.llama_cpp.type]
    reach = [
        {
            "what": "the weights",
            "any_of": [place.get("endpoint") or place.get("url") or place["path"] for place in _places(site, quant)],
            "have": [f"{weights_dir}/{file.name}" for file in quant.files],
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
    return reach


def _places(site: Site, quant: Quant) -> list[dict[str, Any]]:
    return [place for source in site.file.sources.weights for place in _weight_sources(source, quant)]
