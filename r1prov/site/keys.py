"""The keys of `r1prov.yml`, in which the operator says what a site shall be."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from r1prov.common import documents
from r1prov.common.documents import Keys
from r1prov.machines.profile import Context, Duration, KvType, Slots
from r1prov.machines.workload import NamedWorkload
from r1prov.models.latent import Attention
from r1prov.site.addresses import is_an_address, reached_at, url
from r1prov.site.host import Duty, Host, HostEntry
from r1prov.site.sources import Sources

TESTED_LLAMA_CPP = {"pypi": "0.3.36", "git": "0c1e57098bba43ac29e6e3b677cdceebdd22334f"}
"""The pinned llama.cpp (b11312), as llama-cpp-python and as a commit."""

TESTED_OLLAMA = "0.12.11"
TESTED_OLLAMA_SHA256 = "fb140ea4243706d0087b0108418ee5c6f74edcebf5f14e2f289b8e36bd303d0f"
"""The digest of the archive that the project published. Two package collections, which do not know each other, name the same."""
OLDEST_OLLAMA = "0.5.5"
"""The first version that knows DeepSeek-V3 and so R1, according to the page deepseek-v3 of Ollama's library."""
TESTED_OPEN_WEBUI = "0.12.4"

Engine = Literal["llama-server", "ollama"]

Check = Literal[
    "os", "arch", "sudo", "clock", "cpu", "ram", "floor", "driver",
    "gpu_count", "gpu_memory", "gpu_compute", "gpu_busy", "gpu_devices", "disk", "hook", "ports", "network", "tls",
    "sources", "fit",
]  # fmt: skip
"""The names of the checks of a host, which plugins/module_utils/host_judge.py makes."""


def _not_too_often(seconds: int) -> int:
    if seconds < 60:
        raise ValueError(f"`{seconds}s` is too often for a host to look: write `1m` or more")
    return seconds


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


class Versions(Keys):
    """The versions that are installed."""

    llama_cpp: str = Field(default="", pattern=r"^[\w.-]*$")
    """The version of llama-cpp-python for `pypi`, a tag or commit for `git`, a label for `archive`. Empty means the tested version."""
    ollama: str = Field(default=TESTED_OLLAMA, pattern=r"^\d+\.\d+\.\d+$")
    """The version of Ollama."""
    open_webui: str = Field(default=TESTED_OPEN_WEBUI, pattern=r"^\d+\.\d+\.\d+$")
    """The version of the chat page, Open-WebUI."""


class GroupVersions(Keys):
    """The versions of the hosts of a group, where they are others than the site's."""

    llama_cpp: str | None = Field(default=None, pattern=r"^[\w.-]*$")
    """As of the site."""
    ollama: str | None = Field(default=None, pattern=r"^\d+\.\d+\.\d+$")
    """As of the site."""
    open_webui: str | None = Field(default=None, pattern=r"^\d+\.\d+\.\d+$")
    """As of the site."""


class Service(Keys):
    """Where the API listens, and the name under which it offers the model."""

    address: Annotated[str, AfterValidator(is_an_address)] = "127.0.0.1"
    """The IP address to listen on. Anything but loopback offers the API to the network."""
    port: int = Field(default=8000, ge=1, le=65535)
    """The port."""
    alias: str = ""
    """The name of the model in the API. Where it is empty, the name of the quant's folder is used."""


class Ollama(Keys):
    """Ollama, which listens on loopback only, since it has no login."""

    enabled: bool = True
    """Whether Ollama is installed. If so, the shards of the model are merged, for Ollama wants one file."""
    port: int = Field(default=11434, ge=1, le=65535)
    """The port."""


class OpenWebui(Keys):
    """The chat page, which listens on loopback only."""

    enabled: bool = True
    """Whether the chat page is installed."""
    port: int = Field(default=8080, ge=1, le=65535)
    """The port."""
    embeddings_port: int = Field(default=8001, ge=1, le=65535)
    """The port of the small model that finds passages in documents."""
    admin_email: str = Field(default="admin@example.com", pattern=r"^[^@\s]+@[^@\s]+$")
    """The address with which the administrator logs in. r1prov makes the account and its password."""
    plugins: bool = False
    """Whether the page may run code: functions and tools of its administrators, servers of tools, and the code of an answer."""


class Certificate(Keys):
    """The operator's own certificate, in files on the controller. Their paths are relative to the site file."""

    type: Literal["certificate"]
    chain: str
    """A PEM file with the server's certificate, followed by those that issued it."""
    key: str
    """A PEM file with the private key of the certificate. It has no passphrase."""


class LocalAuthority(Keys):
    """The site's own authority, for this gateway alone. People make their machines trust its `authority.crt`, which `r1prov open` names."""

    type: Literal["local-authority"]


class Acme(Keys):
    """An ACME server such as Let's Encrypt. It must reach port 80 of the server under `server_name`. Renewal is automatic."""

    type: Literal["acme"]
    email: str = Field(pattern=r"^[^@\s]+@[^@\s]+$")
    """The address that the ACME server writes to. Who names it agrees to the terms of that server."""
    directory: str = Field(default="https://acme-v02.api.letsencrypt.org/directory", pattern=r"^https://")
    """The URL of the ACME server's directory."""


class External(Keys):
    """A proxy of the platform ends TLS before a rented container. The gateway speaks HTTP, and preflight refuses that elsewhere."""

    type: Literal["external"]


class Gateway(Keys):
    """The only listener that others can reach. It offers page and API over TLS, and exists only where this key does."""

    server_name: str = Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$|^[0-9A-Fa-f:]+$")
    """The name or address that people open."""
    address: str = "0.0.0.0"  # noqa: S104 - a gateway must be reachable from outside
    """The address to listen on. `::` means IPv4 too."""
    port: int = Field(default=443, ge=1, le=65535)
    """The port."""
    public_port: int | None = Field(default=None, ge=1, le=65535)
    """The port that people open, where a platform or a router maps it to `port`. Default: `port`."""
    balancer_port: int = Field(default=8010, ge=1, le=65535)
    """The port of the balancer, on loopback. It stands between the gateway and the engine, judges keys, and lets requests wait."""
    tls: Annotated[Certificate | LocalAuthority | Acme | External, Field(discriminator="type")]
    """Where the certificate of the gateway comes from."""

    @model_validator(mode="after")
    def _the_outside_is_known(self) -> Self:
        if self.tls.type == "external" and self.public_port is None:
            raise ValueError(
                "tls of type external needs `public_port`: the port in the URL that the platform shows, and 443 where it shows none"
            )
        return self

    @property
    def ports(self) -> tuple[int, ...]:
        """The ports on which it and the balancer listen. ACME needs port 80 too."""
        return (self.port, self.balancer_port, *((80,) if self.tls.type == "acme" else ()))

    @property
    def balancer_url(self) -> str:
        """The URL of the balancer, as its host sees it."""
        return url("127.0.0.1", self.balancer_port)

    @property
    def url(self) -> str:
        """The URL that people open."""
        name = f"[{self.server_name}]" if ":" in self.server_name else self.server_name
        port = self.public_port or self.port
        return f"https://{name}" if port == 443 else f"https://{name}:{port}"

    @property
    def local_url(self) -> str:
        """The URL of the gateway, as its host sees it."""
        return url(reached_at(self.address), self.port, "http" if self.tls.type == "external" else "https")


class Served(Keys):
    """What is served: keys of a site, and of each of its groups. The profile says what they do not."""

    profile: str | None = None
    """The name of a profile that comes with r1prov, or a YAML file of your own, relative to the site file."""
    quant: str | None = None
    """A quant of the catalogue, or `best-on-gpus`. Default: the profile's."""
    context_per_slot: Context | None = None
    """The context of each slot, in tokens. Default: the profile's."""
    slots: Slots | None = None
    """How many requests are answered at once, or a floor for that (`at least 8`). Default: the profile's."""
    first_token: Duration | None = None
    """A floor: every exchange of the workload has its first token after this time at most (`15s`). Default: the profile's."""
    attention: Attention | None = None
    """`mla` brings files with legacy attention into MLA form; `legacy` serves them as published. Default: the profile's."""
    kv_type_k: KvType | None = None
    """The type of K in the KV cache. Default: the profile's."""
    workload: NamedWorkload | None = None
    """`chat`, `documents`, `thinking`, `team`, or exchanges of your own, for which the model is placed. Default: the profile's."""


class Group(Served):
    """What the hosts of a group serve. Of what a group does not say, the keys of the site hold."""

    engine: Engine | None = None
    """The engine that holds the model."""
    versions: GroupVersions | None = None
    """The versions that are installed. Of those that it does not name, the site's hold."""
    coordinator: str | None = None
    """Of a group whose hosts hold one model together, the name of the host with the engine. Default: the one that has it."""


class SiteFile(Served):
    """The keys of `r1prov.yml`. The profile says what this file does not."""

    profile: str = ""
    """The name of a profile that comes with r1prov, or a YAML file of your own, relative to this file. Where each host with an engine is in
    a group that names one, it may be left out."""
    hosts: tuple[HostEntry, ...] = Field(min_length=1)
    """The servers. Each is `[user@]address[:port]`, or a mapping: name, address, user, port, identity_file, group, does, private."""
    groups: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")], Group] = Field(default={})
    """Hosts that serve something else than the others, by the name of their group."""
    drain_limit: Duration = 600
    """How long an engine that is about to be stopped may go on with its answers (`10m`), while it gets no new requests."""
    private_port: int = Field(default=7443, ge=1, le=65535)
    """The port at the private addresses of hosts, where they reach each other over mutual TLS."""
    data_dir: str = Field(default="/srv/r1prov", pattern=r"^/.")
    """The folder for the weights on the host. Where the host has a data disk, name a folder there. On a host without systemd, programs and
    state lie there, too."""
    rpc: bool = False
    """Whether llama.cpp's RPC server is built too."""
    override: tuple[Check, ...] = ()
    """The names of preflight checks that may fail: the operator accepts what they refuse."""
    sources: Sources = Sources()
    """Every address from which a host may fetch something."""
    versions: Versions = Versions()
    """The versions that are installed. Where the file is silent, `r1prov upgrade` chooses others, for each host."""
    service: Service = Service()
    """Where the API listens."""
    engine: Engine = "llama-server"
    """The engine that holds the model. Where the file is silent, `r1prov engine` switches it."""
    ollama: Ollama = Ollama()
    """Ollama, the other engine."""
    open_webui: OpenWebui = OpenWebui()
    """The chat page."""
    gateway: Gateway | None = None
    """The gateway, which offers page and API to others over TLS. It is off unless this key is there."""
    watch: Annotated[Duration, AfterValidator(_not_too_often)] | None = None
    """How often each host looks by itself whether it is still as it should be (`1h`), one minute at least. Off unless this key is there."""
    verify_weights: Literal["weekly", "monthly", "never"] = "monthly"
    """How often each host reads its weights by itself, in idle hours, to see that they are whole."""

    @property
    def one_service(self) -> bool:
        """Whether the hosts are one service, in which each has duties. Without, each is a service of its own."""
        return any(host.does is not None for host in self.hosts)

    def those(self, duty: Duty) -> tuple[Host, ...]:
        """The hosts that have a duty."""
        return tuple(host for host in self.hosts if host.has(duty))

    @property
    def door(self) -> Host | None:
        """The host through which all engines are asked; None where each host is a service of its own."""
        return next(iter(self.those("door")), None) if self.one_service else None

    def workers_of(self, host: str) -> tuple[Host, ...]:
        """The hosts that lend their devices to the engine of a host."""
        engine = next((each for each in self.those("engine") if each.name == host), None)
        return tuple(each for each in self.those("worker") if engine and each.group == engine.group)

    def has_ollama(self, host: Host) -> bool:
        """Whether a host has Ollama, which cannot serve a model that lies on several hosts."""
        return self.ollama.enabled and host.has("engine") and not self.workers_of(host.name)

    def coordinator_of(self, worker: Host) -> Host | None:
        """The host to whose engine a host lends its devices; None where it lends none."""
        engines = (each for each in self.those("engine") if each.group == worker.group)
        return next(engines, None) if worker.has("worker") else None

    def of_group(self, name: str) -> SiteFile:
        """These keys as they are for the hosts of a group."""
        own = self.groups[name].model_dump(exclude_none=True, exclude={"coordinator"})
        return SiteFile.model_validate(documents.merged(self.model_dump(exclude_unset=True), own))

    @property
    def verify_weights_every_s(self) -> int:
        """How old the last verification of the weights may be, in seconds; 0 where the hosts do not verify them by themselves."""
        return {"weekly": 7, "monthly": 30, "never": 0}[self.verify_weights] * 86400

    @property
    def api(self) -> tuple[str, int]:
        """The address and port on which the engine that holds the model listens."""
        if self.engine == "ollama":
            return "127.0.0.1", self.ollama.port
        return self.service.address, self.service.port

    @property
    def api_url(self) -> str:
        """The URL of the engine that holds the model, as its host sees it."""
        address, port = self.api
        return url(reached_at(address), port)

    @property
    def private_api_url(self) -> str:
        """The URL of the engine that holds the model, as the other services see it in their private network."""
        return url("127.0.0.1", self.api[1])

    @property
    def page_url(self) -> str:
        """The URL of the chat page, as its host sees it."""
        return url("127.0.0.1", self.open_webui.port)

    @property
    def embeddings_url(self) -> str:
        """The URL of the server that finds passages for the chat page, as its host sees it."""
        return url("127.0.0.1", self.open_webui.embeddings_port)

    @property
    def ollama_archive(self) -> str:
        """The place of Ollama's archive: the one that the operator names, or else the one where the project publishes it."""
        source, version = self.sources.ollama, self.versions.ollama
        packing = "tar.zst" if _numbers(version) >= (0, 14) else "tgz"
        return source.archive or f"{source.releases.rstrip('/')}/v{version}/ollama-linux-amd64.{packing}"

    @property
    def llama_cpp_version(self) -> str:
        """The version of llama.cpp to install. It is the tested one unless the operator names another."""
        return self.versions.llama_cpp or TESTED_LLAMA_CPP.get(self.sources.llama_cpp.type, "")

    @model_validator(mode="after")
    def _llama_cpp_is_checked(self) -> Self:
        source = self.sources.llama_cpp
        if source.type == "archive" and not (source.archive and source.sha256 and self.versions.llama_cpp):
            raise ValueError(
                "sources.llama_cpp of type archive needs `archive` (URL or file), `sha256`, and a label in versions.llama_cpp"
            )
        return self

    @model_validator(mode="after")
    def _the_engine_is_there(self) -> Self:
        if self.engine == "ollama" and not self.ollama.enabled:
            raise ValueError("engine is ollama, but ollama.enabled is false")
        return self

    @model_validator(mode="after")
    def _ollama_knows_the_model(self) -> Self:
        if self.ollama.enabled and _numbers(self.versions.ollama) < _numbers(OLDEST_OLLAMA):
            raise ValueError(
                f"Ollama {self.versions.ollama} is too old: write {OLDEST_OLLAMA} or newer, or `ollama: {{enabled: false}}`"
            )
        return self

    @model_validator(mode="after")
    def _ports_are_distinct(self) -> Self:
        page, api = self.open_webui, self.service
        ports = [api.port, *([self.ollama.port] if self.ollama.enabled else [])]
        ports += [page.port, page.embeddings_port] if page.enabled else []
        ports += self.gateway.ports if self.gateway else ()
        ports += [self.private_port] if self.one_service else []
        twice = sorted({port for port in ports if ports.count(port) > 1})
        if twice:
            raise ValueError(f"port {twice[0]} is given to two services")
        return self

    @model_validator(mode="after")
    def _one_token(self) -> Self:
        if sum(source.type == "hub" and bool(source.token_file) for source in self.sources.weights) > 1:
            raise ValueError("sources.weights: only one hub can have a token_file")
        return self

    @model_validator(mode="after")
    def _hosts_are_distinct(self) -> Self:
        names = [host.name for host in self.hosts]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"host {', '.join(twice)} is named twice")
        return self
